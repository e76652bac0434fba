"""Checks, before a command starts work, that its outputs can be written."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def check_writable(directory: Path) -> None:
    """Raise an OSError if a directory could not be made or written to."""
    existing = nearest_existing(directory)
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def nearest_existing(path: Path) -> Path:
    """A path, or of the folders above it the first that is there. Raises OSError for names that none can have."""
    for candidate in (path, *path.absolute().parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            candidate.lstat()  # `exists` answers False to a name that is too long, in Python 3.14
            return candidate
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def check_output_directory(directory: str | Path, option: str) -> None:
    """Raise a ValueError that names `option` if a directory could not be made or written to."""
    try:
        check_writable(Path(directory))
    except OSError as error:
        raise ValueError(f"`{option}` {directory} cannot be written to: {error}.") from None


def check_output_file(path: str | Path, option: str) -> None:
    """
    Raise a ValueError that names `option` if a file could not be written, or a directory lies in its place. A device
    or a pipe will do: [`sjepa_hf.saving.write_text_aside`] writes into them.
    """
    file, mode = Path(path), None
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = file.stat().st_mode
        if mode is not None and stat.S_ISDIR(mode):
            raise ValueError(f"`{option}` {path} is a directory: name a file.")
        if mode is None or stat.S_ISREG(mode):
            check_writable(file.parent)
    except OSError as error:
        raise ValueError(f"`{option}` {path} cannot be written: {error}.") from None
