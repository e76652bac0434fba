"""Measures of units, on cases that one can count."""

import numpy as np
import pytest
import torch

from training.evaluation.unit_measures import at_speed, bitrate, phone_tokens, purity, run_edits, with_noise


def test_purity_counts_the_commonest_phone_of_each_unit():
    assert purity(torch.tensor([[3.0, 0.0], [1.0, 4.0], [0.0, 2.0]])) == pytest.approx(0.7)


def test_bitrate_is_tokens_a_second_times_their_entropy():
    assert bitrate([np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 2, 2, 3])], seconds=4.0) == pytest.approx(2 * 2)
    assert bitrate([np.zeros(50, int)], 1.0) == 0


def test_edits_are_of_runs():
    clean = [np.array([1, 1, 2, 3]), np.array([4, 4, 4])]
    assert run_edits(clean, [np.array([1, 2, 2, 2, 3]), np.array([4])]) == 0
    assert run_edits(clean, [np.array([1, 3]), np.array([5, 5])]) == pytest.approx(2 / 4)


def test_noise_has_the_ratio_and_speed_the_length():
    rng = np.random.default_rng(0)
    samples, noise = (rng.standard_normal(size).astype(np.float32) for size in (16000, 5000))
    added = with_noise(samples, 7 * noise, 10.0, rng) - samples
    assert 10 * np.log10(np.mean(samples**2) / np.mean(added**2)) == pytest.approx(10, abs=0.01)
    np.testing.assert_array_equal(with_noise(samples, 0 * noise, 10.0, rng), samples)
    assert len(at_speed(samples, 1.1)) == pytest.approx(16000 / 1.1, abs=1)


def test_triphones_carry_their_context():
    ends = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    tokens = phone_tokens(np.arange(24), ["A", "B", "C", "sil", "D"], ends, ["sil"])
    assert [(token.category, token.context) for token in tokens] == [("B", "A C")]
    assert tokens[0].units.tolist() == list(range(15)), "frames whose centres lie within 0 to 0.3 s"
