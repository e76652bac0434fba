"""
Masks: random spans of frames (`SpanMask`), bands of mel bins (`MelMask`), and how far a masked frame is from the
nearest visible one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


Mask = Callable[[Tensor, int, torch.Generator | None], Tensor]
"""Called as `SpanMask` is. Workers that are started afresh need it to be picklable: no local function."""


@dataclass(frozen=True)
class SpanMask:
    """Mask random spans of every utterance until the target share of its real frames is masked.

    Spans start at random places and may overlap. They are drawn one after the other until
    `target = round(prob * length)` frames are masked, and the last one may overshoot:
    `target <= masked < target + span`.
    (S-JEPA, masking; the released code stops after `prob * length / span` draws, whose overlaps leave
    `1 - exp(-prob)`, or 0.48, masked.)

    - Ends: a span may hang over either end of the utterance, where it is cut, so that as many starts cover the first
      frame as one in the middle. What remains of the end effect is small: with 50 frames, the outermost one is masked
      in 0.66 of the draws and the middle in 0.70; with 200 frames, in 0.66 and 0.67.
    - Short utterances: where fewer than `span` frames remain visible at the target (under 28 or so at the default
      values), spans are as long as that remainder. The last span then never takes the last visible frame: from 2
      frames on, every utterance has at least one masked and one visible frame.
    - One frame cannot be both: it stays visible. Padding is never masked.

    Args:
        prob (`float`): share of the real frames to mask, between 0 and 1 exclusive.
        span (`int`): frames per span.

    Raises:
        ValueError: if `prob` or `span` is out of range.
    """

    prob: float = 0.65
    span: int = 10

    def __post_init__(self):
        if not 0.0 < self.prob < 1.0:
            raise ValueError(f"prob must lie between 0 and 1 exclusive, got {self.prob}: 0.65 is the published value.")
        if self.span < 1:
            raise ValueError(f"span must be at least 1 frame, got {self.span}.")

    def __call__(self, lengths: Tensor, num_frames: int, generator: torch.Generator | None = None) -> Tensor:
        """
        Draw a mask, on the device of `lengths` and without synchronising with the host.

        Args:
            lengths (`Tensor`): integers `(batch_size,)`, real frames of each utterance; at most `num_frames` of them
                count.
            num_frames (`int`): frames of the padded batch.
            generator (`torch.Generator`, *optional*): source of randomness, on the device of `lengths`.

        Returns:
            Boolean mask `(batch_size, num_frames)`, True at masked frames.

        Raises:
            ValueError: if `lengths` has another shape.
        """
        if lengths.dim() != 1:
            raise ValueError(f"lengths must have shape (batch_size,), got {tuple(lengths.shape)}.")
        if num_frames < 1 or lengths.shape[0] == 0:
            return torch.zeros(lengths.shape[0], max(num_frames, 0), dtype=torch.bool, device=lengths.device)

        lengths = lengths.clamp(0, num_frames)[:, None]  # [B, 1]
        target = (lengths.double() * self.prob).round().long()  # float32 rounds 0.65 * 390 the other way
        target = target.clamp(min=1).minimum((lengths - 1).clamp(min=1))
        own_span = (lengths - target).clamp(1, self.span)
        real = torch.arange(num_frames, device=lengths.device) < lengths  # [B, T]

        # Starts are -(span - 1) .. T - 1; those that cover no real frame are never looked at. `rank[s]` is when start
        # s is drawn: argsort of uniform keys is a uniformly random order (that of other keys would need a second one
        # to become ranks). Drawing a start again would change nothing, so this equals drawing with replacement.
        keys = torch.rand(lengths.shape[0], num_frames + self.span - 1, generator=generator, device=lengths.device)
        rank = keys.argsort(dim=1)

        # Frame t is covered by the `own_span` starts up to and including t; the first of them to be drawn masks it.
        unreached = rank.shape[1]
        covered_at = torch.full_like(rank[:, :num_frames], unreached)  # [B, T]
        for start in range(self.span):
            drawn_at = rank[:, start : start + num_frames]
            covered_at = covered_at.minimum(drawn_at.masked_fill(start < self.span - own_span, unreached))
        covered_at = covered_at.masked_fill(~real, unreached)

        # The draw that masks the target-th frame is the last one; it masks all of its span.
        last_draw = covered_at.sort(dim=1).values.gather(1, (target - 1).clamp(max=num_frames - 1))
        return (covered_at <= last_draw) & real & (lengths > 1)


@dataclass(frozen=True)
class MelMask:
    """
    Hide bands of mel bins, so that visible frames cannot be copied either (our addition; SpecAugment,
    arXiv 1904.08779, hides bands of whole clips from recognisers). Time is cut into stretches of `STRETCH` frames, the
    first one at random; in each, `BANDS` bands of 0 to `widest` bins are hidden, which may overlap.

    Args:
        widest (`int`): bins of the widest band, at most `num_mel_bins`.
        num_mel_bins (`int`): bins of the front end.
    """

    widest: int
    num_mel_bins: int

    STRETCH = 40  # frames: 0.8 s
    BANDS = 2

    def __call__(self, batch_size: int, num_frames: int, generator: torch.Generator) -> Tensor:
        """Bool `(batch_size, num_frames, num_mel_bins)`, True at hidden bins, on the generator's device."""
        device = generator.device
        stretches = num_frames // self.STRETCH + 2
        draws = torch.rand(3, batch_size, stretches, self.BANDS, generator=generator, device=device)
        width = (draws[0] * (self.widest + 1)).long()
        first = (draws[1] * (self.num_mel_bins - width + 1)).long()[..., None]
        bins = torch.arange(self.num_mel_bins, device=device)
        hidden = ((bins >= first) & (bins < first + width[..., None])).any(2)  # [B, stretches, F]
        begin = (draws[2, :, :1, 0] * self.STRETCH).long()  # [B, 1]
        stretch = (torch.arange(num_frames, device=device) + begin) // self.STRETCH  # [B, T]
        return hidden[torch.arange(batch_size, device=device)[:, None], stretch]

    def of_batch(self, batch: dict) -> Tensor:
        """For a batch of the loader, on its device; seeded by it, so that a resumed run hides the same."""
        generator = torch.Generator(batch["mask_time_indices"].device).manual_seed(batch["seed"] ^ OTHER_DRAWS)
        return self(*batch["mask_time_indices"].shape, generator)


OTHER_DRAWS = 1  # augmentation takes the batch's own seed
PUBLISHED_MASK = SpanMask()
FARTHEST = 5  # frames to the nearest visible one: so far and farther count as one distance


def distance_to_visible(visible: Tensor) -> Tensor:
    """
    Frames from each frame to the nearest visible one of its clip: 0 at visible frames, at most `FARTHEST`, which is
    also the distance to nothing, in a clip without visible frames.

    Args:
        visible (`Tensor`): bool `(batch_size, num_frames)`, True at real frames that are not hidden.

    Returns:
        Integers `(batch_size, num_frames)`, on the same device.
    """
    seen = visible.float()
    near = [nn.functional.max_pool1d(seen, 2 * d + 1, stride=1, padding=d) for d in range(FARTHEST)]  # within d frames
    return FARTHEST - torch.stack(near).sum(0).long()
