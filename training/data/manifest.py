"""Manifests (JSONL) as sequences of rows, which are read from the file when they are asked for, and never copied."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from training.common.naming import printable, several
from training.data.clips import Clip, Sample
from training.data.row_index import STRIDE, index_rows
from training.data.waveforms import BadAudio


LONGEST_CLIP = 1e9  # seconds; far above any clip, and safe to multiply by any sampling rate
AUDIO_KEYS = ("wav_path", "audio_filepath")
CHECKED = 100_000  # rows that are parsed when a manifest is opened


class MissingColumn(ValueError):
    """A source lacks a column that is asked for, `column`; it has `columns`."""

    def __init__(self, message: str, column: str = "", columns: Collection[str] = ()):
        super().__init__(message)
        self.column, self.columns = column, columns


class JsonLines(Sequence):
    """
    Rows of a JSONL manifest, as samples. Relative paths start from the manifest's folder. Blank lines do not count.

    Only the place of every 32nd row is held, in a `RowIndex`: 5 MB for ten million rows, which forked workers share
    and others get. The first 100,000 rows are checked at once. A bad line further down gives a bad clip, a "bad_line",
    whose name is that of the line.

    Args:
        path: the manifest, UTF-8.
        labels: keys to keep beside the audio, as strings: text or whole numbers.

    Raises:
        MissingColumn: if one of the first rows lacks a label.
        ValueError: if there is no row, or one of the first is bad; while reading, if the file has changed.
    """

    def __init__(self, path: str | Path, labels: Sequence[str] = ()):
        self.path = os.path.abspath(path)
        self.labels = tuple(labels)
        self._shown = printable(self.path)
        self._folder = os.path.dirname(self.path)
        with open(self.path, "rb") as file:
            self._stamp = _stamp(file)
            self._index = index_rows(file, self.path)
        self._file = None  # each process opens its own, once it reads
        if not self._index.size:
            raise ValueError(f"{path} names no clip.")
        for number, line in islice(self._lines(), CHECKED):
            self._parse(number, line)

    def __len__(self) -> int:
        return self._index.size

    def __getitem__(self, index: int) -> Sample:
        block, place = divmod(range(self._index.size)[index], STRIDE)
        return self._sample(*self._block(block)[place])

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(number, line) for number, line in self._lines())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        for block in range(self._index.num_blocks):
            yield from self._block(block)

    def _block(self, block: int) -> list[tuple[int, bytes]]:
        """Line numbers, from 1, and content of the rows of a block."""
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)
        start, end, first = self._index.block(block)
        content = os.pread(self._file.fileno(), end - start, start)  # keeps no position: forked processes may share it
        if _stamp(self._file) != self._stamp:
            raise ValueError(f"{self.path} has changed since it was opened: start again to read the new one.")
        return [(number, line) for number, line in enumerate(content.split(b"\n"), first) if line.strip()]

    def _sample(self, number: int, line: bytes) -> Sample:
        try:
            return self._parse(number, line)
        except ValueError as error:
            clip = Clip(f"{self._shown}, line {number}", BadAudio("bad_line", str(error)))
            return clip, dict.fromkeys(self.labels)

    def _parse(self, number: int, line: bytes) -> Sample:
        where = f"{self._shown}, line {number}"
        entry = parse_object(line, where)
        names = [entry[key] for key in AUDIO_KEYS if entry.get(key)]
        if not names or not isinstance(names[0], str):
            raise ValueError(f"{where} has neither {' nor '.join(AUDIO_KEYS)}; it has {several(entry) or 'nothing'}.")
        if names[0] != names[-1]:
            raise ValueError(f"{where}: {' and '.join(AUDIO_KEYS)} differ; give one.")
        path = names[0] if "://" in names[0] else local_path(self._folder, names[0], where)
        clip = Clip(printable(path), path, _seconds(entry, "offset", where) or 0.0, _seconds(entry, "duration", where))
        check_columns(where, self.labels, entry)
        return clip, {label: label_text(entry[label], label, where) for label in self.labels}


def _seconds(entry: dict, key: str, where: str) -> float | None:
    seconds = entry.get(key)
    if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < LONGEST_CLIP):
        raise ValueError(f"{where}: {key} must be seconds, got {several([seconds])}.")
    return None if seconds is None else float(seconds)


def parse_object(line: bytes, where: str) -> dict:
    """
    The object of a JSON line. Raises ValueError, which begins with `where`, for anything else, and for names that the
    object has twice.
    """
    try:
        entry = DECODER.decode(str(line, "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: the byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {several([error])}.") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a JSON object.")
    return entry


def _once(pairs: list[tuple[str, object]]) -> dict:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{several({name for name in names if names.count(name) > 1})} is listed twice")
    return entry


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def label_text(value: object, label: str, where: str) -> str | None:
    """A label as a string. Raises ValueError unless it is text, a whole number or null."""
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {label} must be text, a whole number or null, got {several([value])}.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {label} holds half a character (a lone surrogate): {several([value])}.")
    return value


def check_columns(where: str, wanted: Iterable[str], columns: Collection[str]) -> None:
    """Raise `MissingColumn` for the first wanted column that is not there."""
    missing = [label for label in wanted if label not in columns]
    if missing:
        has = several(columns) or "none"
        raise MissingColumn(f"'{where}' has no column '{missing[0]}'; it has {has}.", missing[0], columns)


def local_path(folder: str, name: str, where: str) -> str:
    """
    The path of a file that a list in `folder` names: relative ones start there, ~ is the home directory, and the
    backslashes of Windows are slashes unless a file has them in its name.
    """
    if not name.isascii():
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise ValueError(f"{where}: no file has the name {several([name])}.") from None
    path = os.path.join(folder, os.path.expanduser(name) if name.startswith("~/") else name)
    if "\\" in name and not os.path.lexists(path):
        return os.path.join(folder, name.replace("\\", "/"))
    return path


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
