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
    `(batch_size, num_frames)`. Compares products, since OpenVINO turns this integer division into a real one.
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
