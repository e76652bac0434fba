"""Room for what a command will write, looked for before its work begins: an output that cannot be is told at once."""

import errno
import os
from pathlib import Path


def look_for_room(directory: Path) -> None:
    """Raise an OSError if a directory could not be made or written to."""
    existing = next(
        path for path in (directory, *directory.absolute().parents) if os.path.lexists(path) or path.exists()
    )
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def check_output_directory(directory: str | Path, option: str) -> None:
    """Raise a ValueError that names `option` if a directory could not be made or written to."""
    try:
        look_for_room(Path(directory))
    except OSError as error:
        raise ValueError(f"`{option}` {directory} cannot be written to: {error}.") from None


def check_output_file(path: str | Path, option: str) -> None:
    """
    Raise a ValueError that names `option` if a file could not be written, or a directory lies in its place. A device
    or a pipe will do: [`sjepa_hf.saving.write_text_aside`] writes into them.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ValueError(f"`{option}` {path} is a directory: name a file.")
        if not file.exists() or file.is_file():
            look_for_room(file.parent)
    except OSError as error:
        raise ValueError(f"`{option}` {path} cannot be written: {error}.") from None
