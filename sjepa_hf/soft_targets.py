"""Soft targets: checks of posteriors, and the divergence of a prediction from them."""

import torch
from torch import nn

from .float32 import at_least_float32
from .input_checks import values_readable


def check_posteriors(name: str, posteriors: torch.Tensor | None, shape: tuple[int, int], components: int | None):
    """Raise a ValueError where targets are no floating point `(batch_size, frames, components)`."""
    if posteriors is None:
        return
    if components is None:
        raise ValueError(f"`{name}` were given to a model without a frozen mixture (`num_frozen_components`).")
    if not posteriors.is_floating_point() or posteriors.shape != (*shape, components):
        raise ValueError(
            f"`{name}` must be floating point of shape {(*shape, components)} (batch_size, frames, components), but"
            f" are {posteriors.dtype} of shape {tuple(posteriors.shape)}."
        )


def check_distributions(name: str, rows: torch.Tensor) -> None:
    """Raise a ValueError where a row of `(N, num_components)` is no distribution, if its values can be read."""
    if values_readable(rows) and len(rows):
        total = rows.sum(-1, dtype=torch.float32)
        if (rows < 0).any() or ((total - 1).abs() > 0.01).any():  # NaN is left to the loss
            raise ValueError(f"`{name}` must be posteriors: not below 0, and 1 in sum over the components of a frame.")


def soft_target_divergence(logits: torch.Tensor, posteriors: torch.Tensor) -> torch.Tensor:
    """`KL(posteriors || softmax(logits))` of each row of `(N, num_components)`, in nats, fp32 or better: `(N,)`."""
    log_predictions = at_least_float32(logits).log_softmax(-1)
    return nn.functional.kl_div(log_predictions, posteriors.to(log_predictions.dtype), reduction="none").sum(-1)
