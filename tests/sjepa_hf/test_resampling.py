"""Resampling to 16 kHz: tones stay tones, what 16 kHz cannot hold goes, and the values are torchaudio's."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sjepa_hf import resampling
from sjepa_hf.resampling import resample


RATES = [1000, 8000, 11025, 22050, 44056, 44100, 47999, 48000, 96000]


@pytest.mark.parametrize("rate", RATES)
def test_the_values_are_those_of_torchaudio(rate):
    """In float64: in float32 it rounds the places of the samples, and is off by up to 1e-4."""
    transforms = pytest.importorskip("torchaudio.transforms")
    samples = np.random.default_rng(0).standard_normal(2 * rate + 7).astype(np.float32)
    ratio = Fraction(rate, 16000).limit_denominator(640)
    exact = transforms.Resample(ratio.numerator, ratio.denominator, dtype=torch.float64)
    found = resample(samples, rate)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact(torch.from_numpy(samples).double()), atol=2e-6)


@pytest.mark.parametrize("rate", RATES[1:])
def test_a_tone_keeps_its_pitch_and_loudness(rate):
    samples = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    found = resample(samples, rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16000)
    np.testing.assert_allclose(found[500:15500], expected[500:15500], atol=0.06 if rate == 47999 else 3e-3)


def test_what_16_khz_cannot_hold_is_filtered_out():
    samples = np.sin(2 * np.pi * 12000 * np.arange(48000) / 48000).astype(np.float32)
    assert np.abs(resample(samples, 48000)[100:-100]).max() < 0.01


@pytest.mark.parametrize("rate", [11025, 48000, 2_000_000])
def test_a_clip_in_pieces_is_the_whole_one(rate, monkeypatch):
    samples = np.random.default_rng(0).standard_normal(20 * 1000 + 7).astype(np.float32)
    whole = resample(samples, rate)
    monkeypatch.setattr(resampling, "PIECE", 1000)
    np.testing.assert_allclose(resample(samples, rate), whole, atol=1e-6)


def test_lengths_and_what_stays_as_it_is():
    for rate, length in [(8000, 0), (8000, 1), (44100, 44100), (48000, 10), (11025, 11026)]:
        assert len(resample(np.ones(length, np.float32), rate)) == -(-length * 16000 // rate)
    samples = np.ones(100, np.float32)
    assert resample(samples, 16000) is samples and resample(samples, 16001) is samples, "within 1 in 1000"
    reversed_doubles = np.random.default_rng(0).standard_normal(100)[::-1]
    np.testing.assert_array_equal(
        resample(reversed_doubles, 8000), resample(reversed_doubles.astype(np.float32), 8000)
    )
    assert resample(np.ones(50_000_001, np.float32)[::50], 8000).shape == (2000002,)
