"""Saving, as every checkpoint is: nothing is ever left half-written."""

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError


try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    flock = None


ASIDE = ".incomplete-"  # prefix of a directory being written
PREVIOUS = ".previous"  # suffix of a directory being replaced


@contextmanager
def named_in_errors(path: str | Path) -> Iterator[None]:
    """Have the error of a write that fails name `path`, an OSError: that of a full disk often names no file."""
    cannot = "cannot be written ({})"
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or cannot.format(error), str(path)) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, cannot.format(error), str(path)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch.save's
            raise
        raise OSError(errno.EIO, cannot.format("torch.save broke off: is the disk full?"), str(path)) from error


@contextmanager
def written_aside(directory: str | Path) -> Iterator[Path]:
    """
    Write a directory under another name and rename it when it is whole: `directory` is never there half-written, and
    one that is there already stays until its successor is complete. Who may read it is as the umask says. Of two that
    write the same one at once, each writes its own, and the later stays. A link to a directory stays a link.

    Yields:
        `Path` of an empty directory to write into; it is deleted again if the block raises.
    """
    directory = Path(os.path.realpath(directory))
    previous = directory.with_name(directory.name + PREVIOUS)
    with _aside(directory.parent) as aside:
        with named_in_errors(directory):
            yield aside
            apply_directory_mode(aside)
            flush(aside)
        with _locked(directory.parent):
            try:
                if os.path.lexists(directory):
                    remove(previous)
                    os.replace(directory, previous)
                os.replace(aside, directory)
            except BaseException:
                if not os.path.lexists(directory) and os.path.lexists(previous):
                    os.replace(previous, directory)
                raise
            with suppress(OSError):
                remove(previous)


@contextmanager
def files_written_aside(directory: str | Path) -> Iterator[Path]:
    """
    Write files aside and move them into `directory` once all are whole; what else lies there stays. Who may read them
    is as the umask says.

    Yields:
        `Path` of an empty directory to write into; it is gone if the block raises.
    """
    directory = Path(directory)
    with _aside(directory) as aside:
        with named_in_errors(directory):
            yield aside
            apply_directory_mode(aside)
            flush(aside)
        for file in sorted(aside.iterdir()):
            _put(file, directory / file.name)


def _put(file: Path, place: Path) -> None:
    """Move a file to its place, which is named if it cannot be."""
    try:
        os.replace(file, place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from error


def is_written_into(place: Path) -> bool:
    """Whether a device or a pipe lies at a place, such as /dev/null, which no file may take."""
    return place.exists() and not place.is_file() and not place.is_dir()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others waiting who lock the same directory, where the file system has locks."""
    lock = _lock(directory)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def _aside(parent: Path) -> Iterator[Path]:
    """
    An empty directory two levels below `parent`, gone at the end; its mode is the umask's, which that of a temporary
    directory is not. What killed processes of this machine have left there goes first. A `parent` that was made for it
    is gone, too, if the block raises.
    """
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    _clear_once(parent.absolute())
    hidden, lock = _locked_directory(parent)
    whole = False
    try:
        aside = hidden / "files"
        aside.mkdir()
        yield aside
        whole = True
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if made and not whole:
            with suppress(OSError):  # others may have written there meanwhile
                parent.rmdir()


def _locked_directory(parent: Path) -> tuple[Path, int | None]:
    """A new directory, and the descriptor that locks it until it is closed; None where nobody can clear it either."""
    while True:
        hidden = Path(tempfile.mkdtemp(dir=parent, prefix=f"{ASIDE}{socket.gethostname()}-"))
        lock = _lock(hidden)
        if hidden.exists():  # else another process has cleared it before it was locked
            return hidden, lock
        if lock is not None:
            os.close(lock)


def _lock(directory: Path, wait: bool = True) -> int | None:
    """Descriptor that locks a directory; None if it is locked already, is gone, or there are no locks here."""
    if flock is None:
        return None
    try:
        lock = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    try:
        flock(lock, LOCK_EX if wait else LOCK_EX | LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


@cache
def _clear_once(parent: Path) -> None:
    """[`clear_asides`] once a process: looking through a directory of many files takes time."""
    clear_asides(parent, of_all=False)


def clear_asides(parent: str | Path, of_all: bool) -> None:
    """
    Delete directories that were being written below `parent` by processes that are dead, as their locks tell.

    Args:
        of_all: those of other machines, too, whose locks may not be seen here: only if none of them may be writing.
    """
    ours = f"{ASIDE}{socket.gethostname()}-"
    for path in Path(parent).glob(f"{ASIDE}*"):
        if not path.name.startswith(ours):
            if of_all:
                shutil.rmtree(path, ignore_errors=True)
        elif (lock := _lock(path, wait=False)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def visible_in(directory: Path) -> Iterator[Path]:
    """What lies in a directory, but for what is being written, or was by a process that was killed."""
    return (path for path in directory.iterdir() if not path.name.startswith(ASIDE))


def write_text_aside(path: str | Path, text: str) -> None:
    """
    Write a text file aside, then give it its name; a device or pipe is written into as it is. What UTF-8 does not
    have, the bytes of a file name that are none, becomes escapes.
    """
    path = Path(path)
    if is_written_into(path):
        with named_in_errors(path):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with files_written_aside(path.parent) as aside, named_in_errors(path):
        (aside / path.name).write_text(text, encoding="utf-8", errors="backslashreplace")


def remove(path: Path) -> None:
    """Delete a directory, a file, or a link (not what it leads to), if it is there. Raises OSError where it cannot."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def apply_directory_mode(directory: Path) -> None:
    """Let whoever may read and write a new directory do so with all below it: safetensors makes files of mode 600."""
    allowed = directory.stat().st_mode & 0o777
    for path in directory.rglob("*"):
        if not path.is_symlink():
            with suppress(PermissionError):  # file systems without modes
                path.chmod(path.stat().st_mode | (allowed if path.is_dir() else allowed & 0o666))


def flush(directory: Path) -> None:
    """Have everything below a directory on disk before it gets its name: a power cut then leaves no torn file."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            writable = os.access(path, os.W_OK)  # Windows flushes none that is open for reading alone
            with path.open("r+b" if writable else "rb") as file:
                os.fsync(file.fileno())
