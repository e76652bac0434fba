"""Files of numbered clips in every kind of source."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from sjepa_hf.frames import SAMPLING_RATE
from training.data.arguments import DataArguments
from training.data.loader import build_loader


def write_clip(path: Path, number: int, seconds: float = 0.25, rate: int = SAMPLING_RATE) -> Path:
    """A clip whose peak, its first sample, is its number / 100."""
    samples = np.random.default_rng(number).uniform(-0.001, 0.001, round(seconds * rate)).astype(np.float32)
    samples[0] = number / 100
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def found(*specs: str, **options) -> list[int]:
    """Numbers of all clips that an epoch gives."""
    options = {"num_workers": 0, "batch_seconds": 16.0} | options
    loader = build_loader(DataArguments(train_data=list(specs), **options), max_epochs=1)
    return sorted(n for batch in loader for n in (batch["input_values"][:, 0] * 100).round().int().tolist())


def write_parquet(path: Path, numbers: range, column: str = "audio", hf: bool = True, by_path: bool = False) -> None:
    """A Parquet file as `datasets` writes it (`hf`), or bare; with the audio inside or by path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = [write_clip(path.parent.with_name("clips") / f"{n}.flac", n) for n in numbers]
    cells = [{"bytes": None if by_path else clip.read_bytes(), "path": str(clip)} for clip in clips]
    columns = {"speaker": ["a"] * len(cells), column: cells}
    table = pa.table(columns)
    if hf:
        features = {"speaker": datasets.Value("string"), column: datasets.Audio()}
        table = table.cast(datasets.Features(features).arrow_schema)
    pq.write_table(table, path)
