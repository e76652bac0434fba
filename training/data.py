"""Training data: folders, manifests, Parquet and Hub data sets behind one loader of ready batches.

args = DataArguments(train_data=["/data/librivox", "openslr/librispeech_asr::clean::train.100"])
for batch in build_loader(args, mask_prob=0.65, mask_span=10, seed=0): ...
"""

import csv
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import fsspec.asyn
import torch
from datasets import Audio, Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from torch.utils.data import DataLoader

from training.audio import MIN_SAMPLES, SAMPLING_RATE, Source
from training.batching import BatchStream, ClipIndex, ClipStream


logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
LOCAL_SUFFIXES = (*AUDIO_SUFFIXES, ".jsonl", ".json", ".parquet", ".csv", ".tsv")
CLIP_FEATURES = Features({"path": Value("large_string"), "offset": Value("float64"), "duration": Value("float64")})
ENCODED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


@dataclass
class DataArguments:
    """What to train on and how to cut it into batches.

    Raises:
        ValueError: if a value is out of range; the message names the field.
    """

    train_data: list[str] = field(
        metadata={
            "help": "Sources, each PATH_OR_HUB_NAME[::config[::split]] (split 'train' by default): a folder of audio "
            "(if its metadata.csv has a file_name column, that is the list), a JSONL manifest with wav_path or "
            "audio_filepath and optionally offset and duration in seconds, a Parquet file, folder or quoted glob, or "
            "a data set on the Hub."
        }
    )
    train_data_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Relative frequency of each source, in clips. Without it an epoch is every clip of every source "
            "once; with it, as many draws as all sources hold clips (streaming: until the last source has been read "
            "once), small sources being repeated."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read Hub data sets and Parquet in place, shuffled through a buffer, instead of first making an "
            "Arrow copy on disk. Resuming then reads again what was read before."
        },
    )
    audio_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the audio in Hub data sets and Parquet; by default 'audio', else the only Audio one."
        },
    )
    max_seconds: float = field(
        default=15.0, metadata={"help": "Longer clips are cropped to this, at a random place that changes each epoch."}
    )
    min_seconds: float = field(
        default=0.1, metadata={"help": "Shorter clips are skipped and reported; at least 400 samples (0.025)."}
    )
    batch_seconds: float = field(
        default=360.0,
        metadata={
            "help": "Seconds a micro-batch may hold, padding included. The default is 24 clips of 15 s, one GPU's "
            "share of the published batch."
        },
    )
    bucket_buffer_size: int = field(
        default=1024, metadata={"help": "Clips per worker that are sorted by length and cut into batches at a time."}
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Streaming: clips per worker and source held, still encoded, for shuffling."}
    )
    num_workers: int = field(
        default=4, metadata={"help": "Processes that decode, per rank. 0: in the training process."}
    )
    cache_gb: float = field(
        default=0.0,
        metadata={
            "help": "GiB per worker for decoded clips (16-bit), for small corpora read again and again; 0 is off. "
            "Each worker then keeps its clips for the whole run. Not with streaming."
        },
    )
    max_bad_fraction: float = field(
        default=0.05,
        metadata={
            "help": "Stop when more than this share of the clips is missing, corrupt, silent or otherwise unusable."
        },
    )

    def __post_init__(self):
        if not self.train_data:
            raise ValueError("train_data is empty: name at least one folder, manifest, Parquet file or Hub data set.")
        if self.train_data_weights is not None:
            if len(self.train_data_weights) != len(self.train_data):
                raise ValueError(
                    f"train_data_weights has {len(self.train_data_weights)} values for {len(self.train_data)} sources "
                    "in train_data: give one each."
                )
            if not all(math.isfinite(weight) and weight > 0 for weight in self.train_data_weights):
                raise ValueError(f"train_data_weights must all be positive, got {self.train_data_weights}.")
        if self.min_seconds * SAMPLING_RATE < MIN_SAMPLES:
            raise ValueError(f"min_seconds must be at least {MIN_SAMPLES / SAMPLING_RATE}, got {self.min_seconds}.")
        if not self.min_seconds <= self.max_seconds <= self.batch_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds}), max_seconds ({self.max_seconds}) and batch_seconds "
                f"({self.batch_seconds}) must not decrease in this order: a batch holds at least one whole clip."
            )
        for name in ("bucket_buffer_size", "shuffle_buffer_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_workers < 0 or self.cache_gb < 0:
            raise ValueError(f"num_workers and cache_gb must not be negative: {self.num_workers}, {self.cache_gb}.")
        if self.cache_gb and self.streaming:
            raise ValueError("cache_gb has no use with streaming: set one of them.")
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}.")


def build_loader(
    args: DataArguments,
    *,
    mask_prob: float = 0.65,
    mask_span: int = 10,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    max_epochs: int | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Open the sources and give the loader of one rank's batches.

    The batches depend on `seed`, `world_size`, `args.num_workers` and the data alone; each call is an independent
    pass. See `BatchStream` for what a batch holds.

    Args:
        args: sources and batch shape.
        mask_prob, mask_span: as in `compute_span_mask`.
        seed: non-negative; decides order, crops and masks.
        rank, world_size: this process and their number; ranks share no clip.
        start_batch: batches of this rank that an earlier run has used. Headers of their clips are read again, no
        audio.
        max_epochs: passes over the data; None never ends.
        pin_memory: as in `DataLoader`.

    Raises:
        ValueError: if a source cannot be opened, has no audio, or has fewer clips than there are readers.
    """
    if start_batch and max_epochs is not None:
        raise ValueError("start_batch resumes an endless run: leave out max_epochs.")
    sources = [open_source(spec, streaming=args.streaming, audio_column=args.audio_column) for spec in args.train_data]
    for source in sources:
        if isinstance(source.dataset, Dataset) and not len(source.dataset):
            raise ValueError(f"train_data '{source.name}' holds no clip.")
    if args.streaming:
        corpus = ClipStream(sources, args.train_data_weights, seed, args.shuffle_buffer_size)
    else:
        corpus = ClipIndex(sources, args.train_data_weights, seed, fixed_readers=args.cache_gb > 0)
        num_readers = world_size * max(1, args.num_workers)
        if max_epochs is None and corpus.size < num_readers:
            raise ValueError(
                f"train_data holds {corpus.size} clips for {num_readers} readers (ranks x num_workers): "
                "lower num_workers."
            )
    batches = BatchStream(
        corpus,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
        max_epochs=max_epochs,
        batch_seconds=args.batch_seconds,
        buffer_size=args.bucket_buffer_size,
        max_seconds=args.max_seconds,
        min_seconds=args.min_seconds,
        cache_gb=args.cache_gb,
        mask_prob=mask_prob,
        mask_span=mask_span,
    )
    return DataLoader(
        batches,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=args.num_workers,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # leaves the global generator alone
    )


def _as_is(batch: dict) -> dict:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    fsspec.asyn.reset_lock()  # a forked lock would hang remote reads


def open_source(spec: str, *, streaming: bool = False, audio_column: str | None = None) -> Source:
    """Open `PATH_OR_HUB_NAME[::config[::split]]` (see `DataArguments.train_data`); no audio is decoded.

    Raises:
        ValueError: if it does not exist, has no audio, or has no such config, split or column.
    """
    name, *rest = spec.split("::")
    if len(rest) > 2 or not name:
        raise ValueError(f"train_data '{spec}' is not of the form PATH_OR_HUB_NAME[::config[::split]].")
    config, split = ((rest[0] if rest else "") or None), ((rest[1] if len(rest) == 2 else "") or "train")
    path = Path(name).expanduser()
    is_glob = any(char in name for char in "*?[")
    on_hub = not (is_glob or path.exists())
    if on_hub and (path.is_absolute() or name[0] in ".~" or name.count("/") > 1 or path.suffix in LOCAL_SUFFIXES):
        raise ValueError(f"train_data '{spec}': there is no file or folder {path}.")
    if on_hub:
        return _load(spec, audio_column, name, config, split=split, streaming=streaming)

    paths = _list_folder(path) if path.is_dir() else []
    if path.is_dir() and not paths:
        if next(path.rglob("*.parquet"), None) is None:
            raise ValueError(
                f"train_data '{spec}': the folder has no audio ({', '.join(AUDIO_SUFFIXES)}) and no Parquet."
            )
        return _load(spec, audio_column, "parquet", data_dir=str(path), split=split, streaming=streaming)
    if config or split != "train":
        raise ValueError(
            f"train_data '{spec}': files and folders of audio have no configs or splits; name the part itself."
        )
    if paths:
        rows = {"path": paths, "offset": [None] * len(paths), "duration": [None] * len(paths)}
        return Source(name, Dataset.from_dict(rows, features=CLIP_FEATURES), None)
    files = sorted(glob(str(path), recursive=True)) if is_glob else [str(path)]
    if files and all(file.endswith(".parquet") for file in files):
        return _load(spec, audio_column, "parquet", data_files=files, split="train", streaming=streaming)
    if is_glob:
        raise ValueError(
            f"train_data '{spec}': the pattern matches {len(files)} files; it must match Parquet files only."
        )
    if path.suffix.lower() in AUDIO_SUFFIXES:
        raise ValueError(f"train_data '{spec}' is a single audio file: name its folder, or a manifest.")
    return Source(name, _read_manifest(path), None)


def _load(spec: str, audio_column: str | None, *what: str | None, **options) -> Source:
    try:
        dataset = load_dataset(*what, **options)
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error.__cause__, ImportError):  # folders and WebDataset on the Hub, copied to Arrow
            raise ValueError(f"train_data '{spec}' is not Parquet: set streaming ({error.__cause__})") from error
        where = "as Parquet" if what[0] == "parquet" else "as a local path or on the Hub"
        raise ValueError(f"train_data '{spec}' cannot be opened {where}: {error.__cause__ or error}") from error
    if dataset.features is None:  # a stream whose files must be looked into
        dataset = dataset._resolve_features()
    column = _audio_column(spec, dataset.features, audio_column)
    feature = dataset.features[column]
    encoded = isinstance(feature, dict) and {"bytes", "path"} & feature.keys()
    if not (isinstance(feature, Audio) or encoded or getattr(feature, "dtype", "").endswith(("string", "binary"))):
        raise ValueError(f"train_data '{spec}': column '{column}' holds {feature}, not audio files or their paths.")
    dataset = dataset.select_columns([column])
    if isinstance(feature, Audio):
        dataset = _undecoded(dataset, column)
    return Source(spec, dataset, column)


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
            raise ValueError(f"train_data '{spec}' has no column '{wanted}' (audio_column); it has {columns}.")
        return wanted
    candidates = [name for name, feature in features.items() if isinstance(feature, Audio)]
    if "audio" in features or len(candidates) == 1:
        return "audio" if "audio" in features else candidates[0]
    found = "several audio columns" if candidates else "no audio column"
    raise ValueError(f"train_data '{spec}' has {found} among {columns}: name it with audio_column.")


def _list_folder(folder: Path) -> list[str]:
    """The files metadata.csv names, else all audio files below the folder, sorted."""
    metadata = folder / "metadata.csv"
    if metadata.is_file():
        with open(metadata, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file_name" in (reader.fieldnames or ()):
                return [str(folder / row["file_name"]) for row in reader if row["file_name"]]
        logger.warning("%s has no file_name column and is ignored: all audio files of the folder are used.", metadata)
    found, visited = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(root) in visited:  # links may go in circles
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        found += [
            os.path.join(root, file)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in AUDIO_SUFFIXES
        ]
    return sorted(found)


def _read_manifest(path: Path) -> Dataset:
    """Memory-mapped rows of a JSONL manifest; kept in the `datasets` cache until the manifest changes."""
    status = path.stat()
    manifest = {"path": str(path.absolute()), "stamp": (status.st_mtime_ns, status.st_size)}
    if next(_manifest_rows(**manifest), None) is None:
        raise ValueError(f"{path} names no clip.")
    try:
        return Dataset.from_generator(_manifest_rows, features=CLIP_FEATURES, gen_kwargs=manifest)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from None
        raise


def _manifest_rows(path: str, stamp: tuple[int, int]) -> Iterator[dict]:
    folder = os.path.dirname(path)
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from None
            audio = (entry.get("wav_path") or entry.get("audio_filepath")) if isinstance(entry, dict) else None
            if not isinstance(audio, str):
                raise ValueError(f"{path}, line {number} has neither wav_path nor audio_filepath.")
            row = {"path": audio if "://" in audio else os.path.join(folder, audio)}
            for key in ("offset", "duration"):
                row[key] = entry.get(key)
                if row[key] is not None and not (isinstance(row[key], (int, float)) and 0 <= row[key] < math.inf):
                    raise ValueError(f"{path}, line {number}: {key} must be seconds, got {row[key]!r}.")
            yield row
