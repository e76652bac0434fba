"""Front ends, from samples to frames: seven convolutions over the waveform (paper, section 3), or log-mel (ours).

Both read 400 samples (25 ms) a frame with a hop of 320 (20 ms) and give the same number of frames; both norm one group
of all channels over the real samples of an utterance, so a padded batch gives each clip what it gets alone.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.audio_utils import mel_filter_bank

from .configuration_sjepa import SJepaConfig
from .float32 import Float32Buffers, SJepaGroupNorm, without_autocast
from .gradient_checkpointing import CheckpointedLayer


def strided_convolution(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int
) -> torch.Tensor:
    """
    One-dimensional convolution of channels that lie side by side in memory, as matrix products: `stride` taps at a
    time read frames that lie side by side too. Forward and backward take two thirds of the time of `conv1d` in fp32
    and two fifths in bf16 (on a CPU, 512 channels), which would transpose its input and its gradient.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, in_channels)`): input.
        weight (`torch.Tensor` of shape `(out_channels, in_channels, kernel_size)`): as `nn.Conv1d` has it.

    Returns:
        `torch.Tensor` of shape `(batch_size, (sequence_length - kernel_size) // stride + 1, out_channels)`.
    """
    if torch.compiler.is_exporting():  # the lengths below are too much for its symbolic shapes
        hidden_states = hidden_states.transpose(1, 2).contiguous()
        return nn.functional.conv1d(hidden_states, weight, bias, stride).transpose(1, 2).contiguous()
    batch_size, sequence_length, in_channels = hidden_states.shape
    kernel_size = weight.shape[-1]
    num_frames = (sequence_length - kernel_size) // stride + 1
    whole = kernel_size - kernel_size % stride  # taps in groups of `stride`; those that are left come one by one
    output = None
    for first in (*range(0, whole, stride), *range(whole, kernel_size)):
        if first < whole:
            taps = weight[:, :, first : first + stride].transpose(1, 2).flatten(1)
            rows = hidden_states[:, first : first + num_frames * stride]
            rows = rows.reshape(batch_size, num_frames, stride * in_channels)
        else:
            taps = weight[:, :, first]
            rows = hidden_states[:, first : first + (num_frames - 1) * stride + 1 : stride]
        product = nn.functional.linear(rows, taps, bias if first == 0 else None)
        output = product if output is None else output + product
    return output


class SJepaConvLayer(CheckpointedLayer):
    """One convolution of the waveform front end; the first one is followed by the group norm."""

    def __init__(self, config: SJepaConfig, layer_id: int):
        super().__init__()
        in_channels = config.conv_dim[layer_id - 1] if layer_id > 0 else 1
        self.conv = nn.Conv1d(
            in_channels,
            config.conv_dim[layer_id],
            kernel_size=config.conv_kernel[layer_id],
            stride=config.conv_stride[layer_id],
            bias=config.conv_bias,
        )
        self.layer_norm = SJepaGroupNorm(config.conv_dim[0]) if layer_id == 0 else None
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """`(batch_size, sequence_length, in_channels) -> (batch_size, new_sequence_length, out_channels)`"""
        (kernel_size,), (stride,) = self.conv.kernel_size, self.conv.stride
        if self.layer_norm is None:
            hidden_states = strided_convolution(hidden_states, self.conv.weight, self.conv.bias, stride)
        else:
            windows = hidden_states[:, :, 0].unfold(1, kernel_size, stride).contiguous()  # [B, T, kernel_size]
            hidden_states = nn.functional.linear(windows, self.conv.weight[:, 0], self.conv.bias)
            if lengths is not None:
                lengths = (lengths - kernel_size) // stride + 1
            hidden_states = self.layer_norm(hidden_states, lengths)
        return self.activation(hidden_states)


class SJepaWaveformFrontEnd(nn.Module):
    """Convolutions over the waveform: `(batch_size, num_samples) -> (batch_size, sequence_length, conv_dim[-1])`."""

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.conv_layers = nn.ModuleList([SJepaConvLayer(config, i) for i in range(len(config.conv_dim))])
        self.output_size = config.conv_dim[-1]

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = input_values[:, :, None].to(self.conv_layers[0].conv.weight.dtype)  # [B, S, 1]
        for conv_layer in self.conv_layers:
            hidden_states = conv_layer(hidden_states, lengths)
        return hidden_states


class SJepaLogMelFrontEnd(Float32Buffers):
    """
    Log-mel frames: `(batch_size, num_samples) -> (batch_size, sequence_length, num_mel_bins)`.

    The spectrum is a product with a table of windowed cosines and sines, in fp32: it compiles and exports like any
    other layer. Energies are floored at 1e-10 before the logarithm, so that quiet recordings keep their spectrum.

    Buffers (not saved; functions of the configuration):
        fourier (`(400, 402)`): Hann-windowed cosines and sines.
        mel_filters (`(201, num_mel_bins)`): triangular filters on the HTK mel scale, 0 to 8 kHz.
    """

    energy_floor = 1e-10

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.window_size, self.hop = config.receptive_field, config.inputs_to_logits_ratio
        self.output_size = config.num_mel_bins
        fourier, mel_filters = self.tables()
        self.register_buffer("fourier", fourier, persistent=False)
        self.register_buffer("mel_filters", mel_filters, persistent=False)
        self.layer_norm = SJepaGroupNorm(config.num_mel_bins)

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two buffers, computed anew; `_init_weights` fills them in after `from_pretrained`."""
        with torch.device("cpu"):
            num_bins = self.window_size // 2 + 1
            window = torch.hann_window(self.window_size, dtype=torch.float64)
            time = torch.arange(self.window_size, dtype=torch.float64)
            angles = 2 * math.pi / self.window_size * time[:, None] * torch.arange(num_bins)
            fourier = window[:, None] * torch.cat([angles.cos(), angles.sin()], dim=1)
            mel_filters = mel_filter_bank(num_bins, self.output_size, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
            return fourier.float(), torch.from_numpy(mel_filters).float()

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(input_values.device):
            # Contiguous, so that `torch.export` need not know whether the windows overlap.
            waveform = input_values.to(self.fourier.dtype)
            frames = waveform.unfold(1, self.window_size, self.hop).contiguous()  # [B, T, 400]
            cosine, sine = (frames @ self.fourier).chunk(2, dim=-1)
            energy = (cosine.square() + sine.square()) @ self.mel_filters  # [B, T, num_mel_bins]
            log_mel = energy.clamp_min(self.energy_floor).log()
            if lengths is not None:
                lengths = (lengths - self.window_size) // self.hop + 1
            return self.layer_norm(log_mel, lengths)


def build_front_end(config: SJepaConfig) -> nn.Module:
    """The front end that `config.front_end` names."""
    return SJepaLogMelFrontEnd(config) if config.front_end == "log_mel" else SJepaWaveformFrontEnd(config)
