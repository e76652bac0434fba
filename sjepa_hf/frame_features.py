"""Frame features of the first phase's mixture: MFCC or log-mel bands, with deltas and delta-deltas, for each frame."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from .float32 import without_autocast
from .frames import HOP, SAMPLING_RATE, WINDOW, clip_mean, real_frames


NUM_MELS = 23
NUM_COEFFICIENTS = 13
POWER_FLOOR = 1e-10
TOP_DB = 80.0  # mel powers lower than this under the clip's loudest one are raised to it, as in torchaudio's MFCC


class MfccFeatures(nn.Module):
    """MFCC with deltas and delta-deltas, 39 values per frame (S-JEPA, first phase).

    The values are those of `torchaudio.transforms.MFCC` (16 kHz, 13 coefficients, 23 mel bands, 25 ms window, 20 ms
    hop) and `torchaudio.functional.compute_deltas`, applied once and twice, on *each clip alone*: neither other clips
    nor padding reach the deltas, which repeat the last frame, or the floor 80 dB under the loudest mel power, which
    torchaudio would take over a whole `(batch_size, num_samples)` input. Frames are exactly the encoder's, over the
    same samples; the released code centres them on multiples of the hop, 12.5 ms earlier. Always computed in float32.

    Args:
        subtract_mean (`bool`): subtract each clip's own mean, which takes off much of speaker and channel; frames of
            digital silence do not count in it.

    Buffers (not saved):
        window `(400,)`, mel_bands `(201, 23)`, cosines `(23, 13)`.
    """

    num_features = 3 * NUM_COEFFICIENTS
    window: torch.Tensor
    mel_bands: torch.Tensor
    cosines: torch.Tensor

    def __init__(self, subtract_mean: bool = False):
        super().__init__()
        self.subtract_mean = subtract_mean
        mel_bands = mel_filter_bank(WINDOW // 2 + 1, NUM_MELS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk")
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mel_bands", torch.as_tensor(mel_bands, dtype=torch.float32), persistent=False)
        self.register_buffer("cosines", _cosines(), persistent=False)

    @torch.no_grad()
    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the features of a batch.

        Args:
            input_values: waveforms `(batch_size, num_samples)` at 16 kHz, at least 400 samples.
            lengths: integers `(batch_size,)`, real samples of each clip; None if all of them are.

        Returns:
            `(batch_size, num_frames, 39)` in float32, `num_frames` being the number of frames in `num_samples`. Frames
            beyond a clip's own are zero.

        Raises:
            ValueError: if the shapes are off or the batch is shorter than one window.
        """
        if input_values.dim() != 2 or (lengths is not None and lengths.shape != input_values.shape[:1]):
            raise ValueError(
                "input_values must have shape (batch_size, num_samples) and lengths (batch_size,), got "
                f"{tuple(input_values.shape)} and {None if lengths is None else tuple(lengths.shape)}."
            )
        batch_size, num_samples = input_values.shape
        if num_samples < WINDOW:
            raise ValueError(f"input_values must hold at least one window of {WINDOW} samples, got {num_samples}.")
        if lengths is None:
            lengths = torch.full((batch_size,), num_samples, device=input_values.device)
        with without_autocast(input_values.device):
            return self._features(input_values.float(), lengths.to(input_values.device))

    def _features(self, input_values: Tensor, lengths: Tensor) -> Tensor:
        spectrum = torch.stft(input_values, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) @ self.mel_bands  # [B, T, mels]
        real = real_frames(lengths, power.shape[1])  # [B, T]
        padding = ~real[..., None]
        power = power.masked_fill(padding, 0.0).clamp(min=POWER_FLOOR)
        decibels = 10.0 * power.log10()
        decibels = decibels.maximum(decibels.amax(dim=(1, 2), keepdim=True) - TOP_DB)
        coefficients = self._coefficients(decibels)  # [B, T, 13]
        if self.subtract_mean:
            coefficients = coefficients - clip_mean(coefficients, (power > POWER_FLOOR).any(-1))
        last_frame = (real.sum(1) - 1).clamp(min=0)
        deltas = slopes(coefficients, last_frame)
        features = torch.cat([coefficients, deltas, slopes(deltas, last_frame)], dim=-1)
        return features.masked_fill(padding, 0.0)

    def _coefficients(self, decibels: Tensor) -> Tensor:
        """`(..., 23)` -> `(..., 13)`."""
        return decibels @ self.cosines


class LogMelFeatures(MfccFeatures):
    """The 23 mel bands in decibels that MFCC are made of, with deltas and delta-deltas: 69 values per frame."""

    num_features = 3 * NUM_MELS

    def _coefficients(self, decibels: Tensor) -> Tensor:
        return decibels


# What the frozen mixture of phase 1 can be over, by the names of `phase1_features`.
FRAME_FEATURES = {
    "mfcc": MfccFeatures,
    "mfcc_cmn": partial(MfccFeatures, subtract_mean=True),
    "log_mel": LogMelFeatures,
}


def num_features(name: str) -> int:
    """Values per frame of one of `FRAME_FEATURES`."""
    return FRAME_FEATURES[name]().num_features


def _cosines() -> Tensor:
    """Orthonormal DCT-II from mel bands to cepstral coefficients, `(23, 13)`; in float32, as torchaudio makes it."""
    bands, coefficients = torch.arange(float(NUM_MELS))[:, None], torch.arange(float(NUM_COEFFICIENTS))
    cosines = torch.cos(math.pi / NUM_MELS * (bands + 0.5) * coefficients)
    cosines[:, 0] *= math.sqrt(0.5)
    return cosines * math.sqrt(2 / NUM_MELS)


def slopes(features: Tensor, last_frame: Tensor) -> Tensor:
    """
    Regression slope over 5 frames, `(batch_size, num_frames, D)`; a clip's end frames repeat beyond its ends.

    Args:
        features: `(batch_size, num_frames, D)`.
        last_frame: integers `(batch_size,)`, the last real frame of each clip.
    """
    frames = torch.arange(features.shape[1], device=features.device)

    def shifted(by: int) -> Tensor:
        index = (frames + by).clamp(min=0).minimum(last_frame[:, None])  # [B, T]
        return features.gather(1, index[..., None].expand_as(features))

    return (shifted(1) - shifted(-1) + 2.0 * (shifted(2) - shifted(-2))) / 10.0
