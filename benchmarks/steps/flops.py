"""Floating-point operations of a pretraining step, counted from the configuration, and the peaks of some devices.

A multiplication with its addition counts as two. Counted are convolutions and matrix products, which is what peaks
are quoted for; norms, activations, softmax, optimizer and Fourier transforms are not. What a backward pass computes a
second time to save memory counts once: the utilisation is that of Chowdhery et al. 2022 (PaLM, appendix B).
"""

import re
from collections import Counter
from typing import NamedTuple

from sjepa_hf import SJepaConfig
from sjepa_hf.frame_features import NUM_COEFFICIENTS, NUM_MELS
from sjepa_hf.frames import WINDOW


# Dense bf16 operations per second with fp32 accumulation (half of what is quoted "with sparsity"), by what the name
# of the device must match. From NVIDIA's data sheets; GeForce: the Ampere GA102 and Ada architecture white papers.
BF16_PEAKS = {
    r"\bH200 NVL\b": 835e12,
    r"\bH100 NVL\b": 835e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bH[12]00\b": 989e12,  # SXM
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bL4\b": 121e12,
    r"\bRTX 4090$": 165e12,
    r"\bRTX 3090$": 71e12,
}


def bf16_peak(device_name: str) -> float | None:
    """Peak of a device by its name (`torch.cuda.get_device_name()`), in operations per second; None if not known."""
    return next((peak for pattern, peak in BF16_PEAKS.items() if re.search(pattern, device_name)), None)


class BatchShape(NamedTuple):
    """
    What the arithmetic of a step depends on beside the configuration.

    Attributes:
        clips: clips in the batch.
        samples: samples of each, padding included.
        masked: masked frames of all clips: those that the predictor's last part and the cluster head read.
        visible: visible frames of all clips that the loss reads too (0 late in phase 2).
        encoded: frames a clip that the student's Transformer layers run over; None: all of them.
    """

    clips: int
    samples: int
    masked: int
    visible: int
    encoded: int | None = None


def step_flops(config: SJepaConfig, shape: BatchShape, teacher_layers: int | None) -> dict[str, int]:
    """
    Operations of each part of one step.

    Args:
        config: the model, `num_mixture_components` and `mixture_feature_size` included.
        shape: the batch.
        teacher_layers: Transformer layers that the EMA encoder runs; None in phase 1, where targets come from MFCC.

    Returns:
        Forward parts of the student by name, then `"backward"`, `"EMA encoder"` or `"MFCC"`, and `"mixture"`.
    """
    frames, hidden = config.num_frames(shape.samples), config.hidden_size
    rows, encoded = shape.clips * frames, shape.encoded or frames
    parts = encoder_flops(config, shape.clips, shape.samples, config.num_hidden_layers, encoded)
    inner = config.predictor_intermediate_size
    last = layer_flops(shape.clips, frames, hidden, inner, rows_read=shape.masked).total()
    earlier = layer_flops(shape.clips, frames, hidden, inner).total() * (config.predictor_num_hidden_layers - 1)
    parts["predictor"] = earlier + last + linear(shape.masked, hidden, hidden)
    read = shape.masked + shape.visible
    parts["cluster head"] = 2 * linear(read, hidden, hidden) + linear(read, hidden, config.num_mixture_components)
    # Gradients of weights and of inputs cost a forward pass each, but nothing flows into the waveform.
    parts["backward"] = 2 * parts.total() - without_input_gradient(config, shape)
    products = linear(rows, 2 * config.mixture_feature_size, config.num_mixture_components)
    if teacher_layers is None:
        parts["MFCC"] = linear(rows, WINDOW // 2 + 1, NUM_MELS) + linear(rows, NUM_MELS, NUM_COEFFICIENTS)
        parts["mixture"] = products
    else:
        parts["EMA encoder"] = encoder_flops(config, shape.clips, shape.samples, teacher_layers, frames).total()
        parts["mixture"] = 2 * products  # scores, then statistics
    return dict(parts)


def encoder_flops(config: SJepaConfig, clips: int, samples: int, num_layers: int, encoded: int) -> Counter:
    """Operations of the encoder's forward pass, its layers running over `encoded` frames of each clip."""
    frames, hidden = config.num_frames(samples), config.hidden_size
    kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    convolved = clips * (frames + 1 - kernel % 2)  # an even kernel makes a frame too many
    width = config.num_mel_bins if config.front_end == "log_mel" else config.conv_dim[-1]
    parts = Counter()
    parts["front end"] = sum(front_end_flops(config, clips, samples))
    parts["feature projection"] = linear(clips * frames, width, hidden)
    parts["positional convolution"] = linear(convolved, kernel * hidden // groups, hidden)
    for part, flops in layer_flops(clips, encoded, hidden, config.intermediate_size).items():
        parts[part] = num_layers * flops
    return parts


def front_end_flops(config: SJepaConfig, clips: int, samples: int) -> list[int]:
    """Operations of each convolution, or of the Fourier and the mel table."""
    if config.front_end == "log_mel":
        window, frames = config.receptive_field, clips * config.num_frames(samples)
        bins = window // 2 + 1
        return [linear(frames, window, 2 * bins), linear(frames, bins, config.num_mel_bins)]
    flops, channels = [], 1
    for width, stride, kernel in zip(config.conv_dim, config.conv_stride, config.conv_kernel, strict=True):
        samples = (samples - kernel) // stride + 1
        flops.append(linear(clips * samples, kernel * channels, width))
        channels = width
    return flops


def without_input_gradient(config: SJepaConfig, shape: BatchShape) -> int:
    """What twice the forward pass counts too much in backward: all of the fixed tables, half of the first layer."""
    front_end = front_end_flops(config, shape.clips, shape.samples)
    return 2 * sum(front_end) if config.front_end == "log_mel" else front_end[0]


def layer_flops(clips: int, frames: int, hidden: int, inner: int, rows_read: int | None = None) -> Counter:
    """A Transformer layer over `(clips, frames, hidden)`; after the attention, only `rows_read` frames go on."""
    rows = clips * frames
    rows_read = rows if rows_read is None else rows_read
    return Counter(
        {
            "attention projections": 3 * linear(rows, hidden, hidden) + linear(rows_read, hidden, hidden),
            "attention products": 2 * clips * linear(frames, hidden, frames),
            "feed-forward": 2 * linear(rows_read, hidden, inner),
        }
    )


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A product `(rows, inputs) @ (inputs, outputs)`."""
    return 2 * rows * inputs * outputs
