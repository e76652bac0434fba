"""Row index of a manifest: where its rows begin, found by one scan of the file.

That of a large manifest is kept in the cache of `datasets`: the first process that opens it scans, all others and
later runs map what it has left. Mapped pages are shared, so that no process holds the index for itself.
"""

import codecs
import hashlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
from filelock import FileLock

from sjepa_hf.saving import files_written_aside
from training.common.naming import printable


logger = logging.getLogger(__name__)

STRIDE = 32  # rows between two places in the index: half a byte a row
BLOCK = 1 << 20  # bytes scanned at a time
LONGEST_LINE = 1 << 26  # bytes; whatever has longer ones is no JSONL
KEPT_FROM = 1 << 28  # bytes of a manifest whose index is kept; a smaller one is scanned in a fifth of a second


class RowIndex:
    """
    Args:
        anchors: place in the file and line number, from 1, of every `STRIDE`-th row and of the end `(num_anchors, 2)`.
        size: number of rows.
        kept: the file that holds both, if there is one: pickled, it stands for them.
    """

    def __init__(self, anchors: np.ndarray, size: int, kept: Path | None = None):
        self.size = size
        self._anchors, self._kept = anchors, kept

    @property
    def num_blocks(self) -> int:
        """Number of blocks of `STRIDE` rows."""
        return len(self._anchors) - 1

    def block(self, number: int) -> tuple[int, int, int]:
        """First byte and end of a block in the file, and the number of its first line."""
        (start, line), (end, _) = self._anchors[number : number + 2].tolist()
        return start, end, line

    def __reduce__(self):
        return (_reload, (self._kept,)) if self._kept else (RowIndex, (self._anchors, self.size))


def index_rows(file: BinaryIO, path: str) -> RowIndex:
    """
    The index of an opened manifest, whose absolute path that is; the one that is kept, or by a scan.

    Raises:
        ValueError: for lines so long that it is no JSONL.
    """
    size = os.fstat(file.fileno()).st_size
    if size < KEPT_FROM:
        return _scan(file, path)
    kept, scanned = _place(file, path), None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):  # the others wait
            if found := _load(kept):
                return found
            logger.info("%s: its %.1f GB are searched for rows, once.", printable(path), size / 1e9)
            scanned = _scan(file, path)
            _keep(scanned, kept)
            return _load(kept) or scanned
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        logger.warning("%s: where its rows begin cannot be kept for other processes (%s).", printable(path), error)
        return scanned or _scan(file, path)


def _place(file: BinaryIO, path: str) -> Path:
    """Where the index of this very content is kept: any write to the manifest changes the time in the second part."""
    status = os.fstat(file.fileno())
    state = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {STRIDE}"
    name = "-".join(hashlib.sha256(part).hexdigest()[:32] for part in (os.fsencode(path), state.encode()))
    return Path(datasets.config.HF_DATASETS_CACHE).absolute() / "rows" / f"{name}.npy"


def _keep(index: RowIndex, kept: Path) -> None:
    """Write an index, in place of what is left of earlier states of the manifest."""
    with files_written_aside(kept.parent) as aside:
        np.save(aside / kept.name, np.concatenate([index._anchors, [[index.size, 0]]]))
    for other in kept.parent.glob(kept.name.partition("-")[0] + "-*"):
        if other.stem != kept.stem:
            other.unlink(missing_ok=True)


def _load(kept: Path) -> RowIndex | None:
    """The index in a file; None if there is none."""
    try:
        found = np.asarray(np.load(kept, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return None
    return RowIndex(found[:-1], int(found[-1, 0]), kept)


def _reload(kept: Path) -> RowIndex:
    if found := _load(kept):
        return found
    raise ValueError(f"{printable(kept)}, where the rows of a manifest begin, has gone: start again.")


def _scan(file: BinaryIO, path: str) -> RowIndex:
    anchors = []
    num_rows, num_lines = 0, 0
    position = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(position)
    while block := file.read(BLOCK):
        rest = file.readline(LONGEST_LINE)  # blocks end where lines do
        if len(rest) == LONGEST_LINE:
            raise ValueError(f"{path} has lines of more than {LONGEST_LINE >> 20} MB: it is no JSONL manifest.")
        block += rest
        content = np.frombuffer(block, dtype=np.uint8)
        starts = np.append(0, np.flatnonzero(content == ord("\n")) + 1)
        starts = starts[starts < len(block)]
        ends = np.append(starts[1:], len(block))
        filled = content[starts] > ord(" ")
        for line in np.flatnonzero(~filled):  # blank, or indented
            filled[line] = bool(block[starts[line] : ends[line]].strip())
        rows = np.flatnonzero(filled)
        kept = rows[-num_rows % STRIDE :: STRIDE]
        anchors.append(np.stack([position + starts[kept], num_lines + kept + 1], axis=1))
        num_rows, num_lines, position = num_rows + len(rows), num_lines + len(starts), position + len(block)
    anchors.append(np.array([[position, num_lines + 1]]))
    return RowIndex(np.concatenate(anchors), num_rows)
