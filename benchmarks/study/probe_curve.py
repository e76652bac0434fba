"""Score the checkpoints of one or more runs with the quick probe and draw the scores over hours of audio seen.

    python -m benchmarks.study.probe_curve RUN_DIR [RUN_DIR ...] --probe ../shared/tools/quick_probe.py --out DIR

The probe is run as it is, once for all checkpoints: digits (leave one speaker out) and phones (frames of LJ Speech),
every layer, MFCC and the untrained model of each run beside them. Writes scores.json and scores.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sjepa_hf.command import command
from training.pretraining.checkpoint_layout import STATE_DIRECTORY, load_loop_state
from training.pretraining.resuming import checkpoints


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


def draw(results: dict, runs: dict[str, list[Path]], path: Path) -> None:
    """Best layer's digits and phones of each run over hours of audio seen, from where it started."""
    scores = {Path(name).resolve(): score for name, score in results.items()}
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, task in zip(panels, ("digits", "phones")):
        axes.axhline(max(results["mfcc"][task]), color="0.5", ls="--", label="MFCC")
        for number, (name, scored) in enumerate(runs.items()):
            start = origin(scored[0])
            points = [] if start else [(0.0, max(results[f"untrained:{scored[0]}"][task]))]
            for checkpoint in [start, *scored]:
                if checkpoint and checkpoint.resolve() in scores:
                    seconds = load_loop_state(checkpoint).seconds
                    points.append((seconds / 3600, max(scores[checkpoint.resolve()][task])))
            axes.plot(*zip(*sorted(points)), "o-", ms=3, color=f"C{number}", label=name)
        axes.set(xlabel="hours of audio seen", title=f"{task} (best layer)")
        axes.legend(frameon=False)
    panels[0].set_ylabel("accuracy")
    figure.savefig(path, dpi=120)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output directories of training/pretrain.py")
    parser.add_argument("--probe", type=Path, required=True, help="quick_probe.py")
    parser.add_argument("--every", type=int, default=1, help="score checkpoints whose step is a multiple of this")
    parser.add_argument("--out", type=Path, required=True, help="directory for scores.json and scores.png")
    arguments = parser.parse_args(argv)
    runs = {run.name: checkpoints_to_score(run, arguments.every) for run in arguments.runs}
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [f"untrained:{scored[0]}" for scored in runs.values() if not origin(scored[0])]
    names += [str(path) for scored in runs.values() for path in scored]
    found = arguments.out / "scores.json"
    subprocess.run([sys.executable, str(arguments.probe), *names, "--json", str(found)], check=True)
    draw(json.loads(found.read_text()), runs, arguments.out / "scores.png")


if __name__ == "__main__":
    main()
