"""Sources of audio, with or without labels: folders, manifests, Parquet and data sets on the Hub, opened alike."""

import errno
import glob
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetsError

from sjepa_hf.command import first_line
from training.common.naming import printable, several
from training.data.archives import TarArchives
from training.data.clips import Clip, Sample
from training.data.folders import list_folder
from training.data.identity import identify, matches
from training.data.manifest import JsonLines, MissingColumn, check_columns
from training.data.metadata import FILE_NAMES, check_label_feature, class_name
from training.data.waveforms import AUDIO_SUFFIXES


logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv")
LOCAL_SUFFIXES = (*AUDIO_SUFFIXES, ".jsonl", ".json", ".parquet", ".tar", *TABLES)
PACKED_NAMES = ("name", "source")  # columns of a packed corpus, beside `seconds`: what recording a clip is of
ENCODED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


@dataclass(frozen=True, eq=False)
class Source:
    """
    An opened source, whose rows are samples; or dicts of the audio, in `column`, and of the labels. `spec` is what it
    was opened by, `packed` the names of its clips where it is a packed corpus.
    """

    name: str
    dataset: Dataset | IterableDataset | TarArchives | Sequence[Sample]
    column: str | None = None
    spec: str = ""
    packed: Dataset | None = None

    @property
    def size(self) -> int | None:
        """Number of clips; None of a stream, whose clips nobody has counted."""
        return len(self.dataset) if hasattr(self.dataset, "__len__") else None

    @cached_property
    def identity(self) -> str:
        """As [`identify`] tells it, when it is asked for the first time."""
        return identify(self.spec, self.dataset)

    def sample(self, row: Sample | dict, number: int | str) -> Sample:
        """A row, which has that number, as a clip with its labels."""
        if self.column is None:
            return row
        audio, labels = row[self.column], {name: row[name] for name in row if name != self.column}
        path, content = (audio.get("path"), audio.get("bytes")) if isinstance(audio, dict) else (None, audio)
        name = path or (content if isinstance(content, str) else f"{self.name}[{number}]")
        return Clip(printable(name), (path or "") if content is None else content), labels

    def clip(self, row: Sample | dict, number: int | str) -> Clip:
        """The clip of a row."""
        return self.sample(row, number)[0]

    def samples(self) -> Iterator[Sample]:
        """All rows in their order."""
        return (self.sample(row, number) for number, row in enumerate(self.dataset))

    def packed_names(self) -> Iterator[tuple[str, str] | None]:
        """Of each row of a packed corpus, the recording that its clip was taken from; None without end for others."""
        if self.packed is None:
            return repeat(None)
        return (tuple(row[name] for name in PACKED_NAMES) for row in self.packed)


def open_source(
    spec: str,
    *,
    streaming: bool = False,
    audio_column: str | None = None,
    labels: Sequence[str] = (),
    classes: bool = False,
) -> Source:
    """Open `PATH_OR_HUB_NAME[::config[::split]]` (see `DataArguments.train_data`); no audio is decoded.

    Args:
        spec: the source.
        streaming: read Hub data sets and Parquet in place.
        audio_column: column with the audio in Hub data sets and Parquet.
        labels: columns to keep beside the audio, as strings: text, whole numbers or classes. In a folder they stand in
            its metadata.
        classes: in a folder without metadata a single label may be the name of each file's folder.

    Raises:
        MissingColumn: if it has no such label.
        ValueError: if it does not exist, has no audio, no such config or split, or ambiguous labels.
    """
    name, *rest = spec.split("::")
    if len(rest) > 2 or not name:
        raise ValueError(f"'{spec}' is not of the form PATH_OR_HUB_NAME[::config[::split]].")
    labels = tuple(dict.fromkeys(labels))
    config, split = ((rest[0] if rest else "") or None), ((rest[1] if len(rest) == 2 else "") or "train")
    path = Path(os.path.expanduser(name))
    is_glob = glob.has_magic(name) and not path.exists()
    load = partial(_load, spec, audio_column, labels, streaming=streaming)
    if not (is_glob or path.exists()):
        if path.is_absolute() or name[0] in ".~" or name.count("/") > 1 or path.suffix in LOCAL_SUFFIXES:
            raise ValueError(f"'{printable(spec)}': there is no file or folder {printable(path)}.")
        return load(name, config, split=split)
    files = list_folder(path, labels, classes) if path.is_dir() else None
    found = matches(path) if is_glob else [str(path)]
    if path.is_dir() and files is None and not (found := sorted(map(str, path.rglob("*.tar")))):
        _check_has_parquet(spec, path)
        if config:
            raise ValueError(f"'{spec}': a folder of Parquet has no configs; name the subfolder.")
        source = load("parquet", data_dir=glob.escape(str(path)), split=split)
        _tell_of_other_splits(path, split, named=len(rest) == 2)
        return source
    if config or split != "train":
        raise ValueError(f"'{spec}': files and folders of audio have no configs or splits; name the part itself.")
    if files is not None:
        _tell_of_unread(path, "audio files", ("parquet", "tar"))
        return Source(printable(name), files, spec=spec)
    if found and all(file.endswith(".parquet") for file in found):
        return load("parquet", data_files=list(map(glob.escape, found)), split="train")
    if found and all(file.endswith(".tar") for file in found):
        if path.is_dir():
            _tell_of_unread(path, "tar archives", ("parquet",))
        return _load_archives(spec, audio_column, labels, found, streaming)
    if is_glob:
        raise ValueError(
            f"'{spec}': the pattern matches {len(found)} files; it must match Parquet files or tar archives only."
        )
    _check_is_manifest(spec, path)
    return Source(printable(name), JsonLines(path, labels), spec=spec)


def _tell_of_unread(folder: Path, read: str, kinds: Sequence[str]) -> None:
    """Log which files of other kinds lie in a folder, or in its subfolders, of which only one kind is read."""
    found = {file for kind in kinds for below in ("", "*/") for file in folder.glob(f"{below}*.{kind}")}
    _tell(folder, f"a folder of {read}", (str(file) for file in found if file.name not in FILE_NAMES))


def _tell_of_other_splits(folder: Path, split: str, named: bool) -> None:
    """Log which Parquet of a folder is not read: not the other splits' where the one that is read was named."""
    splits = load_dataset_builder("parquet", data_dir=glob.escape(str(folder))).config.data_files
    read = {os.path.realpath(file) for name in splits if named or name == split for file in splits[name]}
    unread = (str(file) for file in folder.rglob("*.parquet") if os.path.realpath(file) not in read)
    _tell(folder, f"the split '{split}', by the names of its Parquet files", unread)


def _tell(folder: Path, read: str, unread: Iterable[str]) -> None:
    """Log what of a folder is not read."""
    if unread := sorted(unread):
        logger.warning(
            "%s is read as %s: not read is %s. To take that too, name it as a source of its own.",
            printable(folder),
            read,
            several(unread),
        )


def _check_has_parquet(spec: str, folder: Path) -> None:
    if next(folder.rglob("*.parquet"), None) is None:
        kinds = ", ".join(AUDIO_SUFFIXES)
        raise ValueError(f"'{printable(spec)}': the folder has no audio ({kinds}), no Parquet and no tar archives.")


def _check_is_manifest(spec: str, path: Path) -> None:
    """Raise a ValueError for a file that is none, by its name or, where that does not say, by its beginning."""
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        raise ValueError(f"'{spec}' is a single audio file: name its folder, or a manifest.")
    if suffix in TABLES:
        raise ValueError(f"'{spec}' is a table: name the folder of the audio, with the table in it as metadata.csv.")
    if suffix not in LOCAL_SUFFIXES and not _begins_as_manifest(path):
        raise ValueError(
            f"'{printable(spec)}' is not a file that can be read: give {', '.join(LOCAL_SUFFIXES)}, or a JSONL"
            " manifest of any other name."
        )


def _begins_as_manifest(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"")


def _load(spec: str, audio_column: str | None, labels: Sequence[str], *what: str | None, **options) -> Source:
    try:
        dataset = load_dataset(*what, **options)
    # RuntimeError: it is a script. TarError: of archives on the Hub.
    except (ValueError, OSError, DatasetsError, RuntimeError, pa.ArrowException, tarfile.TarError) as error:
        raise ValueError(f"'{spec}'{_why_not_loaded(error, what[0])}") from error
    if dataset.features is None:  # a stream whose files must be looked into
        dataset = dataset._resolve_features()
    column = _audio_column(spec, dataset.features, audio_column)
    feature = dataset.features[column]
    encoded = isinstance(feature, dict) and {"bytes", "path"} & feature.keys()
    if not (isinstance(feature, Audio) or encoded or getattr(feature, "dtype", "").endswith(("string", "binary"))):
        raise ValueError(f"'{spec}': column '{column}' holds {feature}, not audio files or their paths.")
    check_columns(spec, labels, dataset.features)
    if column in labels:
        raise ValueError(f"'{spec}': column '{column}' holds the audio, it cannot be a label too.")
    for label in labels:
        check_label_feature(dataset.features[label], f"'{spec}': column '{label}'")
    if isinstance(dataset, Dataset):  # labels on their own: a cast of the table would copy the audio too
        audio = dataset.select_columns([column])
        if isinstance(feature, Audio):
            audio = audio.cast_column(column, Audio(decode=False))
        if labels:
            audio = concatenate_datasets([audio, _as_strings(dataset.select_columns(list(labels)), labels)], axis=1)
        packed = {*PACKED_NAMES, "seconds"} <= dataset.features.keys()
        return Source(
            printable(spec), audio, column, spec, dataset.select_columns(list(PACKED_NAMES)) if packed else None
        )
    dataset = _as_strings(dataset.select_columns([column, *labels]), labels)
    dataset = _undecoded(dataset, column) if isinstance(feature, Audio) else dataset
    return Source(printable(spec), dataset, column, spec)


def _why_not_loaded(error: Exception, kind: str) -> str:
    cause = error.__cause__ or error
    if isinstance(error.__cause__, ImportError):  # folders and WebDataset on the Hub, copied to Arrow
        return f" is not Parquet: set streaming ({cause})"
    if isinstance(cause, OSError) and (reason := _why_not_copied(cause)):
        return (
            f": {datasets.config.HF_DATASETS_CACHE}, where an Arrow copy is made, {reason}: set streaming, or"
            " HF_DATASETS_CACHE to another folder."
        )
    where = "as Parquet" if kind == "parquet" else "as a local path or on the Hub"
    return f" cannot be opened {where}: {first_line(cause)}"


def _why_not_copied(error: OSError) -> str | None:
    """What is wrong with the folder of Arrow copies, if an error is of that."""
    if error.errno == errno.ENOSPC:
        return "is on a disk that is full"
    cache, place = Path(datasets.config.HF_DATASETS_CACHE), Path(error.filename or "")
    if error.errno in (errno.EROFS, errno.EACCES) and (place in cache.parents or place.is_relative_to(cache)):
        return "cannot be written to"
    return None


def _load_archives(
    spec: str, audio_column: str | None, labels: Sequence[str], files: list[str], streaming: bool
) -> Source:
    """Tar archives in the WebDataset format, each a shard."""
    if not streaming:
        raise ValueError(
            f"'{spec}' holds tar archives, which can only be read from front to back: set streaming, or, for training"
            " with labels, turn them into Parquet (python -m training.pack --streaming true --columns ...)."
        )
    try:
        return Source(printable(spec), TarArchives(files, audio_column, labels), spec=spec)
    except MissingColumn:
        raise
    except ValueError as error:
        raise ValueError(f"'{spec}': {error}.") from None


def _as_strings(dataset: Dataset | IterableDataset, labels: Sequence[str]) -> Dataset | IterableDataset:
    """Labels as strings, classes by their names."""
    for label in labels:
        if isinstance(dataset.features[label], ClassLabel):
            dataset = _named(dataset, label)
        elif dataset.features[label] != Value("string"):
            dataset = dataset.cast_column(label, Value("string"))
    return dataset


def _named(dataset: Dataset | IterableDataset, label: str) -> Dataset | IterableDataset:
    """Class numbers become class names."""
    feature, features = dataset.features[label], dataset.features.copy()
    features[label] = Value("string")

    def name(number: int | None) -> dict:
        return {label: class_name(feature, number)}

    return dataset.map(name, input_columns=label, features=features)


def _undecoded(dataset: IterableDataset, column: str) -> IterableDataset:
    """Give an `Audio` column as bytes or path; in some streams even `Audio(decode=False)` asks for torchcodec."""
    encoded = dataset.cast_column(column, ENCODED_AUDIO)
    if dataset._ex_iterable.iter_arrow:
        return encoded
    try:
        next(iter(encoded.take(1)), None)
    except (AttributeError, TypeError):  # streamed folders give bare paths
        return dataset.cast_column(column, Value("string"))
    return encoded


def _audio_column(spec: str, features: Features, wanted: str | None) -> str:
    columns = ", ".join(features)
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"'{spec}' has no column '{wanted}' (audio_column); it has {columns}.")
        return wanted
    candidates = [name for name, feature in features.items() if isinstance(feature, Audio)]
    if "audio" in features or len(candidates) == 1:
        return "audio" if "audio" in features else candidates[0]
    found = "several audio columns" if candidates else "no audio column"
    raise ValueError(f"'{spec}' has {found} among {columns}: name it with audio_column.")
