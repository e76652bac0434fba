import pytest
import torch

from training.targets.layer_choice import LayerChoice, effective_rank


def test_golden_effective_rank(golden_targets):
    rank = effective_rank(golden_targets["erank.features"])
    torch.testing.assert_close(rank, golden_targets["erank.value"][0], atol=0, rtol=1e-5)


def test_effective_rank_counts_directions():
    basis = torch.linalg.qr(torch.randn(32, 32)).Q
    for count in (1, 4, 16):
        coefficients = torch.linalg.qr(torch.randn(2000, count) - torch.randn(count).mean()).Q
        coefficients = coefficients - coefficients.mean(0)
        coefficients = torch.linalg.qr(coefficients).Q
        assert effective_rank(coefficients @ basis[:count] + 5).item() == pytest.approx(count, rel=0.02)


def test_effective_rank_of_constant_features_is_not_nan():
    assert torch.isfinite(effective_rank(torch.ones(100, 8)))


def test_scores_start_from_the_first_measure():
    choice = LayerChoice(active=2, decay=0.5)
    assert choice.observe([10.0, 11.0, 12.0, 9.0]) is False
    assert choice.scores == [10.0, 11.0, 12.0, 9.0]
    assert choice.observe([10.0, 20.0, 12.0, 9.0]) is True
    assert choice.scores == [10.0, 15.5, 12.0, 9.0] and choice.active == 1


def test_a_single_outlier_does_not_move_a_heavily_smoothed_choice():
    choice = LayerChoice(active=1, decay=0.9)
    choice.observe([5.0, 10.0, 9.0])
    assert choice.observe([5.0, 10.0, 15.0]) is False
    assert choice.observe([5.0, 10.0, 30.0]) is True


def test_a_fixed_layer_stays():
    choice = LayerChoice(active=0, adaptive=False)
    assert choice.observe([1.0, 5.0]) is False
    assert choice.active == 0 and choice.scores == [1.0, 5.0]


def test_the_input_of_the_first_layer_is_never_chosen_by_rank():
    choice = LayerChoice(active=2)
    assert choice.observe([90.0, 20.0, 10.0]) is True
    assert choice.active == 1 and choice.scores == [90.0, 20.0, 10.0]
    assert LayerChoice(active=0).observe([90.0, 20.0, 10.0]) is True, "chosen by hand, it is left at the first measure"
