"""The demo from end to end: speech -> pretraining -> probes. Under twenty minutes on two CPU cores.

    python -m examples.demo.run                      # synthesises its own speech (or: make demo)
    python -m examples.demo.run --speech my_audio/   # your own (or: make demo SPEECH=my_audio/)

Your own folder may hold `train/` and `test/` (or `validation/`, `dev/`); otherwise all of it is pretrained on. Any
file that soundfile reads will do. Labels in its `metadata.csv` bring the probes of `training/probe.py`: `speaker_id`
that for the speaker, `phones` and `phone_ends` (seconds) that for the phone at each frame.
Options that this script does not know go to `training/pretrain.py`, e.g. `--phase1_steps 100` or `--seed 1`.
"""

import csv
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from examples.demo.synthesize import synthesize
from sjepa_hf.command import CommandParser, UserError, command


REPOSITORY = Path(__file__).resolve().parents[2]
HELD_OUT_FOLDERS = ("test", "validation", "dev")
PROBE_FRAMES = 12_000  # of the phone probe, that a small machine is done with it in two minutes
MIN_RECORDINGS = 4  # of each of two speakers, for the speaker probe


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
    names = ", ".join(f"{name}/" for name in HELD_OUT_FOLDERS)
    return (
        train,
        train,
        (
            f"Pretraining heard these recordings too, without their labels: none of {names} lies beside train/ with a"
            " metadata.csv."
        ),
    )


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ...: the first that does not exist. Earlier runs stay as they are."""
    folder, n = wanted, 1
    while folder.exists():
        n += 1
        folder = wanted.with_name(f"{wanted.name}-{n}")
    return folder


def pretrain(train_data: Path, output_dir: Path, extra: list[str]) -> None:
    """Runs the pretraining command in a process of its own, printing it first as one would type it."""
    arguments = ["training.pretrain", "--config", "training/recipes/demo.yaml"]
    arguments += ["--train_data", str(train_data.resolve()), "--output_dir", str(output_dir.resolve()), *extra]
    code = run_command(arguments)
    if code != 0:
        raise UserError(f"pretraining stopped with exit code {code}; its last lines above say why.")


def run_command(arguments: list[str]) -> int:
    """Runs a module of the repository with its arguments, printing it first as one would type it; its exit status."""
    print("$ " + shlex.join(["python", "-m", *arguments]), flush=True)
    return subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY).returncode


def probes_of(folder: Path) -> list[str]:
    """Options of `training.probe` for the labels in a folder's `metadata.csv`; none where nothing can be probed."""
    table = folder / "metadata.csv"
    if not table.is_file():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = {name for row in rows for name, value in row.items() if value}
    recordings = Counter(row["speaker_id"] for row in rows if row.get("speaker_id"))
    enough = [speaker for speaker, count in recordings.items() if count >= MIN_RECORDINGS]
    options = ["--utterance_labels", "speaker_id"] if len(enough) > 1 else []
    if {"phones", "phone_ends"} <= labels:
        options += ["--phones", "--max_frames", str(PROBE_FRAMES)]
        options += ["--split_by", "speaker_id"] if len(recordings) > 1 else []
    return options


def probe(checkpoint: Path, folder: Path, output_dir: Path) -> bool:
    """Runs the probes that a folder has labels for. False, and said, if it has none or they fail."""
    options = probes_of(folder)
    if not options:
        print(
            f"Nothing to probe for: {folder} has no metadata.csv with two speaker_id of {MIN_RECORDINGS} recordings,"
            " or phones and phone_ends."
        )
        return False
    arguments = ["training.probe", str(checkpoint.resolve()), "--data", str(folder.resolve()), *options]
    arguments += ["--output", str(output_dir.resolve()), "--n_jobs", str(min(os.cpu_count() or 1, 8))]
    code = run_command(arguments)
    if code != 0:
        print(f"The probes stopped with exit code {code}: the last lines above say why. The model is kept.")
    return code == 0


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


def typed(path: Path) -> str:
    """The path as short as it can be typed from here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@command
def main() -> None:
    parser = CommandParser("Synthesise speech, pretrain a small S-JEPA on it, probe the result.")
    parser.add_argument("--speech", type=Path, help="a folder of your own recordings instead of synthetic ones")
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"))
    parser.add_argument("--minutes", type=float, help="how much speech to synthesise (default: 60)")
    parser.add_argument("--speech_seed", type=int, help="seed of the synthetic speech (default: 0)")
    args, extra = parser.parse_known_args()
    stages = Stages()

    if args.speech:
        for name in ("minutes", "speech_seed"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"`{name}` is of synthetic speech, but `speech` names your own: leave one of them out."
                )
        train_data, probe_data, note = locate_speech(args.speech)
    else:
        length, seed = 60.0 if args.minutes is None else args.minutes, args.speech_seed or 0
        speech = args.output_dir / f"speech-{length:g}min-seed{seed}"
        minutes = stages.run("Speech, synthesised with eSpeak NG", synthesize, speech, length, seed)
        print(f"{minutes['train']:.0f} minutes to pretrain on and {minutes['test']:.0f} by other voices: {speech}")
        train_data, probe_data = speech / "train", speech / "test"
        note = "All voices below are held out: pretraining never heard them."

    output_dir = free_folder(args.output_dir / "model")
    stages.run("Pretraining", pretrain, train_data, output_dir, extra)
    final = output_dir / "final"
    print(f"\n{note}")
    probes = output_dir / "probes"
    probed = stages.run("Probes of every layer", probe, final, probe_data, probes)

    print(f"\n=== Where the time went\n{stages.table()}")
    print("\n=== What there is now")
    print(f'  model     AutoModel.from_pretrained("{typed(final)}"), after: import sjepa_hf')
    if probed:
        print(f"  probes    {typed(probes / 'probes.json')}")
    for n, picture in enumerate([*sorted(final.glob("*.png")), *sorted(probes.glob("*.png"))]):
        print(f"  {'pictures' if n == 0 else '':8}  {typed(picture)}")


if __name__ == "__main__":
    main()
