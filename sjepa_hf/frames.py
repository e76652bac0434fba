"""Frames: of audio at 16 kHz, the encoder makes one for each 25 ms, every 20 ms. The one place of these numbers.

They follow from the convolutions of the published configuration (`SJepaConfig.receptive_field`,
`inputs_to_logits_ratio`), which all models that can be trained here share. The encoder itself takes them from
its configuration instead.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor


SAMPLING_RATE = 16_000  # Hz
WINDOW = 400  # samples that a frame reads, 25 ms
HOP = 320  # samples from one frame to the next, 20 ms
FRAMES_PER_SECOND = SAMPLING_RATE / HOP
FRAME_SECONDS = HOP / SAMPLING_RATE  # from one frame to the next
FIRST_EDGE = (WINDOW - HOP) / 2 / SAMPLING_RATE  # seconds to where the first frame's 20 ms around its centre begin
MIN_SAMPLES = WINDOW  # of a clip: one frame

Lengths = TypeVar("Lengths", int, np.ndarray, Tensor)


def frame_lengths(lengths: Lengths) -> Lengths:
    """Frames that fit into `lengths` samples: 0 below 400. A number, or integers of any shape."""
    frames = (lengths - WINDOW) // HOP + 1
    return frames * (frames > 0)


def frame_centres(count: int) -> np.ndarray:
    """Seconds from a clip's start to the centre of each of its first `count` frames, `(count,)` in float64."""
    return (np.arange(count) * HOP + WINDOW / 2) / SAMPLING_RATE


def samples_read(config: Any, num_frames: int = 1) -> int:
    """Samples that `num_frames` frames in a row read, by an encoder's `conv_kernel` and `conv_stride`."""
    samples = num_frames
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def check_frames(config: Any, name: str) -> None:
    """
    Raise a ValueError for an encoder with other frames, by its `conv_kernel` and `conv_stride`: targets and the times
    of units would not be those of its frames.
    """
    window, hop = samples_read(config), math.prod(config.conv_stride)
    if (window, hop) != (WINDOW, HOP):
        raise ValueError(
            f"{name} makes frames of {window} samples every {hop} (`conv_kernel`, `conv_stride`), but targets and"
            f" units are made for {WINDOW} every {HOP}: take an encoder with such frames."
        )


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Which of `size` frames, or samples, are within clips of `lengths` `(batch_size,)`: bool `(batch_size, size)`."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def real_frames(samples: Tensor, num_frames: int, window: int = WINDOW, hop: int = HOP) -> Tensor:
    """
    Which of `num_frames` frames, of `window` samples every `hop`, lie within clips of `samples` `(batch_size,)`: bool
    `(batch_size, num_frames)`. No quotient is compared: OpenVINO takes such a one for that of real numbers.
    """
    return torch.arange(num_frames, device=samples.device) * hop <= samples[:, None] - window


def clip_mean(frames: Tensor, counted: Tensor) -> Tensor:
    """
    Mean over the frames of each clip that are `counted` (bool, `(batch_size, sequence_length)`), 0 where none is:
    `(batch_size, sequence_length, C) -> (batch_size, 1, C)`.
    """
    total = frames.masked_fill(~counted[:, :, None], 0.0).sum(1, keepdim=True)
    return total / counted.sum(1).clamp(min=1)[:, None, None]


def real_samples(attention_mask: Tensor) -> Tensor:
    """How many samples of each clip are real, int64 `(batch_size,)`, for `attention_mask` of any dtype."""
    return attention_mask.bool().sum(-1)  # fp16 counts to 65,504


def nothing_padded(attention_mask: Tensor) -> bool:
    """Whether a mask marks no padding and can be left out; False where its values are not at hand."""
    return at_hand(attention_mask) and bool(attention_mask.all())


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
    """Raise a ValueError for NaN or infinite samples, and for padding before real ones, where they are at hand."""
    if attention_mask is not None:
        check_right_padded(attention_mask)
    if at_hand(input_values) and not input_values.isfinite().all():
        raise ValueError("`input_values` hold NaN or infinite samples: leave such clips out, or mend them.")


def check_right_padded(attention_mask: Tensor) -> None:
    """Raise a ValueError for a mask `(batch_size, num_samples)` with padding before a real sample, if at hand."""
    if at_hand(attention_mask) and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("`attention_mask` has padding before real samples: pad clips on the right.")


def at_hand(values: Tensor, may_wait: bool = False) -> bool:
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
