"""A uniform sample of a stream of frames, in one pass and bounded memory."""

import numpy as np
import torch


class FrameReservoir:
    """
    Keeps `capacity` frames of all that were added, each with the same probability (Vitter 1985, algorithm R).

    Args:
        capacity (`int`): frames to keep.
        seed (`int`): seed of the choice.
    """

    def __init__(self, capacity: int, seed: int = 0):
        self.capacity = capacity
        self.seen = 0
        self._random = np.random.default_rng(seed)
        self._frames: np.ndarray | None = None

    def add(self, frames: torch.Tensor) -> None:
        """Offer frames `(num_frames, num_features)`, without padding."""
        values = frames.float().cpu().numpy()
        if self._frames is None:
            self._frames = np.empty((self.capacity, values.shape[1]), dtype=np.float32)
        fresh = min(max(self.capacity - self.seen, 0), len(values))
        self._frames[self.seen : self.seen + fresh] = values[:fresh]
        rest = values[fresh:]
        if len(rest):
            # Frame number n (from 0) goes to a random slot out of n + 1, and is kept if there is such a slot. Where
            # two frames of one batch draw the same slot, assignment in order leaves the later one, as one by one.
            number = self.seen + fresh + np.arange(len(rest))
            slot = self._random.integers(0, number + 1)
            kept = slot < self.capacity
            self._frames[slot[kept]] = rest[kept]
        self.seen += len(values)

    def frames(self) -> torch.Tensor:
        """The sample: `(min(capacity, frames seen), num_features)`, fp32 on the CPU."""
        if self._frames is None:
            return torch.empty(0, 0)
        return torch.from_numpy(self._frames[: min(self.seen, self.capacity)])
