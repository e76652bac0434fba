"""A uniform sample of a stream of frames, in one pass and bounded memory, the same whoever reads the stream."""

import numpy as np
import torch


LAST = np.iinfo(np.int64).max  # above every rank number


def draw_order(seed: int, draw: int, num_frames: int) -> np.ndarray:
    """
    A random int64 number for each frame of a batch, `(num_frames,)`: the frames with the smallest numbers of all
    batches are a uniform sample of all frames. It depends on the seed and on the batch's own `draw` alone.
    """
    return np.random.default_rng([seed, draw]).integers(0, LAST, num_frames)


class FrameReservoir:
    """
    Keeps the `capacity` frames with the smallest random numbers: a uniform sample of all that were added.

    Args:
        capacity (`int`): frames to keep.
        seed (`int`): seed of the choice.

    Attributes:
        seen (`int`): frames that were offered.
    """

    def __init__(self, capacity: int, seed: int = 0):
        self.capacity = capacity
        self.seed = seed
        self.seen = 0
        self._numbers: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._held, self._limit = 0, LAST

    def add(self, frames: torch.Tensor, draw: int) -> None:
        """Offer frames `(num_frames, num_features)`, without padding, of the batch with this `draw`."""
        numbers = draw_order(self.seed, draw, len(frames))
        kept = np.flatnonzero(numbers < self._limit)
        if len(kept) > self.capacity:
            kept = kept[np.argsort(numbers[kept])[: self.capacity]]
        self.seen += len(frames)
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
