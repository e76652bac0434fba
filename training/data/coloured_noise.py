"""Coloured noise: augmentation without recordings, each clip of another spectrum and another unrest."""

import math

import numpy as np
import torch
from torch import Tensor

from sjepa_hf.frames import SAMPLING_RATE


COLOURED = "coloured"  # its name in `noise_data`

TILT_DB = (-12.0, 2.0)  # an octave: from a rumble to what is a little brighter than white
FLAT_BELOW = 40.0  # Hz
RESONANCES = 4  # at most
RESONANCE_HZ = (62.5, 8000.0)
RESONANCE_DB = (-15.0, 20.0)
RESONANCE_OCTAVES = (0.1, 0.8)  # width: deviation of a Gaussian over log-frequency
UNREST_DB = (2.0, 8.0)  # deviation of the loudness of the half of the clips that swell and fade
UNREST_HZ = (0.5, 8.0)  # how often it turns


class ColouredNoise:
    """
    What [`coloured`] makes, as noise of the batches of pretraining.

    Args:
        share (`float`): noises for a batch, as a share of its clips; there is at least one.
    """

    def __init__(self, share: float):
        self.share = share
        self.identities = [COLOURED]  # of what the noise is from, to tell whether that has changed

    def __str__(self) -> str:
        return "coloured, made without recordings"

    def for_batch(
        self, num_clips: int, longest: int, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
        """
        Draw the noise of a batch of `num_clips`, the longest of `longest` samples: `noise` float32
        `(num_noises, longest)` and `noise_lengths` `(num_noises,)`, as [`augment`] takes them; none is ever bad.
        """
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        noise = coloured(max(1, round(self.share * num_clips)), longest, generator)
        return {"noise": noise, "noise_lengths": torch.full((len(noise),), longest)}, []


def coloured(num_clips: int, num_samples: int, generator: torch.Generator) -> Tensor:
    """
    Gaussian noise at 16 kHz whose spectrum falls by a random tilt and has up to four resonances, and whose loudness is
    steady in one half of the clips and wanders in the other: float32 `(num_clips, num_samples)` of unit power, on the
    generator's device.
    """
    device = generator.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num_clips, 1, generator=generator, device=device)

    size = 1 << (num_samples - 1).bit_length()  # others transform more slowly, some a hundred times
    octaves = torch.fft.rfftfreq(size, 1 / SAMPLING_RATE, device=device).clamp(min=FLAT_BELOW).log2()
    decibels = draw(*TILT_DB) * octaves  # [N, F]
    resonances = draw(0, RESONANCES + 1).long()
    for number in range(RESONANCES):
        centre, width = draw(*map(math.log2, RESONANCE_HZ)), draw(*RESONANCE_OCTAVES)
        height = draw(*RESONANCE_DB) * (number < resonances)
        decibels += height * (-0.5 * ((octaves - centre) / width).square()).exp()
    gain = 10 ** ((decibels - decibels.amax(1, keepdim=True)) / 20)
    white = torch.randn(num_clips, size, generator=generator, device=device)
    noise = torch.fft.irfft(torch.fft.rfft(white) * gain, size)[:, :num_samples]

    turn = torch.arange(num_samples, device=device) / SAMPLING_RATE * draw(*UNREST_HZ)  # [N, S], in turns of each
    turns = int(UNREST_HZ[1] * num_samples / SAMPLING_RATE) + 2
    loudness = torch.randn(num_clips, turns, generator=generator, device=device) * draw(*UNREST_DB)
    before = turn.long()
    decibels = torch.lerp(loudness.gather(1, before), loudness.gather(1, before + 1), turn - before)
    noise = noise * 10 ** (decibels * (draw(0, 2) >= 1) / 20)
    return noise * noise.square().mean(1, keepdim=True).rsqrt()
