"""Order of the training clips: of like length together or any, a function of seed and epoch alone."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices


class SeededOrder(torch.utils.data.Sampler[int]):
    """
    All clips in an order that the seed and the epoch decide, so that a run that is resumed in any epoch goes on in the
    order of that epoch. (The Trainer's sampler of like lengths draws from the global random numbers, which are then
    others.)

    Args:
        lengths (`Sequence[int]`): of each clip, in samples.
        seed (`int`): of the run, the same in all processes.
        epoch (`Callable[[], int]`): tells the epoch that begins, from 0.
        group_size (`int`, *optional*): as many clips in a row are of like length; without it, any are.
    """

    def __init__(self, lengths: Sequence[int], seed: int, epoch: Callable[[], int], group_size: int | None = None):
        self.lengths, self.seed, self.epoch, self.group_size = lengths, seed, epoch, group_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        if self.group_size is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.group_size, generator=generator))
