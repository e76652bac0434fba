"""Row index of a manifest: where its rows begin, found by one scan of the file."""

import codecs
from typing import BinaryIO

import numpy as np


STRIDE = 32  # rows between two places in the index: half a byte a row
BLOCK = 1 << 20  # bytes scanned at a time
LONGEST_LINE = 1 << 26  # bytes; whatever has longer ones is no JSONL


class RowIndex:
    """
    Args:
        anchors: place in the file and line number, from 1, of every `STRIDE`-th row and of the end `(num_anchors, 2)`.
        size: number of rows.
    """

    def __init__(self, anchors: np.ndarray, size: int):
        self.size = size
        self._anchors = anchors

    @property
    def num_blocks(self) -> int:
        """Number of blocks of `STRIDE` rows."""
        return len(self._anchors) - 1

    def block(self, number: int) -> tuple[int, int, int]:
        """First byte and end of a block in the file, and the number of its first line."""
        (start, line), (end, _) = self._anchors[number : number + 2].tolist()
        return start, end, line


def index_rows(file: BinaryIO, path: str) -> RowIndex:
    """
    The index of a manifest that is opened at its beginning; `path` is how to call it in an error.

    Raises:
        ValueError: for lines so long that it is no JSONL.
    """
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
