"""Units: the clusters of frames as numbers, soft units, and runs of equal units with their times."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput

from .frames import FIRST_EDGE, FRAME_SECONDS, length_mask


PADDING = -1


class UnitRun(NamedTuple):
    """Equal units in a row: the unit, where it begins in the clip, and how long it lasts, in seconds."""

    unit: int
    start: float
    duration: float


@dataclass
class SJepaUnitsOutput(ModelOutput):
    """
    Units of a padded batch.

    Args:
        units (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            The likeliest component of each frame; -1 in padding.
        lengths (`torch.LongTensor` of shape `(batch_size,)`): real frames of each clip.
        top_units (`torch.LongTensor` of shape `(batch_size, sequence_length, k)`):
            With `top_k`, the k likeliest components, likeliest first; -1 in padding.
        top_posteriors (`torch.Tensor` of shape `(batch_size, sequence_length, k)`): their posteriors; 0 in padding.
    """

    units: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None
    top_units: torch.LongTensor | None = None
    top_posteriors: torch.Tensor | None = None

    def runs(self) -> list[list[UnitRun]]:
        """For each clip its runs of equal units, with times. A frame's share is the 20 ms around its centre."""
        clips = zip(self.units.cpu(), self.lengths.tolist(), strict=True)
        return [unit_runs(*run_lengths(units[:length])) for units, length in clips]


def units_of(posteriors: torch.Tensor, lengths: torch.Tensor | None = None, top_k: int = 0) -> SJepaUnitsOutput:
    """
    The likeliest component of each frame as its unit.

    Args:
        posteriors (`torch.Tensor` of shape `(batch_size, sequence_length, num_components)`): of frames.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real frames; without it, all are real.
        top_k (`int`, *optional*, defaults to 0): how many components, and their posteriors, to give for each frame.

    Raises:
        ValueError: if `top_k` is negative, or above the number of components.
    """
    batch_size, num_frames, num_components = posteriors.shape
    if not 0 <= top_k <= num_components:
        raise ValueError(f"`top_k` is {top_k}; it must lie between 0 and the {num_components} components.")
    if lengths is None:
        lengths = torch.full((batch_size,), num_frames, device=posteriors.device)
    padding = ~length_mask(lengths, num_frames)  # [B, T]
    top_units = top_posteriors = None
    if top_k:
        top_posteriors, top_units = posteriors.topk(top_k, dim=-1)
        top_posteriors = top_posteriors.masked_fill(padding[:, :, None], 0.0)
        top_units = top_units.masked_fill(padding[:, :, None], PADDING)
    units = posteriors.argmax(-1).masked_fill(padding, PADDING)
    return SJepaUnitsOutput(units=units, lengths=lengths, top_units=top_units, top_posteriors=top_posteriors)


def run_lengths(units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Units `(T,)` of one clip without repetitions, and how many frames each lasts: both `(num_runs,)`."""
    return torch.unique_consecutive(units, return_counts=True)


def unit_runs(units: torch.Tensor, frames: torch.Tensor) -> list[UnitRun]:
    """Runs, as [`run_lengths`] gives them, in seconds."""
    runs, begun = [], 0
    for unit, count in zip(units.tolist(), frames.tolist(), strict=True):
        runs.append(UnitRun(unit, FIRST_EDGE + FRAME_SECONDS * begun, FRAME_SECONDS * count))
        begun += count
    return runs


__all__ = ["SJepaUnitsOutput", "UnitRun"]
