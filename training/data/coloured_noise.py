"""Coloured noise: augmentation without recordings, each clip of another spectrum and another unrest."""

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
    Gaussian noise whose spectrum falls by a random tilt and has up to four resonances, and whose loudness is steady in
    one half of the clips and wanders in the other.

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
        noises = [coloured(longest, rng) for _ in range(max(1, round(self.share * num_clips)))]
        lengths = torch.full((len(noises),), longest)
        return {"noise": torch.from_numpy(np.stack(noises)), "noise_lengths": lengths}, []


def coloured(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A clip of noise of unit power, float32 `(num_samples,)` at 16 kHz."""
    size = 1 << (num_samples - 1).bit_length()  # others transform more slowly, some a hundred times
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    octaves = np.log2(np.maximum(frequencies, FLAT_BELOW))
    decibels = rng.uniform(*TILT_DB) * octaves
    for _ in range(rng.integers(RESONANCES + 1)):
        centre, width = rng.uniform(*np.log2(RESONANCE_HZ)), rng.uniform(*RESONANCE_OCTAVES)
        decibels += rng.uniform(*RESONANCE_DB) * np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    gain = 10 ** ((decibels - decibels.max()) / 20)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * gain, size)[:num_samples]
    if rng.random() < 0.5:
        turns = max(2, round(rng.uniform(*UNREST_HZ) * num_samples / SAMPLING_RATE))
        loudness = rng.normal(0.0, rng.uniform(*UNREST_DB), turns)
        noise *= 10 ** (np.interp(np.linspace(0, turns - 1, num_samples), np.arange(turns), loudness) / 20)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
