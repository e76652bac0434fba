"""Sources of audio, with or without labels: folders, manifests, Parquet and data sets on the Hub, opened alike."""

import csv
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from datasets import Audio, ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetsError

from training.archives import TarArchives
from training.audio import Source
from training.manifest import JsonLines


logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
LOCAL_SUFFIXES = (*AUDIO_SUFFIXES, ".jsonl", ".json", ".parquet", ".tar", ".csv", ".tsv")
CLIP_FEATURES = {"path": Value("large_string"), "offset": Value("float64"), "duration": Value("float64")}
ENCODED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


def open_source(
    spec: str, *, streaming: bool = False, audio_column: str | None = None, labels: Sequence[str] = ()
) -> Source:
    """Open `PATH_OR_HUB_NAME[::config[::split]]` (see `DataArguments.train_data`); no audio is decoded.

    Args:
        spec: the source.
        streaming: read Hub data sets and Parquet in place.
        audio_column: column with the audio in Hub data sets and Parquet.
        labels: columns to keep beside the audio, all as strings. In a folder they stand in metadata.csv; without that,
            a single label is the name of each file's folder.

    Raises:
        ValueError: if it does not exist, has no audio, or has no such config, split or column.
    """
    name, *rest = spec.split("::")
    if len(rest) > 2 or not name:
        raise ValueError(f"'{spec}' is not of the form PATH_OR_HUB_NAME[::config[::split]].")
    config, split = ((rest[0] if rest else "") or None), ((rest[1] if len(rest) == 2 else "") or "train")
    path = Path(name).expanduser()
    is_glob = any(char in name for char in "*?[")
    on_hub = not (is_glob or path.exists())
    if on_hub and (path.is_absolute() or name[0] in ".~" or name.count("/") > 1 or path.suffix in LOCAL_SUFFIXES):
        raise ValueError(f"'{spec}': there is no file or folder {path}.")
    if on_hub:
        return _load(spec, audio_column, labels, name, config, split=split, streaming=streaming)

    rows = _list_folder(path, labels) if path.is_dir() else {"path": []}
    if path.is_dir() and not rows["path"]:
        archives = sorted(map(str, path.rglob("*.tar")))
        if archives:
            return _load_archives(spec, audio_column, labels, archives, streaming)
        if next(path.rglob("*.parquet"), None) is None:
            kinds = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"'{spec}': the folder has no audio ({kinds}), no Parquet and no tar archives.")
        return _load(spec, audio_column, labels, "parquet", data_dir=str(path), split=split, streaming=streaming)
    if config or split != "train":
        raise ValueError(f"'{spec}': files and folders of audio have no configs or splits; name the part itself.")
    if rows["path"]:
        nothing = [None] * len(rows["path"])
        rows |= {"offset": nothing, "duration": nothing}
        features = Features(CLIP_FEATURES | {label: Value("string") for label in labels})
        return Source(name, Dataset.from_dict(rows, features=features), None)
    files = sorted(glob(str(path), recursive=True)) if is_glob else [str(path)]
    if files and all(file.endswith(".parquet") for file in files):
        return _load(spec, audio_column, labels, "parquet", data_files=files, split="train", streaming=streaming)
    if files and all(file.endswith(".tar") for file in files):
        return _load_archives(spec, audio_column, labels, files, streaming)
    if is_glob:
        raise ValueError(
            f"'{spec}': the pattern matches {len(files)} files; it must match Parquet files or tar archives only."
        )
    if path.suffix.lower() in AUDIO_SUFFIXES:
        raise ValueError(f"'{spec}' is a single audio file: name its folder, or a manifest.")
    return Source(name, JsonLines(path, labels), None)


def _load(spec: str, audio_column: str | None, labels: Sequence[str], *what: str | None, **options) -> Source:
    try:
        dataset = load_dataset(*what, **options)
    # RuntimeError: it is a script. TarError: of archives on the Hub.
    except (ValueError, OSError, DatasetsError, RuntimeError, tarfile.TarError) as error:
        if isinstance(error.__cause__, ImportError):  # folders and WebDataset on the Hub, copied to Arrow
            raise ValueError(f"'{spec}' is not Parquet: set streaming ({error.__cause__})") from error
        where = "as Parquet" if what[0] == "parquet" else "as a local path or on the Hub"
        raise ValueError(f"'{spec}' cannot be opened {where}: {error.__cause__ or error}") from error
    if dataset.features is None:  # a stream whose files must be looked into
        dataset = dataset._resolve_features()
    column = _audio_column(spec, dataset.features, audio_column)
    feature = dataset.features[column]
    encoded = isinstance(feature, dict) and {"bytes", "path"} & feature.keys()
    if not (isinstance(feature, Audio) or encoded or getattr(feature, "dtype", "").endswith(("string", "binary"))):
        raise ValueError(f"'{spec}': column '{column}' holds {feature}, not audio files or their paths.")
    _check_labels(spec, labels, dataset.features)
    dataset = dataset.select_columns([column, *labels])
    for label in labels:
        if isinstance(dataset.features[label], ClassLabel):
            dataset = _named(dataset, label)
        elif dataset.features[label] != Value("string"):
            dataset = dataset.cast_column(label, Value("string"))
    if isinstance(feature, Audio):
        dataset = _undecoded(dataset, column)
    return Source(spec, dataset, column)


def _load_archives(
    spec: str, audio_column: str | None, labels: Sequence[str], files: list[str], streaming: bool
) -> Source:
    """Tar archives in the WebDataset format, each a shard."""
    if not streaming:
        raise ValueError(f"'{spec}' holds tar archives, which can only be read from front to back: set streaming.")
    if labels:
        raise ValueError(f"'{spec}' holds tar archives, whose labels cannot be read: take Parquet, or unpack them.")
    try:
        return Source(spec, TarArchives(files, audio_column), "audio")
    except ValueError as error:
        raise ValueError(f"'{spec}': {error}.") from None


def _check_labels(spec: str, labels: Sequence[str], columns) -> None:
    missing = [label for label in labels if label not in columns]
    if missing:
        raise ValueError(f"'{spec}' has no column '{missing[0]}'; it has {', '.join(columns) or 'none'}.")


def _named(dataset: Dataset | IterableDataset, label: str) -> Dataset | IterableDataset:
    """Class numbers become class names."""
    names, features = dataset.features[label].names, dataset.features.copy()
    features[label] = Value("string")

    def name(number: int | None) -> dict:
        return {label: None if number is None or number < 0 else names[number]}

    return dataset.map(name, input_columns=label, features=features)


def _undecoded(dataset: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    """Give an `Audio` column as bytes or path; in some streams even `Audio(decode=False)` asks for torchcodec."""
    encoded = dataset.cast_column(column, ENCODED_AUDIO)
    if isinstance(dataset, Dataset) or dataset._ex_iterable.iter_arrow:
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


def _list_folder(folder: Path, labels: Sequence[str]) -> dict[str, list]:
    """Paths and labels of the files that metadata.csv names, else all audio files below the folder, sorted."""
    metadata = folder / "metadata.csv"
    if metadata.is_file():
        with open(metadata, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            if "file_name" in columns:
                _check_labels(str(metadata), labels, columns)
                rows = [row for row in reader if row["file_name"]]
                paths = [str(folder / row["file_name"]) for row in rows]
                return {"path": paths} | {label: [row[label] for row in rows] for label in labels}
        logger.warning("%s has no file_name column and is ignored: all audio files of the folder are used.", metadata)
    paths = sorted(_walk(folder))
    if not labels or not paths:
        return {"path": paths}
    if len(labels) > 1:
        columns = ", ".join(("file_name", *labels))
        raise ValueError(f"{folder} has no metadata.csv with the columns {columns}: write one, a row per file.")
    names = [os.path.basename(os.path.dirname(path)) for path in paths]
    if len(set(names)) == 1:
        raise ValueError(
            f"{folder} has no metadata.csv with the columns file_name and {labels[0]}, nor a subfolder for each"
            f" {labels[0]}: make one of them."
        )
    return {"path": paths, labels[0]: names}


def _walk(folder: Path) -> Iterator[str]:
    """All audio files below a folder; links are followed, once."""
    visited = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(root) in visited:  # links may go in circles
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in AUDIO_SUFFIXES:
                yield os.path.join(root, file)
