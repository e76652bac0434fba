"""The demo from end to end: speech -> pretraining -> linear probes. About six minutes on two CPU cores.

    python -m examples.demo.run                      # synthesises its own speech (or: make demo)
    python -m examples.demo.run --speech my_audio/   # your own (or: make demo SPEECH=my_audio/)

Your own folder may hold `train/` and `test/` (or `validation/`, `dev/`); otherwise all of it is pretrained on. Any
file that soundfile reads will do; a `metadata.csv` with labels (see `examples/demo/probes.py`) brings the probes.
Options that this script does not know go to `training/pretrain.py`, e.g. `--phase1_steps 100`.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import transformers

from examples.demo.probes import report, run_probes, save_report
from examples.demo.synthesize import synthesize
from sjepa_hf.command import UserError, command


REPOSITORY = Path(__file__).resolve().parents[2]
HELD_OUT_FOLDERS = ("test", "validation", "dev")


def locate_speech(folder: Path) -> tuple[Path, Path, str]:
    """Where in the user's folder to pretrain, where to probe, and what to say about it.

    Raises:
        ValueError: `folder` does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"SPEECH: {folder} is not a folder.")
    train = folder / "train" if (folder / "train").is_dir() else folder
    for name in HELD_OUT_FOLDERS:
        held_out = folder / name
        if train != folder and (held_out / "metadata.csv").is_file():
            return train, held_out, f"The recordings come from {name}/, which pretraining did not read."
    return train, train, "Pretraining heard these recordings too, without their labels: there is no held-out folder."


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ...: the first that does not exist. Earlier runs stay as they are."""
    folder, n = wanted, 1
    while folder.exists():
        n += 1
        folder = wanted.with_name(f"{wanted.name}-{n}")
    return folder


def pretrain(train_data: Path, output_dir: Path, extra: list[str]) -> None:
    """Runs the pretraining command in a process of its own, printing it first as one would type it."""
    arguments = ["-m", "training.pretrain", "--config", "training/recipes/demo.yaml"]
    arguments += ["--train_data", str(train_data.resolve()), "--output_dir", str(output_dir.resolve()), *extra]
    print("$ " + shlex.join(["python", *arguments]), flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY).returncode
    if code != 0:
        raise UserError(f"pretraining stopped with exit code {code}; its last lines above say why.")


class Stages:
    """Announces each stage and remembers how long it took."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []

    def run(self, title: str, function, *args):
        print(f"\n=== {len(self.rows) + 1}. {title}", flush=True)
        start = time.perf_counter()
        result = function(*args)
        self.rows.append((title, time.perf_counter() - start))
        return result

    def table(self) -> str:
        lines = []
        for title, seconds in [*self.rows, ("total", sum(seconds for _, seconds in self.rows))]:
            minutes, seconds = divmod(round(seconds), 60)
            lines.append(f"  {minutes:2d} min {seconds:2d} s  {title}")
        return "\n".join(lines)


def shown(path: Path) -> str:
    """The path as short as it can be typed from here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Synthesise speech, pretrain a small S-JEPA on it, probe the result.")
    parser.add_argument("--speech", type=Path, help="a folder of your own recordings instead of synthetic ones")
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"))
    parser.add_argument("--minutes", type=float, default=60.0, help="how much speech to synthesise")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic speech")
    args, extra = parser.parse_known_args()
    transformers.logging.set_verbosity_error()
    stages = Stages()

    if args.speech:
        train_data, probe_data, note = locate_speech(args.speech)
    else:
        speech = args.output_dir / f"speech-{args.minutes:g}min-seed{args.seed}"
        minutes = stages.run("Speech, synthesised with eSpeak NG", synthesize, speech, args.minutes, args.seed)
        print(f"{minutes['train']:.0f} minutes to pretrain on and {minutes['test']:.0f} by other voices: {speech}")
        train_data, probe_data = speech / "train", speech / "test"
        note = "All voices below are held out: pretraining never heard them."

    output_dir = free_folder(args.output_dir / "model")
    stages.run("Pretraining", pretrain, train_data, output_dir, extra)
    final = output_dir / "final"
    results = stages.run("Linear probes", run_probes, final, probe_data, note)
    print(report(results))
    probes_file = save_report(results, final)

    print(f"\n=== Where the time went\n{stages.table()}")
    print("\n=== What there is now")
    print(f'  model     AutoModel.from_pretrained("{shown(final)}"), after: import sjepa_hf')
    print(f"  probes    {shown(probes_file)}")
    for n, picture in enumerate(sorted(final.glob("*.png"))):
        print(f"  {'pictures' if n == 0 else '':8}  {shown(picture)}")


if __name__ == "__main__":
    main()
