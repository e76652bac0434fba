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
    places = sorted(extracted.found)
    table = {
        "number": [rows[place].number for place in places],
        "source": [rows[place].source for place in places],
        "name": [rows[place].clip.name for place in places],
        "seconds": [extracted.seconds[place] for place in places],
    }
    table = {name: pa.array(values) for name, values in table.items()}
    own = {name: pa.array([rows[place].labels.get(name) for place in places]) for name in columns}
    return table | {name: values.cast(pa.string()) for name, values in own.items()}


def write_units(
    folder: Path, name: str, kind: str, rows: Sequence[Row], extracted: Extracted, columns: Sequence[str]
) -> None:
    """
    A shard of units as NAME.parquet, NAME.jsonl or NAME.txt. Tables have, beside the clip's columns, `units` of all
    frames, and its runs: `run_units`, `run_starts` and `run_seconds`; with posteriors `top_units` and `posteriors`.
    Text has a line a clip, its runs' units with spaces between.
    """
    places = sorted(extracted.found)
    found = [extracted.found[place] for place in places]
    runs = [run_lengths(each["units"]) for each in found]
    if kind == "text":
        lines = [" ".join(map(str, units.tolist())) + "\n" for units, _ in runs]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        return
    counts = [frames.numpy() for _, frames in runs]
    starts = [np.round(FIRST_EDGE + FRAME_SECONDS * (np.cumsum(count) - count), 4) for count in counts]
    table = clip_columns(rows, extracted, columns)
    table["units"] = listed([each["units"].numpy() for each in found])
    table["run_units"] = listed([units.int().numpy() for units, _ in runs])
    table["run_starts"] = listed([each.astype(np.float32) for each in starts])
    table["run_seconds"] = listed([np.round(FRAME_SECONDS * count, 4).astype(np.float32) for count in counts])
    for key in ("top_units", "posteriors"):
        if found and key in found[0]:
            table[key] = listed([each[key].numpy() for each in found])
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
    folder: Path, name: str, kind: str, rows: Sequence[Row], extracted: Extracted, columns: Sequence[str]
) -> None:
    """
    A shard of features. As NAME.npy or NAME.safetensors (tensor `features`) one array `(rows, num_layers,
    hidden_size)`, with NAME.index.parquet, which says for each clip the `first` of its rows and how many `rows` it
    has; as NAME.parquet a column `features`, each clip's flat, with its `shape`.
    """
    found = [extracted.found[place]["features"] for place in sorted(extracted.found)]
    table = clip_columns(rows, extracted, columns)
    if kind == "parquet":
        table["shape"] = listed([np.array(each.shape, np.int32) for each in found])
        table["features"] = listed([each.flatten().numpy() for each in found])
        pq.write_table(pa.table(table), folder / f"{name}.parquet", compression="none")
        return
    counts = np.array([len(each) for each in found], dtype=np.int64)
    table |= {"first": pa.array(np.cumsum(counts) - counts), "rows": pa.array(counts)}
    whole = torch.cat(found) if found else torch.empty(0, 0, 0)
    if kind == "npy":
        np.save(folder / f"{name}.npy", whole.numpy())
    else:
        save_file({"features": whole.contiguous()}, folder / f"{name}.safetensors")
    pq.write_table(pa.table(table), folder / f"{name}.index.parquet", compression="zstd")


def listed(arrays: Sequence[np.ndarray]) -> pa.Array:
    """A column of lists: each `(n,)`, or `(n, k)` as lists of k."""
    if not arrays:
        return pa.array([], pa.list_(pa.null()))
    offsets = np.cumsum([0, *map(len, arrays)])
    joined = np.concatenate(arrays)
    values = pa.array(np.ascontiguousarray(joined).reshape(-1))
    if joined.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, joined.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
