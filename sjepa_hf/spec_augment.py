"""SpecAugment (arXiv 1904.08779) while fine-tuning: random spans of frames and of feature dimensions are hidden."""

import torch

from .configuration_sjepa import SJepaConfig


def spec_augment(
    config: SJepaConfig, lengths: torch.Tensor, sequence_length: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    What to hide of a batch, at the configuration's rates (as in HuBERT). Padding is never masked; all is drawn on
    the device.

    Args:
        lengths (`torch.LongTensor` of shape `(batch_size,)`): real frames of each clip.
        sequence_length (`int`): frames of the padded batch.

    Returns:
        `mask_time_indices`, bool `(batch_size, sequence_length)`, and `mask_feature_indices`, bool
        `(batch_size, hidden_size)`; `None` for one whose rate is 0.
    """
    frames = dimensions = None
    if config.mask_time_prob > 0:
        frames = random_spans(lengths, sequence_length, config.mask_time_prob, config.mask_time_length)
    if config.mask_feature_prob > 0:
        size = torch.full_like(lengths, config.hidden_size)
        dimensions = random_spans(size, config.hidden_size, config.mask_feature_prob, config.mask_feature_length)
    return frames, dimensions


def random_spans(lengths: torch.Tensor, size: int, prob: float, span: int) -> torch.Tensor:
    """
    `prob * length / span` spans (rounded up or down at random, so that the mean is exact) at uniform places of each
    row; they may overlap. Rows of at most `span` entries stay whole. Bool `(batch_size, size)`.
    """
    count = (prob * lengths / span + torch.rand(len(lengths), device=lengths.device)).floor()  # [B]
    most = int(prob * size / span + 1)
    starts = torch.rand(len(lengths), most, device=lengths.device) * (lengths - span + 1).clamp_min(1)[:, None]
    starts = starts.floor()[:, :, None]  # [B, spans, 1]
    drawn = (torch.arange(most, device=lengths.device) < count[:, None]) & (lengths > span)[:, None]
    place = torch.arange(size, device=lengths.device)
    covered = (place >= starts) & (place < starts + span) & drawn[:, :, None]  # [B, spans, size]
    return covered.any(1) & (place < lengths[:, None])
