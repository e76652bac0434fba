"""Run a grid of pretrainings and score each: variants x seeds at equal audio, one JSON line a run.

    python -m benchmarks.study.run benchmarks/study/grids/targets.yaml --train_data my.jsonl \
        --speech ../shared/speech --output_dir study --jobs 2

The scores are taken on a speech collection that is no part of this repository (`speech_manifest.py` says which);
without it, the tables and pictures of the runs that are there can still be made anew (`report.py`).

The same command goes on where it was stopped: runs from their last checkpoint, scores that exist are not made again.
`--variants` and `--seeds` take a part of the grid. A run that fails is reported, the others go on, the status is 1.

Every run is `training/pretrain.py` and every score a program of its own (`benchmarks/study/scores.py`); `--launcher
"accelerate launch --num_processes 8"` starts the pretrainings some other way. `OUTPUT_DIR/GRID/GRID.jsonl` holds for
each run its settings, the commit, the hours of audio heard, the hours taken, scores and last metrics, in the grid's
order; `python -m benchmarks.study.report` makes tables and pictures of it.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.study.grid import Grid, as_flags, read_grid
from benchmarks.study.scores import Scorer, run_logged
from benchmarks.study.speech_manifest import speech_folder
from sjepa_hf.command import CommandParser, UserError, command
from sjepa_hf.contents import RECORD
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import grouped
from training.common.output_directory import checkpoints
from training.pretraining.monitoring import read_history


logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
RESULT = "result.json"
AUDIO_TOLERANCE = 0.01  # share by which the audio heard may differ between the variants of one seed


class Study:
    """
    A grid in a directory: `trunk-sSEED/` and `VARIANT-sSEED/` with `run/` (the pretraining's output) and scores.

    Args:
        grid (`Grid`): what is run.
        directory (`Path`): where.
        train_data (`list[str]`): sources, as `training/pretrain.py` takes them.
        launcher (`list[str]`): how a Python program is started.
        scorer (`Scorer`): makes the scores.
    """

    def __init__(self, grid: Grid, directory: Path, train_data: list[str], launcher: list[str], scorer: Scorer):
        self.grid = grid
        self.directory = directory
        self.train_data = train_data
        self.launcher = launcher
        self.scorer = scorer
        self._trunks = {seed: threading.Lock() for seed in grid.seeds}
        self._collecting = threading.Lock()

    def run(self, variant: str, seed: int) -> None:
        """One run with its scores, unless it is there already; leaves `result.json`."""
        here = self.directory / f"{variant}-s{seed}"
        known = json.loads((here / RESULT).read_text()) if (here / RESULT).is_file() else {"scores": {}}
        self._check_unchanged(variant, here, known.get("settings", {}))
        missing = [stage for stage in self.grid.stages if stage not in known.get("stages", [])]
        if not missing:
            return
        start, step = None, self.grid.from_step(variant)
        if step:
            with self._trunks[seed]:
                start = self._pretrain(None, seed) / f"checkpoint-{step}"
        output = self._pretrain(variant, seed, start)
        if "commit" not in known:
            known |= self._facts(variant, seed, output, step)
        for stage in missing:
            logger.info("%s, seed %d: %s", variant, seed, stage)
            known["scores"] |= self.scorer.score(stage, output / "final", here, seed)
            known["stages"] = [*known.get("stages", []), stage]
            write_text_aside(here / RESULT, json.dumps(known, indent=1) + "\n")
        self.scorer.forget_features(here)

    def _check_unchanged(self, variant: str, here: Path, used: dict) -> None:
        """Raise a UserError where a variant was run with other settings than the grid now gives it."""
        for name, value in self.grid.settings(variant).items():
            if name in used and not isinstance(value, dict) and used[name] != value:
                raise UserError(
                    f"{here} was run with `{name}` {used[name]!r}, the grid now says {value!r}: delete it, or name the"
                    " variant otherwise."
                )

    def _pretrain(self, variant: str | None, seed: int, start: Path | None = None) -> Path:
        """Train to the end, from the last checkpoint if there is one. Returns the output directory."""
        here = self.directory / f"{variant or 'trunk'}-s{seed}"
        output = here / "run"
        if (output / "final" / RECORD).is_file():
            return output
        settings = {**self.grid.settings(variant), "seed": seed, "output_dir": output, "report_to": "none"}
        settings["train_data"] = self.train_data
        settings["resume_from_checkpoint"] = "latest" if checkpoints(output) else start
        if settings["resume_from_checkpoint"] is None:
            del settings["resume_from_checkpoint"]
        if variant is None:
            settings["save_total_limit"] = 0  # variants go on from different steps
        output.mkdir(parents=True, exist_ok=True)
        origin = settings.get("resume_from_checkpoint", "the start")
        logger.info("%s, seed %d: training from %s", variant or "trunk", seed, origin)
        write_text_aside(here / "commit", commit() + "\n")
        command = [*self.launcher, str(ROOT / "training" / "pretrain.py"), "--config", self.grid.recipe]
        run_logged([*command, *as_flags(settings)], here / "run.log", self.scorer.environment)
        if variant is not None:
            for checkpoint in checkpoints(output):  # the result is in `final`
                shutil.rmtree(checkpoint)
        return output

    def _facts(self, variant: str, seed: int, output: Path, from_step: int) -> dict:
        """What is known of a run besides its scores."""
        record = json.loads((output / "final" / RECORD).read_text())
        return {
            "grid": self.grid.name,
            "baseline": self.grid.baseline,
            "variant": variant,
            "seed": seed,
            "commit": (output.parent / "commit").read_text().strip(),
            "from_step": from_step,
            **{name: record[name] for name in ("steps", "hours_heard", "hours_taken", "hardware", "software")},
            "settings": record["settings"],
            "last": read_history(output / "metrics.jsonl")[-1],
        }

    def collect(self) -> list[dict]:
        """
        All results so far in the grid's order, also written to `GRID.jsonl`. Unequal audio is reported, seed by seed,
        as variants are compared: other seeds draw other clips.
        """
        found = [
            self.directory / f"{variant}-s{s}" / RESULT for variant in self.grid.variants for s in self.grid.seeds
        ]
        with self._collecting:
            results = [json.loads(path.read_text()) for path in found if path.is_file()]
            lines = "".join(json.dumps(result) + "\n" for result in results)
            write_text_aside(self.directory / f"{self.grid.name}.jsonl", lines)
        for seed, runs in grouped(results, lambda result: result["seed"]).items():
            hours = {run["variant"]: run["hours_heard"] for run in runs}
            least, most = (choose(hours, key=hours.get) for choose in (min, max))
            if hours[most] > (1 + AUDIO_TOLERANCE) * hours[least]:
                said = "The audio heard with seed %d is not equal: %s %.2f hours, %s %.2f hours."
                logger.warning(said, seed, least, hours[least], most, hours[most])
        return results


def environment(jobs: int) -> dict[str, str]:
    """Environment variables of the runs: ours, this code first on the path, and a share of the cores for each job."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    shared = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return {**shared, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def commit() -> str:
    """The commit of the code, with "-dirty" where files differ from it; "unknown" outside a repository."""
    try:
        described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("grid", help="YAML file, see benchmarks/study/grid.py")
    parser.add_argument("--train_data", nargs="+", required=True, help="sources, as training/pretrain.py takes them")
    parser.add_argument("--speech", type=Path, help="the speech collection (default: what SJEPA_SPEECH names)")
    parser.add_argument("--quick_probe", type=Path, help="quick_probe.py, to score digits and phones by it")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--stages", nargs="+", help="only these scores")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores")
    parser.add_argument("--launcher", default=sys.executable, help="what starts a Python program")
    arguments = parser.parse_args(argv)
    grid = read_grid(arguments.grid)
    speech = speech_folder(arguments.speech)
    for name in ("variants", "seeds", "stages"):
        if unknown := set(getattr(arguments, name) or []) - set(getattr(grid, name)):
            raise ValueError(f"--{name} {unknown.pop()} is not in {arguments.grid}.")
    grid.stages = arguments.stages or grid.stages
    quick_probe = arguments.quick_probe and arguments.quick_probe.resolve()
    scorer = Scorer(speech, quick_probe, grid.ctc, environment(arguments.jobs))
    scorer.check(grid.stages)
    directory = arguments.output_dir.resolve() / grid.name
    directory.mkdir(parents=True, exist_ok=True)
    study = Study(grid, directory, arguments.train_data, shlex.split(arguments.launcher), scorer)
    chosen = [(v, s) for s in arguments.seeds or grid.seeds for v in arguments.variants or grid.variants]
    failed = []

    def one(run: tuple[str, int]) -> None:
        try:
            study.run(*run)
        except UserError as error:
            logger.error("%s, seed %d: %s", *run, error)
            failed.append(run)
        study.collect()

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, chosen))
    logger.info("%d results in %s.", len(study.collect()), directory / f"{grid.name}.jsonl")
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} runs failed: {', '.join(f'{v}-s{s}' for v, s in failed)}")


if __name__ == "__main__":
    main()
