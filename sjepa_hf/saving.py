"""Saving, as every checkpoint is: the feature extractor beside the weights, and nothing ever left half-written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers import Wav2Vec2FeatureExtractor

from .frames import SAMPLING_RATE


INCOMPLETE, PREVIOUS = ".incomplete", ".previous"  # endings of a directory being written, and of one being replaced


def feature_extractor() -> Wav2Vec2FeatureExtractor:
    """16 kHz waveforms as they are (the front end norms them), zero-padded, with an attention mask."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLING_RATE, padding_value=0.0, do_normalize=False, return_attention_mask=True
    )


@contextmanager
def named_in_errors(path: str | Path) -> Iterator[None]:
    """Have the error of a write that fails name `path`, an OSError: that of a full disk often names no file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        said = getattr(error, "strerror", None) or f"cannot be written ({error})"
        raise OSError(getattr(error, "errno", None), said, str(path)) from error


@contextmanager
def written_aside(directory: str | Path) -> Iterator[Path]:
    """
    Write a directory under another name and rename it when it is whole: `directory` is never there half-written, and
    one that is there already stays until its successor is complete. Who may read it is as the umask says.

    Yields:
        `Path` of an empty directory to write into; it is deleted again if the block raises.
    """
    directory = Path(directory)
    aside = directory.with_name(directory.name + INCOMPLETE)
    previous = directory.with_name(directory.name + PREVIOUS)
    remove(aside)
    aside.mkdir(parents=True)
    try:
        with named_in_errors(directory):
            yield aside
            share_mode_of(aside)
            flush(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
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
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".incomplete-") as hidden:
        aside = Path(hidden) / "files"
        aside.mkdir()  # with the umask's mode, which that of a temporary directory is not
        with named_in_errors(directory):
            yield aside
            share_mode_of(aside)
            flush(aside)
        for file in sorted(aside.iterdir()):
            os.replace(file, directory / file.name)


def write_text_aside(path: str | Path, text: str) -> None:
    """Write a text file aside, then give it its name."""
    path = Path(path)
    with files_written_aside(path.parent) as aside, named_in_errors(path):
        (aside / path.name).write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a directory, a file, or a link (not what it leads to), if it is there. Raises OSError where it cannot."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def share_mode_of(directory: Path) -> None:
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
