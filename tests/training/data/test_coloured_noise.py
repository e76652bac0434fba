"""Coloured noise: as loud and as coloured as it says, and the same for the same draws."""

import numpy as np
import pytest
import torch

from sjepa_hf.frames import SAMPLING_RATE
from training.data import coloured_noise
from training.data.augmentation import augment
from training.data.coloured_noise import ColouredNoise, coloured


def one(num_samples: int, seed: int = 0) -> np.ndarray:
    (noise,) = coloured(1, num_samples, torch.Generator().manual_seed(seed)).numpy()
    return noise


def octave_levels(noise: np.ndarray) -> np.ndarray:
    """Decibels of power a hertz in the octaves from 62.5 Hz to 8 kHz."""
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLING_RATE)
    edges = 62.5 * 2.0 ** np.arange(8)
    inside = [(frequencies >= low) & (frequencies < 2 * low) for low in edges[:-1]]
    return 10 * np.log10([power[octave].mean() for octave in inside])


@pytest.mark.parametrize("size", [400, 1000, 16000, 100001])
def test_unit_power_at_any_length(size):
    noise = one(size, seed=size)
    assert noise.shape == (size,) and noise.dtype == np.float32
    assert np.mean(noise.astype(float) ** 2) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("tilt", [-9.0, 0.0])
def test_the_spectrum_falls_by_the_tilt(monkeypatch, tilt):
    monkeypatch.setattr(coloured_noise, "TILT_DB", (tilt, tilt))
    monkeypatch.setattr(coloured_noise, "RESONANCES", 0)
    monkeypatch.setattr(coloured_noise, "UNREST_DB", (0.0, 0.0))
    slopes = np.diff(octave_levels(one(8 * SAMPLING_RATE)))
    np.testing.assert_allclose(slopes, tilt, atol=1.0)


def test_clips_differ_in_spectrum_and_half_of_them_swell_and_fade():
    clips = coloured(40, 4 * SAMPLING_RATE, torch.Generator().manual_seed(3)).numpy()
    levels = np.stack([octave_levels(clip) for clip in clips])
    assert (levels - levels.mean(1, keepdims=True)).std(0).min() > 2, "of every octave"
    deviations = [np.std(np.log10((clip.reshape(40, -1) ** 2).mean(1))) * 10 for clip in clips]
    assert 8 <= sum(deviation > 1.5 for deviation in deviations) <= 32


def test_a_batch_is_drawn_by_its_generator_alone_and_augments():
    noise, bad = ColouredNoise(share=0.5).for_batch(5, 16000, np.random.default_rng(7))
    again, _ = ColouredNoise(share=0.5).for_batch(5, 16000, np.random.default_rng(7))
    other, _ = ColouredNoise(share=0.5).for_batch(5, 16000, np.random.default_rng(8))
    assert not bad and noise["noise"].shape == (2, 16000) and noise["noise_lengths"].tolist() == [16000] * 2
    assert torch.equal(noise["noise"], again["noise"]) and not torch.equal(noise["noise"], other["noise"])
    speech, lengths = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)), torch.tensor([16000])
    alone, _ = ColouredNoise(share=0.5).for_batch(1, 16000, np.random.default_rng(7))
    heard = augment(speech, lengths, p_mix=0.0, p_noise=1.0, **alone, generator=torch.Generator().manual_seed(1))
    ratio = 10 * torch.log10(speech.square().mean() / (heard - speech).square().mean())
    assert -5 <= ratio <= 20, "a batch of one clip has noise, too"
