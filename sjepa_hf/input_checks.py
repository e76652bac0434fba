"""Input checks: a sentence for a batch or a mask of another shape, type or kind of values than the models take."""

from typing import Any

import torch
from torch import Tensor

from .frames import SAMPLING_RATE


def check_input(config: Any, input_values: Tensor, attention_mask: Tensor | None) -> None:
    """Raise a ValueError that names what is wrong with the shape or type of a batch."""
    if input_values.ndim != 2:
        raise ValueError(
            f"`input_values` must have shape (batch_size, num_samples), but has {tuple(input_values.shape)}:"
            " give mono waveforms, without a channel dimension."
        )
    if not input_values.is_floating_point():
        raise ValueError(
            f"`input_values` must be floating point samples in [-1, 1], but is {input_values.dtype}:"
            " divide 16-bit samples by 32768."
        )
    window = config.receptive_field
    if input_values.shape[1] < window:
        raise ValueError(
            f"`input_values` holds clips of {input_values.shape[1]} samples, but one frame reads {window}"
            f" ({1000 * window / SAMPLING_RATE:.0f} ms at 16 kHz): leave such clips out or pad."
        )
    if attention_mask is not None and attention_mask.shape != input_values.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_values`, {tuple(input_values.shape)}, but has"
            f" {tuple(attention_mask.shape)}: it marks samples, not frames."
        )


def check_values(input_values: Tensor, attention_mask: Tensor | None) -> None:
    """Raise a ValueError for NaN or infinite samples, and for padding before real ones, where they can be read."""
    if attention_mask is not None:
        check_right_padded(attention_mask)
    if values_readable(input_values) and not input_values.isfinite().all():
        raise ValueError("`input_values` hold NaN or infinite samples: leave such clips out, or mend them.")


def check_right_padded(attention_mask: Tensor) -> None:
    """Raise a ValueError where a mask `(batch_size, num_samples)` that can be read has padding before real samples."""
    if values_readable(attention_mask) and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("`attention_mask` has padding before real samples: pad clips on the right.")


def check_mask(name: str, mask: Tensor, shape: tuple[int, int], what: str) -> None:
    """Raise a ValueError where a mask is not bool of `shape`, `(batch_size, what)`."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"`{name}` must be bool of shape {tuple(shape)} (batch_size, {what}), but is {mask.dtype} of shape"
            f" {tuple(mask.shape)}."
        )


def nothing_padded(attention_mask: Tensor) -> bool:
    """Whether a mask marks no padding and can be left out; False where its values cannot be read."""
    return values_readable(attention_mask) and bool(attention_mask.all())


def values_readable(values: Tensor, may_wait: bool = False) -> bool:
    """
    Whether values can be looked at: not while compiling or inside `torch.func`, and fake tensors have none. On a GPU,
    which is waited for, only if that is allowed.
    """
    eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing() and not within_functorch()
    reachable = not values.is_meta if may_wait else values.device.type == "cpu"
    return eager and reachable and type(values) is Tensor


def within_functorch() -> bool:
    """Whether a transform of `torch.func` is under way (`grad`, `vmap`, ...); not known while compiling."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
