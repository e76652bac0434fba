"""Folders of audio: their files, with labels from metadata or, for classes, from the names of the subfolders."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from training.common.naming import printable, several
from training.data.clips import Clip, Sample
from training.data.metadata import FILE_COLUMN, FILE_NAMES, Listed, NoFileColumn, find_metadata, read_metadata
from training.data.waveforms import AUDIO_SUFFIXES, BadAudio


logger = logging.getLogger(__name__)

OTHER_AUDIO = (".m4a", ".aac", ".wma", ".amr", ".webm", ".mp4", ".sph", ".wv", ".ape")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xls", ".xlsx", ".ods")
SPLITS = {  # the words of `datasets` for the parts of a data set
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class Files(Sequence):
    """
    Audio files with their labels, as samples. A row of a metadata file that names no file is a bad clip, a "bad_line".

    Paths are kept as the bytes that the file system has, since not every file name is UTF-8.
    """

    def __init__(self, paths: Sequence[str], labels: dict[str, list] | None = None, problems: Sequence | None = None):
        self.labels = tuple(labels or ())
        columns = {"path": pa.array([os.fsencode(path) for path in paths], pa.large_binary())}
        columns["problem"] = pa.array(problems or [None] * len(paths), pa.string())
        columns |= {f"label {name}": pa.array(values, pa.large_string()) for name, values in (labels or {}).items()}
        self._table = pa.table(columns).combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(*(column[range(len(self))[index]].as_py() for column in self._table.columns))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._table.to_batches(max_chunksize=1000):
            for values in zip(*(column.to_pylist() for column in batch.columns)):
                yield self._sample(*values)

    def _sample(self, path: bytes, problem: str | None, *labels: str | None) -> Sample:
        name = os.fsdecode(path)
        clip = Clip(printable(name), name if problem is None else BadAudio("bad_line", problem))
        return clip, dict(zip(self.labels, labels))


def list_folder(folder: Path, labels: Sequence[str], classes: bool = False) -> Files | None:
    """
    The files that the folder's metadata names, else all audio files below it, sorted; None if there are none.

    Args:
        labels: columns of the metadata to keep beside the files. Where the folder has none, but its subfolders have,
            those are read; else that of the folder above, where this is a part of a data set ("train").
        classes: the name of each file's folder may serve as a single label where there is no metadata at all.

    Raises:
        MissingColumn: if the metadata lacks a label.
        ValueError: if labels are asked for and are absent or ambiguous.
    """
    metadata, no_list = find_metadata(folder), None
    if metadata is not None:
        try:
            rows = read_metadata(metadata, labels)
            if labels:
                _tell_of_parts(folder, metadata, rows)
            return _listed(rows, labels)
        except NoFileColumn as error:
            no_list = error
    paths, nested = _walk(folder)
    if not paths and not (labels and nested):
        return None
    if not labels:
        if no_list is not None:
            logger.warning("%s All audio files of the folder are used.", no_list)
        return Files(paths)
    if no_list is not None:
        raise no_list
    if nested:
        try:
            return _listed(_read_nested(folder, labels, paths, nested), labels)
        except NoFileColumn:
            if paths:
                raise
            return None  # of another kind, beside data that are no files of audio
    above = _read_above(folder, labels)
    return _listed(above, labels) if above else _by_class(folder, labels, paths, classes)


def _listed(rows: Sequence[Listed], labels: Sequence[str]) -> Files:
    paths = [row.where if row.path is None else row.path for row in rows]
    values = {label: [row.labels[number] for row in rows] for number, label in enumerate(labels)}
    return Files(paths, values, [row.problem for row in rows])


def _tell_of_parts(folder: Path, metadata: Path, rows: Sequence[Listed]) -> None:
    """Log which metadata of subfolders is not read, and which parts of a data set the list puts together."""
    folders = {os.path.dirname(row.path) for row in rows if row.path is not None} - {str(folder)}
    unread = sorted(name for name in folders if any(os.path.isfile(os.path.join(name, file)) for file in FILE_NAMES))
    if unread:
        logger.warning("%s is the list: the metadata of %s is not read.", printable(metadata), several(unread))
    parts = _splits(folder, folders)
    if len(parts) > 1:
        said = f"{printable(metadata)} names files in {several(parts.values())}: all are used alike."
        first = next(iter(parts.values()))
        if os.sep not in first:
            said += f" To take one alone, name it: {printable(os.path.join(folder, first))}."
        logger.warning("%s", said)


def _read_nested(folder: Path, labels: Sequence[str], paths: Sequence[str], nested: Sequence[str]) -> list[Listed]:
    """The rows of the metadata of all subfolders. Raises ValueError if they are the parts of a data set."""
    _refuse_splits(folder, nested)
    rows = [row for name in nested for row in read_metadata(find_metadata(name), labels)]
    beneath = tuple(os.path.join(name, "") for name in nested)
    left_out = [path for path in paths if not path.startswith(beneath)]
    if left_out:
        logger.warning(
            "%s: %d audio files lie in folders without metadata and are left out: %s.",
            printable(folder),
            len(left_out),
            several(left_out),
        )
    return rows


def _read_above(folder: Path, labels: Sequence[str]) -> list[Listed]:
    """The rows of a part of a data set, if its name says that it is one and the list of all parts lies above it."""
    whole = Path(os.path.abspath(folder))
    metadata = find_metadata(whole.parent) if _split(whole.name) else None
    if metadata is None:
        return []
    try:
        rows = read_metadata(metadata, labels)
    except NoFileColumn:  # of another kind
        return []
    return [row for row in rows if row.path is not None and row.path.startswith(os.path.join(whole, ""))]


def _by_class(folder: Path, labels: Sequence[str], paths: Sequence[str], classes: bool) -> Files:
    """All audio files with the name of their folder as label. Raises ValueError where that can be no class."""
    tables = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in TABLE_SUFFIXES)
    columns = " and ".join(filter(None, (", ".join((FILE_COLUMN, *labels[:-1])), labels[-1])))
    write = f"{printable(folder)} has no metadata.csv (.jsonl, .parquet) with the columns {columns}"
    if tables:
        write += f" (it has {several(tables)})"
    if not classes or len(labels) > 1:
        raise ValueError(f"{write}: write one, a row per file.")
    misnamed = [name for name in tables if os.path.splitext(name)[0].lower() == "metadata"]
    if misnamed:
        raise ValueError(f"{write}: files of labels must have one of the names {', '.join(FILE_NAMES)}.")
    folders = {os.path.dirname(path) for path in paths}
    _refuse_splits(folder, folders)
    depths = {len(Path(os.path.relpath(name, folder)).parts) for name in folders}
    names = {os.path.basename(name) for name in folders}
    if len(depths) > 1 or len(names) == 1 or all(map(_split, names)):
        found = sorted(os.path.relpath(name, folder) for name in folders)
        found = several("the folder itself" if name == "." else name for name in found)
        raise ValueError(
            f"{write}, nor a subfolder for each {labels[0]}, all equally deep: make one of them. It has audio in"
            f" {found}."
        )
    logger.info("%s: the names of its %d folders of audio are each file's %s.", folder, len(names), labels[0])
    return Files(paths, {labels[0]: [printable(os.path.basename(os.path.dirname(path))) for path in paths]})


def _refuse_splits(folder: Path, folders: Sequence[str]) -> None:
    parts = list(_splits(folder, folders).values())
    if len(parts) > 1:
        raise ValueError(
            f"{printable(folder)} holds the parts {several(parts)} of a data set: name each by itself, as"
            f" {printable(os.path.join(folder, parts[0]))}."
        )


def _splits(folder: Path, folders: Sequence[str]) -> dict[str, str]:
    """The parts of a data set among folders below `folder`, one path for each of train, validation and test."""
    found = {}
    for name in sorted(folders):
        parts = Path(os.path.relpath(name, folder)).parts
        for number, part in enumerate(parts, start=1):
            if _split(part):
                found.setdefault(_split(part), os.path.join(*parts[:number]))
    return dict(sorted(found.items(), key=lambda part: list(SPLITS).index(part[0])))


def _split(name: str) -> str | None:
    """The part of a data set that a folder's name stands for, as `datasets` would take it."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((split for split, known in SPLITS.items() if not set(words).isdisjoint(known)), None)


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """All audio files below a folder, and the folders below it that have metadata; links are followed, once."""
    paths, nested, visited, left_out = [], [], set(), Counter()

    def log_error(error: OSError) -> None:
        logger.warning("%s cannot be listed and is left out: %s.", printable(error.filename), error.strerror)

    for root, folders, files in os.walk(folder, followlinks=True, onerror=log_error):
        folders.sort()
        if os.path.realpath(root) in visited:  # links may go in circles
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if suffix in AUDIO_SUFFIXES:
                paths.append(os.path.join(root, file))
            elif suffix in OTHER_AUDIO:
                left_out[suffix] += 1
        if root != str(folder) and not set(FILE_NAMES).isdisjoint(files):
            nested.append(root)
    if left_out:
        said = ", ".join(f"{count} files in {suffix}" for suffix, count in sorted(left_out.items()))
        logger.warning(
            "%s: %s are left out, since only %s are read here: convert them, as with `ffmpeg -i a.m4a a.flac`.",
            *(printable(folder), said, ", ".join(AUDIO_SUFFIXES)),
        )
    return sorted(paths), sorted(nested)
