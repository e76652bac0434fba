"""Metadata files: the audio files of a folder and their labels, as `datasets`' audiofolder has them.

`metadata.csv`, `metadata.jsonl` or `metadata.parquet`, with the column `file_name` (or one `*_file_name`): a path from
the folder of the file itself. Ambiguous content is refused with a sentence that names the line.
"""

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from sjepa_hf.command import first_line
from training.common.naming import printable, several
from training.data.manifest import check_columns, label_text, local_path, parse_object


FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMN = "file_name"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NoFileColumn(ValueError):
    """A metadata file without the column that names the audio files: perhaps it is of another kind."""


class Listed(NamedTuple):
    """A row: where it stands, the audio file, or None and what is wrong with the row, and the labels."""

    where: str
    path: str | None
    problem: str | None
    labels: tuple[str | None, ...]


def find_metadata(folder: str | Path) -> Path | None:
    """The metadata file of a folder. Raises ValueError if it has several."""
    there = [name for name in FILE_NAMES if os.path.isfile(os.path.join(folder, name))]
    if len(there) > 1:
        raise ValueError(f"{printable(folder)} holds {' and '.join(there)}: keep the one that is right.")
    return Path(folder, there[0]) if there else None


def read_metadata(path: Path, labels: Sequence[str]) -> list[Listed]:
    """
    The rows of a metadata file, in order.

    Args:
        labels: columns to keep, as strings; empty cells of CSV are "", other missing values None.

    Raises:
        NoFileColumn: if no column names the audio files.
        MissingColumn: if a label has no column.
        ValueError: for text that is not UTF-8, ambiguous quotes or commas, values that are no labels, and
            files outside the folder.
    """
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    root = os.path.join(os.path.abspath(path.parent), "")
    rows = [_listed(str(path.parent), root, *row) for row in read(path, labels)]
    if not rows:
        raise ValueError(f"{printable(path)} names no file.")
    return rows


def _listed(folder: str, root: str, where: str, name: object, labels: tuple[str | None, ...]) -> Listed:
    if name is None or name == "":
        return Listed(where, None, f"{where} has no {FILE_COLUMN}", labels)
    if not isinstance(name, str):
        raise ValueError(f"{where}: {FILE_COLUMN} must be a path, got {several([name])}.")
    file = os.path.normpath(local_path(root, name, where))
    if "://" in name or not file.startswith(root):
        raise ValueError(
            f"{where}: {FILE_COLUMN} {several([name])} leads out of the folder: it must be a path from there on"
            " (a JSONL manifest takes any)."
        )
    return Listed(where, os.path.join(folder, file[len(root) :]), None, labels)


def _file_column(path: Path, columns: Sequence[str], labels: Sequence[str]) -> str:
    """The column with the files; an error where that or a label is missing or there twice."""
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise ValueError(f"{printable(path)} has several columns {several(twice)}: names must differ.")
    names = [name for name in columns if name == FILE_COLUMN or name.endswith(f"_{FILE_COLUMN}")]
    if FILE_COLUMN not in names and len(names) != 1:
        others = several(columns) or "none"
        raise NoFileColumn(f"{printable(path)} has no column {FILE_COLUMN} with the audio files; it has {others}.")
    check_columns(printable(path), labels, columns)
    return FILE_COLUMN if FILE_COLUMN in names else names[0]


# CSV


def _csv(path: Path, labels: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    text = decoded(path)
    header = text.partition("\n")[0].strip()
    if FILE_COLUMN in header and "," not in header and re.search(r"[;\t|]", header):
        raise ValueError(
            f"{printable(path)}: columns must be separated by commas, but its first line is {printable(header)}"
        )
    rows = _csv_rows(printable(path), text)
    columns = [name.strip() for name in next(rows, (1, []))[1]]
    file_column = _file_column(path, columns, labels)
    file, kept = columns.index(file_column), [columns.index(label) for label in labels]
    for line, row in rows:
        where = f"{printable(path)}, line {line}"
        if len(row) != len(columns):
            raise ValueError(
                f"{where} has {len(row)} fields, the header {len(columns)} ({several(columns)}): a field with a comma"
                " in it must stand in quotes."
            )
        yield where, row[file], tuple(row[i] for i in kept)


def _csv_rows(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, from 1, and fields of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    first = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            lines = f"line {first}" if reader.line_num <= first else f"lines {first} to {reader.line_num}"
            raise ValueError(
                f"{path}, {lines}: a quotation mark is unmatched ({error}): a field that contains quotes or commas"
                " begins and ends with a quote, and those inside are doubled."
            ) from None
        if row is None:
            return
        if reader.line_num > first and any("," in field and ("\n" in field or "\r" in field) for field in row):
            raise ValueError(
                f"{path}, lines {first} to {reader.line_num} are one row, since a quote opens in one and closes in the"
                " other: if no quotation mark is unmatched, write the row in one line."
            )
        if any(row):
            yield first, row
        first = reader.line_num + 1


def decoded(path: Path) -> str:
    """The text of a UTF-8 file. Raises ValueError with the line that is none."""
    content = path.read_bytes()
    if content.startswith(UTF_16) or b"\0" in content[:4]:
        raise ValueError(f"{printable(path)} is UTF-16 or UTF-32: save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(content) - len(error.object)  # after the mark
        line = content.count(b"\n", 0, start) + 1
        raise ValueError(
            f"{printable(path)}, line {line}: the byte 0x{content[start]:02x} is not UTF-8: save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{printable(path)}, line {line} holds a NUL byte: save the file as UTF-8 text.")
    return text


# JSON lines


def _jsonl(path: Path, labels: Sequence[str]) -> Iterator[tuple[str, object, tuple[str | None, ...]]]:
    file_column = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            where = f"{printable(path)}, line {number}"
            entry = parse_object(line, where)
            if file_column is None:
                file_column = _file_column(path, list(entry), labels)
            check_columns(where, labels, entry)
            yield where, entry.get(file_column), tuple(label_text(entry[label], label, where) for label in labels)


# Parquet


def _parquet(path: Path, labels: Sequence[str]) -> Iterator[tuple[str, object, tuple[str | None, ...]]]:
    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{printable(path)} cannot be read as Parquet: {first_line(error)}.") from None
    file_column = _file_column(path, columns, labels)
    try:
        table = pq.read_table(path, columns=[file_column, *labels])
        table.validate(full=True)
        features = Features.from_arrow_schema(table.schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{printable(path)} cannot be read as Parquet: {first_line(error)}.") from None
    values = [label_column(table[label], features[label], f"{printable(path)}: column '{label}'") for label in labels]
    names = label_column(table[file_column], features[file_column], f"{printable(path)}: column '{file_column}'")
    for number, (name, *row) in enumerate(zip(names, *values), start=1):
        yield f"{printable(path)}, row {number}", name, tuple(row)


def label_column(column: pa.ChunkedArray, feature, what: str) -> list[str | None]:
    """The values of an Arrow column as strings. Raises ValueError unless they are text, whole numbers or classes."""
    check_label_feature(feature, what)
    if isinstance(feature, ClassLabel):
        return [class_name(feature, number) for number in column.to_pylist()]
    return [None if value is None else str(value) for value in column.to_pylist()]


def class_name(feature: ClassLabel, number: int | None) -> str | None:
    """The name of a class; None for a number that has none, such as the -1 of unlabelled test sets."""
    return feature.names[number] if number is not None and 0 <= number < len(feature.names) else None


def check_label_feature(feature, what: str) -> None:
    """Raise ValueError unless a column holds text, whole numbers or classes: a list or a fraction is no label."""
    dtype = getattr(feature, "dtype", None) if not isinstance(feature, (dict, list)) else None
    whole = isinstance(dtype, str) and dtype.startswith(("int", "uint"))
    if not (isinstance(feature, ClassLabel) or whole or dtype in ("string", "large_string", "string_view", "null")):
        raise ValueError(f"{what} holds {feature}, which is not a label: it must be text or whole numbers.")
