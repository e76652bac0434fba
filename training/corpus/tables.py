"""Tables: a shard of units or features in each format, written into a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from sjepa_hf.frames import FIRST_EDGE, FRAME_SECONDS
from sjepa_hf.units import run_lengths
from training.corpus.extraction import Extracted
from training.corpus.reading import Row


UNIT_FORMATS = ("parquet", "jsonl", "text")
FEATURE_FORMATS = ("parquet", "npy", "safetensors")
OF_CLIPS = ("number", "source", "name", "seconds")
COLUMNS_OF_UNITS = (*OF_CLIPS, "units", "run_units", "run_starts", "run_seconds", "top_units", "posteriors")
COLUMNS_OF_FEATURES = (*OF_CLIPS, "shape", "features", "first", "rows")


def clip_columns(rows: Sequence[Row], extracted: Extracted, columns: Sequence[str]) -> dict[str, pa.Array]:
    """What every table says of its clips: number, source, name and seconds, and the source's own columns as text."""
    places = sorted(extracted.tensors)
    table = {
        "number": pa.array([rows[place].number for place in places], pa.int64()),
        "source": pa.array([rows[place].source for place in places], pa.string()),
        "name": pa.array([rows[place].clip.name for place in places], pa.string()),
        "seconds": pa.array([extracted.seconds[place] for place in places], pa.float64()),
    }
    own = {name: pa.array([rows[place].labels.get(name) for place in places]) for name in columns}
    return table | {name: values.cast(pa.string()) for name, values in own.items()}


def write_units(
    folder: Path, name: str, kind: str, rows: Sequence[Row], extracted: Extracted, columns: Sequence[str], top_k: int
) -> None:
    """
    A shard of units as NAME.parquet, NAME.jsonl or NAME.txt. Tables have, beside the clip's columns, `units` of all
    frames, and its runs: `run_units`, `run_starts` and `run_seconds`; with `top_k` also `top_units` and `posteriors`.
    Text has a line a clip, its runs' units with spaces between; that of a clip that could not be used is empty.
    """
    places = sorted(extracted.tensors)
    clips = [extracted.tensors[place] for place in places]
    runs = [run_lengths(clip["units"]) for clip in clips]
    if kind == "text":
        of_places = {place: " ".join(map(str, units.tolist())) for place, (units, _) in zip(places, runs)}
        lines = [of_places.get(place, "") + "\n" for place in range(len(rows))]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        return
    counts = [frames.numpy() for _, frames in runs]
    starts = [np.round(FIRST_EDGE + FRAME_SECONDS * (np.cumsum(count) - count), 4) for count in counts]
    table = clip_columns(rows, extracted, columns)
    table["units"] = listed([clip["units"].numpy() for clip in clips], np.int32)
    table["run_units"] = listed([units.numpy() for units, _ in runs], np.int32)
    table["run_starts"] = listed(starts, np.float32)
    table["run_seconds"] = listed([np.round(FRAME_SECONDS * count, 4) for count in counts], np.float32)
    if top_k:
        table["top_units"] = listed([clip["top_units"].numpy() for clip in clips], np.int32, top_k)
        table["posteriors"] = listed([clip["posteriors"].numpy() for clip in clips], np.float16, top_k)
    table = pa.table(table)
    if kind == "parquet":
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        return
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=100):
            for row in batch.to_pylist():
                for key in ("run_starts", "run_seconds"):
                    row[key] = [round(value, 4) for value in row[key]]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_features(
    folder: Path, name: str, kind: str, rows: Sequence[Row], extracted: Extracted, columns: Sequence[str], dtype: str
) -> None:
    """
    A shard of features. As NAME.npy or NAME.safetensors (tensor `features`) one array `(rows, num_layers,
    hidden_size)`, with NAME.index.parquet, which says for each clip the `first` of its rows and how many `rows` it
    has; without a usable clip there is the index alone. As NAME.parquet a column `features`, each clip's flat, with
    its `shape`.
    """
    clips = [extracted.tensors[place]["features"] for place in sorted(extracted.tensors)]
    table = clip_columns(rows, extracted, columns)
    if kind == "parquet":
        table["shape"] = listed([np.array(clip.shape) for clip in clips], np.int32)
        table["features"] = listed([clip.flatten().numpy() for clip in clips], dtype)
        pq.write_table(pa.table(table), folder / f"{name}.parquet", compression="none")
        return
    counts = np.array([len(clip) for clip in clips], dtype=np.int64)
    table |= {"first": pa.array(np.cumsum(counts) - counts), "rows": pa.array(counts)}
    if clips and kind == "npy":
        np.save(folder / f"{name}.npy", torch.cat(clips).numpy())
    elif clips:
        save_file({"features": torch.cat(clips)}, folder / f"{name}.safetensors")
    pq.write_table(pa.table(table), folder / f"{name}.index.parquet", compression="zstd")


def listed(arrays: Sequence[np.ndarray], dtype: np.typing.DTypeLike, width: int = 0) -> pa.Array:
    """A column of lists of `dtype`: each `(n,)`, or `(n, width)` as lists of so many; without any of the same type."""
    offsets = np.cumsum([0, *map(len, arrays)])
    joined = np.concatenate([np.empty((0, width) if width else 0, dtype), *arrays], dtype=dtype)
    values = pa.array(joined.reshape(-1))
    if width:
        values = pa.FixedSizeListArray.from_arrays(values, width)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
