"""Front ends, from samples to frames: seven convolutions over the waveform (paper, section 3), or log-mel (ours).

Both read 400 samples (25 ms) a frame with a hop of 320 (20 ms) and give the same number of frames; both norm one group
of all channels over the real samples of an utterance, so a padded batch gives each clip what it gets alone.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_sjepa import SJepaConfig
from .float32 import Float32Buffers, SJepaGroupNorm, at_least_float32, widest_float, without_autocast
from .frames import SAMPLING_RATE, clip_mean, length_mask, real_frames
from .input_checks import within_functorch


FRAMES_AT_ONCE = {"cpu": 1500, "cuda": 24000}  # of all clips together, where no gradient is asked for
WINDOWS_AT_ONCE = 2**18
SPEECH_TILT = 4.5  # nats by which the log-mel spectrum of speech falls from 0 to 8 kHz: a line through 400 clips


class SJepaFirstConvLayer(GradientCheckpointingLayer):
    """
    The convolution over samples and the group norm after it: `plain`, and `forward` with both in one product.

    The convolution is linear, so mean and variance of all that it gives, channels and frames together, follow from
    the first and second moments of the waveform's windows: `fold` makes the norm part of the weights, of each clip
    its own, and nothing but the product ever passes over the largest tensor of the model.
    """

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.kernel_size, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.conv = nn.Conv1d(1, config.conv_dim[0], self.kernel_size, stride=self.stride, bias=config.conv_bias)
        self.layer_norm = SJepaGroupNorm(config.conv_dim[0])
        self.activation = ACT2FN[config.feat_extract_activation]

    def plain(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, num_samples) -> (batch_size, sequence_length, conv_dim[0])`: convolution, then norm."""
        if is_itself(self.conv, nn.Conv1d):
            windows = waveforms.unfold(1, self.kernel_size, self.stride).contiguous()
            hidden_states = nn.functional.linear(windows, self.conv.weight[:, 0], self.conv.bias)
        else:
            hidden_states = self.conv(waveforms[:, None]).mT.contiguous()
        real = None if lengths is None else real_frames(lengths, hidden_states.shape[1], self.kernel_size, self.stride)
        return self.activation(self.layer_norm(hidden_states, real))

    def fold(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """
        Weights and biases of each clip's convolution with its norm, in fp32 (float64 for such weights).

        Args:
            waveforms (`torch.Tensor` of shape `(batch_size, num_samples)`): samples, zero where they are padding.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real samples; without it, all are.

        Returns:
            `torch.Tensor` of shape `(batch_size, kernel_size + 1, conv_dim[0])`; the bias comes last.
        """
        with without_autocast(waveforms.device):
            weight = at_least_float32(self.conv.weight[:, 0])  # [C, k]
            bias = weight.new_zeros(len(weight)) if self.conv.bias is None else at_least_float32(self.conv.bias)
            # In float64: sums over all windows of a long clip lose digits in fp32.
            exact = waveforms.to(widest_float(waveforms.device))
            moments = window_moments(exact, lengths, self.kernel_size, self.stride)
            window_mean, window_covariance = (moment.to(weight.dtype) for moment in moments)
            channel_means = (window_mean[:, None] * weight).sum(2) + bias  # [B, C]
            mean = channel_means.mean(1, keepdim=True)  # [B, 1]
            squares = (weight[:, :, None] * weight[:, None]).mean(0)  # [k, k]
            within = (window_covariance * squares).sum((1, 2))
            variance = within[:, None] + (channel_means - mean).square().mean(1, keepdim=True)
            scale = torch.rsqrt(variance + self.layer_norm.eps) * self.layer_norm.weight.to(weight.dtype)  # [B, C]
            bias = self.layer_norm.bias.to(weight.dtype) + scale * (bias - mean)
            return torch.cat([weight.mT * scale[:, None], bias[:, None]], dim=1)

    def forward(self, folded: torch.Tensor, waveforms: torch.Tensor, num_rows: int) -> torch.Tensor:
        """
        Args:
            folded (`torch.Tensor` of shape `(batch_size, kernel_size + 1, conv_dim[0])`): of `fold`.
            waveforms (`torch.Tensor` of shape `(batch_size, (num_rows - 1) * stride + kernel_size)`): samples.

        Returns:
            `torch.Tensor` of shape `(batch_size * num_rows, conv_dim[0])`, in the dtype of products.
        """
        dtype = product_dtype(self.conv.weight)
        windows = waveforms.to(dtype).unfold(1, self.kernel_size, self.stride)  # [B, num_rows, k]
        # A column of ones for the bias, and zeros up to a width that the matrix units read well.
        width = -(-folded.shape[1] // 8) * 8
        rest = [0.0] * (width - folded.shape[1])
        ones = windows.new_tensor([1.0, *rest]).expand(*windows.shape[:2], -1)
        folded = nn.functional.pad(folded.to(dtype), (0, 0, 0, len(rest)))
        return self.activation(torch.bmm(torch.cat([windows, ones], dim=2), folded).flatten(0, 1))


class SJepaConvLayer(GradientCheckpointingLayer):
    """A later convolution of the waveform front end: `plain`, and `forward` over rows of channels."""

    def __init__(self, config: SJepaConfig, layer_id: int):
        super().__init__()
        self.conv = nn.Conv1d(
            config.conv_dim[layer_id - 1],
            config.conv_dim[layer_id],
            kernel_size=config.conv_kernel[layer_id],
            stride=config.conv_stride[layer_id],
            bias=config.conv_bias,
        )
        self.activation = ACT2FN[config.feat_extract_activation]

    def plain(self, hidden_states: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, sequence_length, in_channels) -> (batch_size, new_sequence_length, out_channels)`"""
        return self.activation(self.conv(hidden_states.mT.contiguous()).mT.contiguous())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """`(num_rows, in_channels) -> (num_rows // stride, out_channels)`, as [`RowConvolution`] has them."""
        output = RowConvolution.apply(rows, self.conv.weight.to(rows.dtype), *self.conv.stride)
        if self.conv.bias is not None:
            output = output + self.conv.bias.to(rows.dtype)
        return self.activation(output)


class SJepaWaveformFrontEnd(nn.Module):
    """
    Convolutions over the waveform: `(batch_size, num_samples) -> (batch_size, sequence_length, conv_dim[-1])`.

    `plain` is what is computed, `forward` how it is computed fast. There every clip takes as many rows as its frames
    and one or two more read, so that the later convolutions read one another's rows and no clip's frames those of
    another. The norm's statistics are known before the first product: without gradients, frames are made piece by
    piece, and an hour takes no more memory than a minute.
    """

    def __init__(self, config: SJepaConfig):
        super().__init__()
        later = (SJepaConvLayer(config, i) for i in range(1, len(config.conv_dim)))
        self.conv_layers = nn.ModuleList([SJepaFirstConvLayer(config), *later])
        self.output_size = config.conv_dim[-1]
        self.receptive_field, self.hop = config.receptive_field, config.inputs_to_logits_ratio

    def plain(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        One layer after the other, as the paper has it: what `forward` is held against, what exports, and what runs
        where convolutions or norm are no longer those that were built, or inside `torch.func`.
        """
        hidden_states = input_values.to(self.conv_layers[0].conv.weight.dtype)
        for layer in self.conv_layers:
            hidden_states = layer.plain(hidden_states, lengths)
        return hidden_states

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()  # convolutions other runtimes do well
        if exporting or within_functorch() or not self.is_as_built():
            return self.plain(input_values, lengths)
        if lengths is not None:
            input_values = input_values.masked_fill(~length_mask(lengths, input_values.shape[1]), 0.0)
        folded = self.conv_layers[0].fold(input_values, lengths)
        num_frames = (input_values.shape[1] - self.receptive_field) // self.hop + 1
        at_once = max(FRAMES_AT_ONCE.get(input_values.device.type, FRAMES_AT_ONCE["cpu"]) // len(input_values), 64)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or num_frames <= at_once:
            return self.frames(folded, input_values, num_frames)
        pieces = []
        for first in range(0, num_frames, at_once):
            count = min(at_once, num_frames - first)
            read = slice(first * self.hop, (first + count - 1) * self.hop + self.receptive_field)
            pieces.append(self.frames(folded, input_values[:, read], count))
        return torch.cat(pieces, dim=1)

    def is_as_built(self) -> bool:
        """Whether the weights of convolutions and norm may be read without calling them, as `forward` does."""
        convolutions = all(is_itself(layer.conv, nn.Conv1d) for layer in self.conv_layers)
        return convolutions and is_itself(self.conv_layers[0].layer_norm, SJepaGroupNorm)

    def frames(self, folded: torch.Tensor, waveforms: torch.Tensor, num_frames: int) -> torch.Tensor:
        """All frames of `waveforms`, `(batch_size, num_frames, conv_dim[-1])`."""
        first, *later = self.conv_layers
        kernel_size, stride = first.kernel_size, first.stride
        # Every clip gets whole places of `hop` samples each, T - 1 and as many as its last frame reads. As published
        # (a frame of 400 samples every 320; kernel 10, stride 5) these are 2: T + 1 places of 64 rows each, which read
        # at most 245 samples more than T frames do.
        beyond = -(-(self.receptive_field - kernel_size + stride) // self.hop)
        allocated = num_frames - 1 + beyond
        missing = max(beyond * self.hop - stride + kernel_size - self.receptive_field, 0)  # samples, at most
        waveforms = nn.functional.pad(waveforms, (0, missing))[:, : allocated * self.hop - stride + kernel_size]
        rows = first(folded, waveforms, allocated * self.hop // stride)
        for layer in later:
            rows = layer(rows)
        return rows.unflatten(0, (-1, allocated))[:, :num_frames]


class RowConvolution(torch.autograd.Function):
    """
    Strided convolution without padding over rows of channels, as matrix products over views.

    Rows of all clips lie one after the other, so that the taps of a frame, `stride` at a time, are one row of a wider
    view: nothing is copied, forward or backward. An output whose taps reach past its clip reads the next one's rows,
    and the last such outputs lack taps: only frames that lie within their clip may be read.

    `apply(rows, weight, stride)` with `rows` `(num_rows, in_channels)`, where `num_rows` is a multiple of `stride`,
    and `weight` `(out_channels, in_channels, kernel_size)` as `nn.Conv1d` has it, of the same dtype, gives
    `(num_rows // stride, out_channels)`.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.stride = stride
        wide = rows.reshape(-1, stride * rows.shape[1])  # [N, stride * C]
        output = None
        for shift, taps in enumerate(weight.split(stride, dim=2)):
            taps = taps.permute(2, 1, 0).flatten(0, 1)  # [taps * C, O]
            read = wide[shift:, : len(taps)]
            if output is None:
                output = torch.mm(read, taps)
            else:
                output[: len(read)].addmm_(read, taps)
        return output

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        stride, (_, in_channels, _) = ctx.stride, weight.shape
        wide = rows.reshape(-1, stride * in_channels)
        grad_wide, grad_taps = None, []
        with without_autocast(gradient.device):
            for shift, taps in enumerate(weight.split(stride, dim=2)):
                num_taps = taps.shape[2]
                taps = taps.permute(0, 2, 1).flatten(1)  # [O, taps * C]
                given = gradient[: len(gradient) - shift]
                if ctx.needs_input_grad[0]:
                    if shift == 0 and num_taps == stride:
                        grad_wide = torch.mm(given, taps)
                    else:
                        grad_wide = torch.zeros_like(wide) if grad_wide is None else grad_wide
                        grad_wide[shift:, : taps.shape[1]].addmm_(given, taps)
                if ctx.needs_input_grad[1]:
                    product = torch.mm(given.mT, wide[shift:, : taps.shape[1]])  # [O, taps * C]
                    grad_taps.append(product.unflatten(1, (num_taps, in_channels)).mT)
        grad_rows = None if grad_wide is None else grad_wide.view_as(rows)
        return grad_rows, torch.cat(grad_taps, dim=2) if grad_taps else None, None


def window_moments(
    waveforms: torch.Tensor, lengths: torch.Tensor | None, kernel_size: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean `(batch_size, kernel_size)` and covariance `(batch_size, kernel_size, kernel_size)` of all windows of
    `waveforms` `(batch_size, num_samples)` that hold real samples alone: those below `lengths`, beyond which all
    samples are zero.
    """
    windows = waveforms.unfold(1, kernel_size, stride)  # [B, T, k]
    # Windows are taken less the clip's own mean: the difference of large squares would lose the digits.
    if lengths is None:
        count = waveforms.new_full((len(waveforms), 1), windows.shape[1])
        offset = waveforms.mean(1)[:, None, None]
    else:
        count = ((lengths - kernel_size) // stride + 1).clamp(min=1)[:, None].to(waveforms.dtype)  # [B, 1]
        offset = (waveforms.sum(1) / lengths.clamp(min=1))[:, None, None]

    def sums(first: int, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of windows and of their products, of those from number `first` on."""
        windows = windows - offset
        if lengths is not None:
            real = torch.arange(first, first + windows.shape[1], device=windows.device) < count
            windows = windows * real[:, :, None]
        return windows.sum(1), torch.bmm(windows.mT, windows)

    if torch.compiler.is_compiling() or windows.shape[1] <= WINDOWS_AT_ONCE:
        total, products = sums(0, windows)
    else:
        pieces = [sums(i * WINDOWS_AT_ONCE, piece) for i, piece in enumerate(windows.split(WINDOWS_AT_ONCE, 1))]
        total, products = (torch.stack(parts).sum(0) for parts in zip(*pieces, strict=True))
    mean = total / count
    covariance = products / count[:, :, None] - mean[:, :, None] * mean[:, None]
    return mean + offset[:, 0], covariance


def is_itself(module: nn.Module, kind: type[nn.Module]) -> bool:
    """
    Whether a module does nothing but what its class does: no adapter has taken its place, no hook waits for its call
    (pruning, offloading, attribution), and its weight is not a parametrization.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype in which products with a weight are formed: its own, or that of autocast."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class SJepaLogMelFrontEnd(Float32Buffers):
    """
    Log-mel frames: `(batch_size, num_samples) -> (batch_size, sequence_length, num_mel_bins)`.

    The spectrum is a product with a table of windowed cosines and sines, in fp32: it compiles and exports like any
    other layer. Energies are floored at 1e-10 before the logarithm, so that quiet recordings keep their spectrum. With
    `log_mel_cmn` each bin loses its mean over the clip, and with it what the channel adds; with `log_mel_prior_frames`
    only as much of it as the clip is long enough to tell from what is said. Padded frames are zero.

    Frames of digital silence, all of whose energies lie at the floor, are to the encoder like the quietest frame that
    is heard, and count in neither mean nor norm: at -23 nats they would move all others.

    Buffers (not saved; functions of the configuration):
        fourier (`(400, 402)`): Hann-windowed cosines and sines.
        mel_filters (`(201, num_mel_bins)`): triangular filters on the HTK mel scale, 0 to 8 kHz.
    """

    energy_floor = 1e-10
    fourier: torch.Tensor
    mel_filters: torch.Tensor

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.window_size, self.hop = config.receptive_field, config.inputs_to_logits_ratio
        self.output_size = config.num_mel_bins
        fourier, mel_filters = self.tables()
        self.register_buffer("fourier", fourier, persistent=False)
        self.register_buffer("mel_filters", mel_filters, persistent=False)
        self.subtracts_mean, self.prior_frames = config.log_mel_cmn, config.log_mel_prior_frames
        self.layer_norm = SJepaGroupNorm(config.num_mel_bins)

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two buffers, computed anew; `_init_weights` fills them in after `from_pretrained`."""
        with torch.device("cpu"):
            num_bins = self.window_size // 2 + 1
            window = torch.hann_window(self.window_size, dtype=torch.float64)
            time = torch.arange(self.window_size, dtype=torch.float64)
            angles = 2 * math.pi / self.window_size * time[:, None] * torch.arange(num_bins)
            fourier = window[:, None] * torch.cat([angles.cos(), angles.sin()], dim=1)
            mel_filters = mel_filter_bank(
                num_bins, self.output_size, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk"
            )
            return fourier.float(), torch.from_numpy(mel_filters).float()

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(input_values.device):
            # Contiguous, so that `torch.export` need not know whether the windows overlap.
            waveform = input_values.to(self.fourier.dtype)
            frames = waveform.unfold(1, self.window_size, self.hop).contiguous()  # [B, T, 400]
            cosine, sine = (frames @ self.fourier).chunk(2, dim=-1)
            energy = (cosine.square() + sine.square()) @ self.mel_filters  # [B, T, num_mel_bins]
            heard = (energy > self.energy_floor).any(-1)  # [B, T]
            log_mel = energy.clamp_min(self.energy_floor).log()
            real = torch.ones_like(heard)
            if lengths is not None:
                real = real_frames(lengths, heard.shape[1], self.window_size, self.hop)
            log_mel, counted = self.without_silence(log_mel, heard & real, real)
            if self.subtracts_mean:
                log_mel = log_mel - self.channel(log_mel, counted)
            normed = self.layer_norm(log_mel, counted)
            if lengths is None:
                return normed
            # Where a clip has a single frame, or equal ones, its padding would be beyond the range of fp16.
            return normed.masked_fill(~real[:, :, None], 0.0)

    @staticmethod
    def without_silence(
        log_mel: torch.Tensor, heard: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `log_mel` with the quietest frame that is `heard` in place of those that are not, and which frames count in the
        clip's mean and norm, all masks bool `(batch_size, sequence_length)`: those that are heard, or all `real` ones
        if none is.
        """
        counted = heard | real & ~heard.any(1, keepdim=True)
        level = log_mel.sum(-1).masked_fill(~counted, torch.inf)
        quietest = log_mel.gather(1, level.argmin(1)[:, None, None].expand(-1, 1, log_mel.shape[2]))  # [B, 1, C]
        return torch.where(counted[:, :, None], log_mel, quietest), counted

    def channel(self, log_mel: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """
        What the channel adds, as far as a clip tells: the mean of its `counted` frames and of `prior_frames` more of
        average speech at its level, `(batch_size, sequence_length, num_mel_bins) -> (batch_size, 1, num_mel_bins)`.
        """
        mean = clip_mean(log_mel, counted)
        if not self.prior_frames:
            return mean
        num_frames = counted.sum(1)[:, None, None].to(mean.dtype)
        tilt = SPEECH_TILT * torch.linspace(0.5, -0.5, self.output_size, dtype=mean.dtype, device=mean.device)
        average = mean.mean(2, keepdim=True) + tilt
        return mean + self.prior_frames / (num_frames + self.prior_frames) * (average - mean)


class SJepaStem(nn.Module):
    """
    Two convolutions over log-mel frames, with twice as many channels, whose output is projected and added to them.

    Hidden and padded frames are zero at its input, so that it reads visible ones alone.
    """

    def __init__(self, config: SJepaConfig):
        super().__init__()
        width, size = config.stem_kernel_size, 2 * config.num_mel_bins
        self.conv1 = nn.Conv1d(config.num_mel_bins, size, width, padding=width // 2)
        self.conv2 = nn.Conv1d(size, size, width, padding=width // 2)
        self.projection = nn.Conv1d(size, config.num_mel_bins, 1)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(
        self, log_mel: torch.Tensor, frame_mask: torch.Tensor | None, mask_time_indices: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Args:
            log_mel (`torch.Tensor` of shape `(batch_size, sequence_length, num_mel_bins)`): frames.
            frame_mask, mask_time_indices (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                True for real frames, and for hidden ones.

        Returns:
            `torch.Tensor` of the shape of `log_mel`.
        """
        if mask_time_indices is not None:
            log_mel = log_mel * ~mask_time_indices[:, :, None]
        real = None if frame_mask is None else frame_mask[:, None]  # [B, 1, T]
        channels = log_mel.mT if real is None else log_mel.mT * real
        inner = self.activation(self.conv1(channels))
        inner = self.activation(self.conv2(inner if real is None else inner * real))  # past a clip's end there is zero
        return log_mel + self.projection(inner).mT


def build_front_end(config: SJepaConfig) -> nn.Module:
    """The front end that `config.front_end` names."""
    return SJepaLogMelFrontEnd(config) if config.front_end == "log_mel" else SJepaWaveformFrontEnd(config)
