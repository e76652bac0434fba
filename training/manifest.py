"""JSONL manifests as sequences of rows: found by one scan of the file, read from it when asked for, never copied."""

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from training.audio import BadAudio


STRIDE = 32  # rows between two places that are kept: 5 MB for ten million rows
BLOCK = 1 << 20  # bytes scanned at a time
LONGEST_LINE = 1 << 26  # bytes; whatever has longer ones is no JSONL
LONGEST_CLIP = 1e9  # seconds; far above any clip, and safe to multiply by any sampling rate
CHECKED = 100_000  # rows that are parsed when a manifest is opened


class JsonLines(Sequence):
    """
    Rows of a JSONL manifest: dicts of `path` (str), `offset` and `duration` (seconds, or None), and of the labels
    (str, or None). Relative paths start from the manifest's folder. Blank lines do not count.

    Only the place of every 32nd row is held in memory, which is all that workers get. The first 100,000 rows are
    checked at once. A bad line further down gives a row that names the line as its `path` and whose `bad_line` is
    a `BadAudio`: one more clip that cannot be used.

    Args:
        path: the manifest, UTF-8.
        labels: keys to keep beside the audio, all as strings.

    Raises:
        ValueError: if there is no row, or one of the first is bad; while reading, if the file has changed.
    """

    def __init__(self, path: str | Path, labels: Sequence[str] = ()):
        self.path = os.path.abspath(path)
        self.labels = tuple(labels)
        with open(self.path, "rb") as file:
            self._stamp = _stamp(file)
            self._anchors, self._size = _scan(file, self.path)
        self._file = None  # each process opens its own, once it reads
        if not self._size:
            raise ValueError(f"{path} names no clip.")
        for number, line in islice(self._lines(), CHECKED):
            self._parse(number, line)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict:
        block, place = divmod(range(self._size)[index], STRIDE)
        return self._row(*self._block(block)[place])

    def __iter__(self) -> Iterator[dict]:
        return (self._row(number, line) for number, line in self._lines())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        for block in range(len(self._anchors) - 1):
            yield from self._block(block)

    def _block(self, block: int) -> list[tuple[int, bytes]]:
        """Line numbers, from 1, and content of the rows between two anchors."""
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)
        (start, first), (end, _) = self._anchors[block : block + 2].tolist()
        content = os.pread(self._file.fileno(), end - start, start)  # keeps no position: forked processes may share it
        if _stamp(self._file) != self._stamp:
            raise ValueError(f"{self.path} has changed since it was opened: start again to read the new one.")
        return [(number, line) for number, line in enumerate(content.split(b"\n"), first) if line.strip()]

    def _row(self, number: int, line: bytes) -> dict:
        try:
            return self._parse(number, line)
        except ValueError as error:
            nothing = dict.fromkeys(("offset", "duration", *self.labels))
            return {"path": f"{self.path}, line {number}", **nothing, "bad_line": BadAudio("bad_line", str(error))}

    def _parse(self, number: int, line: bytes) -> dict:
        where = f"{self.path}, line {number}"
        try:
            entry = json.loads(str(line, "utf-8"))
        except ValueError as error:  # of the text or of its encoding
            raise ValueError(f"{where} is not valid JSON: {error}.") from None
        audio = (entry.get("wav_path") or entry.get("audio_filepath")) if isinstance(entry, dict) else None
        if not isinstance(audio, str):
            raise ValueError(f"{where} has neither wav_path nor audio_filepath.")
        row = {"path": audio if "://" in audio else os.path.join(os.path.dirname(self.path), audio)}
        for key in ("offset", "duration"):
            seconds = entry.get(key)
            if seconds is not None and not (isinstance(seconds, (int, float)) and 0 <= seconds < LONGEST_CLIP):
                raise ValueError(f"{where}: {key} must be seconds, got {seconds!r}.")
            row[key] = None if seconds is None else float(seconds)
        for label in self.labels:
            if label not in entry:
                raise ValueError(f"'{where}' has no column '{label}'; it has {', '.join(entry)}.")
            row[label] = None if entry[label] is None else str(entry[label])
        return row


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _scan(file: BinaryIO, path: str) -> tuple[np.ndarray, int]:
    """Place in the file and line number, from 1, of every `STRIDE`-th row and of the end; and the number of rows."""
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
    return np.concatenate(anchors), num_rows
