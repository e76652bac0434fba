"""Files of noise that tell their number, and the batches that are made of them."""

import numpy as np
import soundfile
import torch

from sjepa_hf.frames import SAMPLING_RATE
from training.data.batches import BatchStream
from training.data.clips import Clip, Sample
from training.data.folders import Files
from training.data.order import DataPosition
from training.data.sources import Source
from training.data.workers import start_method


NUM_CLIPS = 45


def write_clips(folder, count=NUM_CLIPS, first=0, max_samples=8000) -> list[str]:
    """Short files of noise; the first sample of a clip is its number / 1000."""
    rng = np.random.default_rng(first)
    paths = []
    for number in range(first, first + count):
        samples = rng.uniform(-0.1, 0.1, int(rng.integers(1600, max_samples))).astype(np.float32)
        samples[0] = number / 1000
        paths.append(str(folder / f"{number}.wav"))
        soundfile.write(paths[-1], samples, SAMPLING_RATE, subtype="FLOAT")
    return paths


def numbers(batch) -> list[int]:
    return (batch["input_values"][:, 0] * 1000).round().int().tolist()


def as_source(paths: list[str]) -> Source:
    return Source("test", Files(paths))


class EndlessList:
    """A manifest of so many rows, with the duration in each."""

    def __init__(self, path: str):
        self.path = path

    def __len__(self) -> int:
        return 50_000_000

    def __getitem__(self, index: int) -> Sample:
        return Clip(self.path, self.path, 0.0, 0.1), {}


def loader(batches: BatchStream, num_workers: int = 0) -> torch.utils.data.DataLoader:
    start = start_method() if num_workers else None
    return torch.utils.data.DataLoader(
        batches, None, num_workers=num_workers, collate_fn=lambda batch: batch, multiprocessing_context=start
    )


def take(batches, count: int) -> list[dict]:
    return [batch for batch, _ in zip(batches, range(count))]


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


def after(batches: list[dict], num_processes: int = 1) -> DataPosition:
    """Where one process stands after its batches."""
    return DataPosition(0, {batch["reader"]: batch["position"] for batch in batches}, len(batches) * num_processes)
