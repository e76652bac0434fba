"""Sampling of frames: uniform over a stream, in one pass and bounded memory, the same whoever reads the stream.

`FitAudio` is the stream, for those who need frames in their order.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from sjepa_hf.frames import frame_lengths, real_frames
from training.common.processes import Coordinator
from training.data.batches import to_device


LAST = np.iinfo(np.int64).max  # above every random number of a frame


def draw_order(seed: int, batch_seed: int, num_frames: int) -> np.ndarray:
    """
    A random int64 number for each frame of a batch, `(num_frames,)`: the frames with the smallest numbers of all
    batches are a uniform sample of all frames. It depends on the seed and on the batch's own alone.
    """
    return np.random.default_rng([seed, batch_seed]).integers(0, LAST, num_frames)


class FrameReservoir:
    """
    Keeps the `capacity` frames with the smallest random numbers: a uniform sample of all that were added.

    Args:
        capacity (`int`): frames to keep.
        seed (`int`): seed of the choice.
    """

    def __init__(self, capacity: int, seed: int = 0):
        self.capacity = capacity
        self.seed = seed
        self._numbers: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._held, self._limit = 0, LAST

    def add(self, frames: torch.Tensor, batch_seed: int) -> None:
        """Offer frames `(num_frames, num_features)`, without padding, of the batch with this seed."""
        numbers = draw_order(self.seed, batch_seed, len(frames))
        kept = np.flatnonzero(numbers < self._limit)
        if len(kept) > self.capacity:
            kept = kept[np.argsort(numbers[kept])[: self.capacity]]
        self._numbers.append(numbers[kept])
        self._frames.append(frames[torch.from_numpy(kept).to(frames.device)].float().cpu().numpy())
        self._held += len(kept)
        if self._held > 1.5 * self.capacity:
            self._shrink()

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers `(n,)`, ascending, and fp32 frames `(n, num_features)`, on the CPU; n at most `capacity`."""
        if not self._held:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, 0)
        self._shrink()
        return torch.from_numpy(self._numbers[0]), torch.from_numpy(self._frames[0])

    def _shrink(self) -> None:
        numbers, frames = np.concatenate(self._numbers), np.concatenate(self._frames)
        order = np.argsort(numbers, kind="stable")[: self.capacity]
        self._numbers, self._frames, self._held = [numbers[order]], [frames[order]], len(order)
        if len(order) == self.capacity:
            self._limit = int(numbers[order[-1]])


@dataclass
class FitAudio:
    """
    What is fitted to: passes over the same batches, each of which ends in all processes alike.

    Args:
        read: begins a pass over the batches of this process.
        coordinator (`Coordinator`): sums what all processes have read, and may stop them.
        readers (`int`): of this process. A pass ends after a whole round, a batch of each reader that has one left, so
            that it does not matter how readers are shared out. Batches of several say their `reader`.
    """

    read: Callable[[], Iterable[dict]]
    coordinator: Coordinator
    readers: int = 1

    def batches(self, max_seconds: float = math.inf, max_frames: float = math.inf) -> Iterator[dict]:
        """A pass: batches on the device, until all processes together have read so many seconds or frames."""
        seconds, frames, rounds = 0.0, 0, self._rounds()
        while True:
            batches = next(rounds, [])
            for batch in batches:
                seconds, frames = seconds + batch["seconds"], frames + int(frame_lengths(batch["lengths"]).sum())
                yield to_device(batch, self.coordinator.accelerator.device)
            going, heard, seen = self.coordinator.sum(float(bool(batches)), seconds, float(frames))
            if not going or heard >= max_seconds or seen >= max_frames:
                return

    def _rounds(self) -> Iterator[list[dict]]:
        """A batch of each reader that has one left. One that comes again too early shows that another has ended."""
        readers, batches = self.readers, []
        for batch in self.read():
            if batches and batch["reader"] <= batches[-1]["reader"]:
                readers = len(batches)
                yield batches
                batches = []
            batches.append(batch)
            if len(batches) == readers:
                yield batches
                batches = []
        if batches:
            yield batches


@torch.no_grad()
def sample_frames(
    features: Callable[[dict], torch.Tensor],
    audio: FitAudio,
    num_frames: int,
    seed: int,
    *,
    max_seconds: float = math.inf,
    stop_when_full: bool = False,
) -> torch.Tensor:
    """
    Uniform sample of the frames of all processes, the same in each: `(at most num_frames, num_features)`. It depends
    on the batches alone, not on how they are shared out: each batch carries the `seed` that decides which of its
    frames are taken.

    Args:
        features: function from a batch to `(batch_size, sequence_length, num_features)`.
        audio: of which one pass is read.
        num_frames: size of the sample over all processes.
        seed: seed of the sample.
        max_seconds: of audio that are read, over all processes.
        stop_when_full: stop as soon as `num_frames` were seen, instead of reading all that there is.

    Raises:
        ValueError: if no process has read a frame.
    """
    reservoir = FrameReservoir(num_frames, seed)
    for batch in audio.batches(max_seconds, max_frames=num_frames if stop_when_full else math.inf):
        values = features(batch)
        reservoir.add(values[real_frames(batch["lengths"], values.shape[1])], batch["seed"])
    frames = smallest(*reservoir.sample(), num_frames, audio.coordinator.accelerator).cpu()
    if not len(frames):
        raise ValueError("No frame of the training data could be read: the log names the files and what is wrong.")
    return frames


def smallest(numbers: torch.Tensor, frames: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """
    The `count` frames with the smallest random numbers over all processes, in their order, the same in each.

    Args:
        numbers: int64 `(n,)`; `frames`: `(n, ...)`. `n` may differ between processes and may be 0.
    """
    if accelerator.num_processes > 1:
        numbers, frames = (values.to(accelerator.device) for values in (numbers, frames))
        limit = gathered(numbers, accelerator).sort().values[:count][-1:]
        numbers, frames = numbers[numbers <= limit], frames[numbers <= limit]
        numbers, frames = gathered(numbers, accelerator), gathered(frames, accelerator)
    return frames[numbers.argsort()[:count]]


def gathered(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Rows of all processes one after another; their number may differ, and one may have none."""
    shapes = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(shapes, tuple(values.shape))
    longest = max(shapes)
    padded = values.new_zeros(longest)
    if len(values):
        padded[: len(values)] = values
    parts = accelerator.gather(padded[None])
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])
