"""Output directory of a run: kept for it alone, its checkpoints by their names, and what a killed run has left."""

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sjepa_hf.saving import PREVIOUS, clear_asides, remove
from sjepa_hf.writable import check_writable
from training.common.signals import INTERRUPTED


logger = logging.getLogger(__name__)

FINAL = "final"  # directory of a run's result
ABANDONED = ".abandoned"  # ending of checkpoints that a run has gone back behind


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.split("-")[1])


def lock_of(output_dir: Path) -> FileLock:
    """What keeps other runs out of a directory, not taken yet; the system frees that of a run that is killed."""
    return FileLock(output_dir / ".lock")


def claim(output_dir: Path, lock: FileLock, dry_run: bool = False) -> None:
    """
    Make an output directory and lock it for this run alone; clear away what a killed run has left half-written, and
    the word of a signal that has ended another start. `dry_run` only looks whether there is room for it.

    Raises:
        ValueError: if it cannot be written to, or another run holds it.
    """
    try:
        if dry_run:
            check_writable(output_dir)
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (output_dir / INTERRUPTED).unlink(missing_ok=True)
    except Timeout:
        raise ValueError(f"`output_dir` {output_dir} is in use by a run that is still active.") from None
    except OSError as error:
        raise ValueError(f"`output_dir` {output_dir} cannot be written to: {error}.") from None
    clear_left_overs(output_dir)


@contextmanager
def released_if_refused(lock: FileLock) -> Iterator[None]:
    """Release a lock if the block, which makes a run ready, raises: its run will not be there to do so."""
    try:
        yield
    except BaseException:
        lock.release()
        raise


def clear_left_overs(output_dir: Path) -> None:
    """
    Of a run that was killed while it wrote: a checkpoint that was about to be replaced gets its name back, and what is
    half-written goes.
    """
    clear_asides(output_dir, of_all=True)
    for path in sorted(output_dir.iterdir()):
        name, ending = path.stem, path.suffix
        if ending != PREVIOUS or not re.fullmatch(rf"checkpoint-\d+|{FINAL}", name):
            continue
        try:
            if not (output_dir / name).exists():
                path.rename(output_dir / name)
            else:
                remove(path)
        except OSError as error:
            logger.warning("%s, left by a run that was killed, cannot be deleted: %s.", path, error)


def set_aside(beyond: Iterable[Path], step: int) -> None:
    """
    Rename checkpoints and results beyond the `step` from which a run goes on to `NAME.abandoned`: it would otherwise
    be resumed from them, and have its own deleted as the older ones.

    Raises:
        ValueError: if one cannot be renamed.
    """
    for path in beyond:
        aside = path.with_name(path.name + ABANDONED)
        try:
            remove(aside)
            path.rename(aside)
        except OSError as error:
            raise ValueError(
                f"{path} lies beyond step {step}, from which this run goes on, and cannot be renamed ({error}):"
                " move it away."
            ) from None
        logger.warning("%s lies beyond step %d, from which this run goes on: it is now %s.", path, step, aside)


def prune_checkpoints(output_dir: Path, keep: int, best: Path | None = None) -> None:
    """
    Delete all but the newest `keep` checkpoints; 0 keeps all. The `best` one stays, as one of so many, beside the
    newest. What cannot be deleted stays for the next time.
    """
    found = checkpoints(output_dir)
    others = [path for path in found[:-1] if best is None or path.name != best.name]
    for path in others[: max(0, len(found) - keep)] if keep > 0 else []:
        try:
            remove(path)
        except OSError as error:
            logger.warning("%s cannot be deleted (%s): the next save tries again.", path, error)


def room_in(directory: Path) -> str:
    """How much space there is, in words; the storage itself may be gone."""
    try:
        return f"{shutil.disk_usage(directory).free / 2**20:.0f} MiB free there"
    except OSError as error:
        return f"its folder cannot be looked at: {error.strerror}"
