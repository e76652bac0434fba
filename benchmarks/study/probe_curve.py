"""Score the checkpoints of one or more runs and draw the scores over hours of audio heard.

    python -m benchmarks.study.probe_curve RUN_DIR [RUN_DIR ...] --speech ../shared/speech --out DIR

Digits and phones, the best layer, as the study scores them (`scores.py`): on a speech collection that is no part of
this repository. MFCC and the untrained model stand beside them. Writes scores.json and scores.png.
"""

import json
import os
import tempfile
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.study.scores import PROBES, Scorer
from sjepa_hf.command import CommandParser, command
from training.common.output_directory import checkpoints
from training.pretraining.checkpoint_layout import STATE_DIRECTORY, load_loop_state


def checkpoints_to_score(run: Path, every: int) -> list[Path]:
    """Every `every`-th checkpoint of a run, and its final one."""
    final = run / "final"
    finals = [final] if (final / STATE_DIRECTORY).is_dir() else []
    last = [load_loop_state(path).step for path in finals]
    steps = {path: load_loop_state(path).step for path in checkpoints(run)}
    return [path for path, step in steps.items() if step % every == 0 and step not in last] + finals


def origin(checkpoint: Path) -> Path | None:
    """The checkpoint of another run that this one went on from, if any."""
    asked = json.loads((checkpoint / STATE_DIRECTORY / "arguments.json").read_text())["resume_from_checkpoint"]
    if asked in (None, "latest", "auto") or Path(asked).resolve().parent == checkpoint.resolve().parent:
        return None
    return Path(asked)


def draw(scores: dict, runs: dict[str, list[Path]], path: Path) -> None:
    """Best layer's digits and phones of each run over hours of audio heard, from where it started."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, task in zip(panels, PROBES):
        for name, style in (("mfcc", "--"), ("untrained", ":")):
            axes.axhline(max(scores[name][task]), color="0.5", ls=style, label=name)
        for number, (name, scored) in enumerate(runs.items()):
            points = []
            for checkpoint in filter(None, [origin(scored[0]), *scored]):
                if str(checkpoint.resolve()) in scores:
                    hours = load_loop_state(checkpoint).seconds / 3600
                    points.append((hours, max(scores[str(checkpoint.resolve())][task])))
            axes.plot(*zip(*sorted(points)), "o-", ms=3, color=f"C{number}", label=name)
        axes.set(xlabel="hours of audio heard", title=f"{task} (best layer)")
        axes.legend(frameon=False)
    panels[0].set_ylabel("accuracy")
    figure.savefig(path, dpi=120)
    plt.close(figure)


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="output directories of training.pretrain")
    parser.add_argument("--speech", type=Path, required=True, help="the speech collection")
    parser.add_argument("--quick_probe", type=Path, help="quick_probe.py, to score digits and phones by it")
    parser.add_argument("--every", type=int, default=1, help="score checkpoints whose step is a multiple of this")
    parser.add_argument("--out", type=Path, required=True, help="directory for scores.json and scores.png")
    arguments = parser.parse_args(argv)
    runs = {run.name: checkpoints_to_score(run.resolve(), arguments.every) for run in arguments.runs}
    for name, scored in runs.items():
        if not scored:
            raise ValueError(f"{name} has no checkpoint whose step is a multiple of {arguments.every}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    scorer = Scorer(arguments.speech.resolve(), arguments.quick_probe, {}, dict(os.environ))
    every = list(dict.fromkeys(path for scored in runs.values() for path in scored))
    with tempfile.TemporaryDirectory() as folder:
        scores = scorer.layers(every, Path(folder), untrained=True)
    (arguments.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw(scores, runs, arguments.out / "scores.png")


if __name__ == "__main__":
    main()
