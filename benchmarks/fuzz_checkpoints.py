"""Damage a checkpoint in hundreds of ways: `auto` passes it over, a name is refused in a sentence, nothing hangs.

    python -m benchmarks.fuzz_checkpoints [--damages 400] [--seed 0]

A run on a little noise leaves checkpoints of phase 2. Each damage is done to a copy of the newest one: bits flipped,
files cut, emptied, deleted or swapped, JSON edited, torn or replaced, links and folders in place of files; half of the
edited ones with a files.json that agrees with them, as a hostile hand would leave it. Then, in this process:

- `find_checkpoint(..., "auto")` and `find_checkpoint(..., path)`;
- where that finds nothing wrong, all that a run restores from it;
- `open_pretrained` and `open_config` on the directory.

Any exception but ValueError, and any trial of more than a minute, is a fault. Prints what became of the trials; the
exit status is 1 where there was a fault.
"""

import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import yaml
from transformers import AutoFeatureExtractor, AutoModelForPreTraining

from benchmarks.kill_and_resume import SETTINGS
from sjepa_hf.command import CommandParser, command
from sjepa_hf.opening import open_config, open_pretrained
from training import pretrain
from training.pretraining.arguments import parse_arguments
from training.pretraining.checkpoint_layout import FILES, STATE_DIRECTORY, fingerprint
from training.pretraining.resuming import find_checkpoint


LIMIT = 60.0  # seconds
WRONG_VALUES = (None, -1, 10**30, 1e308, "", "..", "../../etc/passwd", "\u0000", [], {}, [[[]]], True, float("nan"))
WRONG_FILES = (b"", b"\xff\xfe\x00", b"null", b"[]", b"{}", b'"x"', b"1", b"[" * 100_000, b"{" * 9, b'{"a":' * 50_000)


def edited(value: object, draw: random.Random) -> object:
    """A JSON value with one part of it changed, taken out, renamed or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        how = draw.choice(("deeper", "deeper", "gone", "renamed", "wrong"))
        if how == "deeper":
            return value | {name: edited(value[name], draw)}
        left = {key: part for key, part in value.items() if key != name}
        return {"gone": left, "renamed": left | {f"{name}_": value[name]}}.get(
            how, left | {name: draw.choice(WRONG_VALUES)}
        )
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], edited(value[place], draw), *value[place + draw.randint(0, 1) :]]
    return draw.choice(WRONG_VALUES)


def damages(draw: random.Random) -> dict[str, Callable[[Path, Path], None]]:
    """Functions that damage a file of a checkpoint; the second path is another checkpoint of the run."""

    def flip(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice((1, 1, 8))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    def cut(path: Path, other: Path) -> None:
        path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])

    def swap(path: Path, other: Path) -> None:
        files = [file for file in other.rglob("*") if file.is_file()]
        shutil.copy(draw.choice(files), path)

    def edit(path: Path, other: Path) -> None:
        content = json.loads(path.read_text()) if path.suffix == ".json" else {}
        path.write_text(json.dumps(edited(content, draw)))

    def replace(path: Path, other: Path) -> None:
        path.write_bytes(draw.choice(WRONG_FILES))

    def delete(path: Path, other: Path) -> None:
        path.unlink()

    def folder(path: Path, other: Path) -> None:
        path.unlink()
        path.mkdir()

    def link(path: Path, other: Path) -> None:
        path.unlink()
        path.symlink_to(draw.choice((path, Path("/dev/null"), Path("/nowhere"), Path("../.."))))

    return {each.__name__: each for each in (flip, cut, swap, edit, replace, delete, folder, link)}


def agree(checkpoint: Path) -> None:
    """Have files.json say that all files are as they were written."""
    listed = checkpoint / STATE_DIRECTORY / FILES
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path != listed]
    listed.write_text(json.dumps({str(path.relative_to(checkpoint)): fingerprint(path) for path in files}))


def outcome(action: Callable[[], object]) -> tuple[str, object]:
    """How an action ends: "answer", "sentence", or a foreign exception's name; and the answer or the message."""
    try:
        return "answer", action()
    except ValueError as error:
        return "sentence", str(error)
    except BaseException as error:
        traceback.print_exc()
        return type(error).__name__, str(error)


def make_run(folder: Path) -> list[str]:
    """A run with two checkpoints of phase 2, and the command that resumes it."""
    noise = np.random.default_rng(0)
    (folder / "audio").mkdir()
    for number in range(12):
        soundfile.write(folder / "audio" / f"{number}.wav", 0.1 * noise.standard_normal(24_000), 16_000)
    small = {"phase1_steps": 4, "phase2_steps": 8, "save_steps": 4, "save_total_limit": 0, "num_workers": 0}
    small |= {"phase1_warmup_steps": 1, "phase2_warmup_steps": 1, "bucket_buffer_size": 8}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | small))
    command = ["--config", str(folder / "recipe.yaml"), "--train_data", str(folder / "audio")]
    command += ["--output_dir", str(folder / "out")]
    pretrain.main(command)
    shutil.rmtree(folder / "out" / "final")
    return command


def trial(folder: Path, command: list[str], draw: random.Random) -> tuple[str, Counter]:
    """One damage; its description, and how everything ended."""
    out = folder / "out"
    shutil.copytree(folder / "kept", out)
    older, newer = out / "checkpoint-8", out / "checkpoint-12"
    path = draw.choice(sorted(path for path in newer.rglob("*") if path.is_file()))
    name, damage = draw.choice(list(damages(draw).items()))
    damage(path, older)
    agreeing = path.name != FILES and draw.random() < 0.5
    if agreeing:
        agree(newer)
    what = f"{name} {path.relative_to(newer)}" + (", files.json agrees" if agreeing else "")
    found, chosen = outcome(lambda: find_checkpoint(out, "auto"))
    ends = Counter({f"auto: {chosen.name if found == 'answer' else found}": 1})
    ends[f"by name: {outcome(lambda: find_checkpoint(out, str(newer)))[0]}"] += 1
    if chosen == newer:

        def restore() -> None:
            run = pretrain.prepare(parse_arguments([*command, "--resume_from_checkpoint", "auto"]))
            run.lock.release()

        ends[f"restored: {outcome(restore)[0]}"] += 1
    ends[f"model: {outcome(lambda: open_pretrained(AutoModelForPreTraining, newer))[0]}"] += 1
    ends[f"extractor: {outcome(lambda: open_pretrained(AutoFeatureExtractor, newer))[0]}"] += 1
    ends[f"config: {outcome(lambda: open_config(newer))[0]}"] += 1
    shutil.rmtree(out)
    return what, ends


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--damages", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    draw, total, slow, foreign = random.Random(arguments.seed), Counter(), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = make_run(folder)
        (folder / "out").rename(folder / "kept")
        logging.disable(logging.CRITICAL)
        for number in range(arguments.damages):
            began = time.monotonic()
            what, ends = trial(folder, command, draw)
            total += ends
            slow += [what] if time.monotonic() - began > LIMIT else []
            if any(end.split(": ")[1][0].isupper() for end in ends):  # an exception's name
                foreign.append(what)
                print(f"{number}: {what}: {dict(ends)}", flush=True)
    for end, count in sorted(total.items()):
        print(f"{count:5d}  {end}")
    print(f"{arguments.damages} damages, {len(foreign)} foreign exceptions, {len(slow)} above {LIMIT:.0f} s")
    sys.exit(1 if foreign or slow else 0)


if __name__ == "__main__":
    main()
