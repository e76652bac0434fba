"""Effective rank and entropy, beside what their formulas give in float64."""

import numpy as np
import pytest
import torch
from apple_gpu import AppleGpu

from sjepa_hf.measures import effective_rank, entropy_bits


def naive_rank(features: np.ndarray) -> float:
    """The formula of Roy & Vetterli, term by term: singular values are roots of the covariance's eigenvalues."""
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    values = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
    return float(np.exp(-sum(p * np.log(p) for p in values / values.sum() if p > 0)))


def naive_entropy(row: np.ndarray) -> float:
    return -sum(p * np.log2(p) for p in row.astype(np.float64) if p > 0)


@pytest.mark.parametrize(("frames", "decay", "shift"), [(300, 0, 0), (300, 0.5, 100), (10, 0.1, 3)])
def test_effective_rank_is_the_formula_s(frames, decay, shift, size=24):
    rng = np.random.default_rng(frames + size)
    features = rng.normal(size=(frames, size)) * np.exp(-decay * np.arange(size)) @ rng.normal(size=(size, size))
    features = (features + shift).astype(np.float32)
    assert effective_rank(torch.from_numpy(features)).item() == pytest.approx(naive_rank(features), rel=1e-4)


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


def test_effective_rank_of_constant_features_is_one():
    assert effective_rank(torch.ones(100, 8)).item() == 1


def test_effective_rank_of_what_is_not_finite_is_nan():
    features = torch.randn(100, 8)
    features[3, 2] = torch.inf
    assert effective_rank(features).isnan()


def test_effective_rank_is_measured_in_fp32_under_autocast():
    features = torch.randn(200, 16) * torch.logspace(0, -3, 16)
    plain = effective_rank(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert effective_rank(features) == plain and effective_rank(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("broken", [False, True])
def test_an_apple_gpu_gives_the_effective_rank_too(broken):
    features = torch.randn(100, 8)
    features[3, 2] = torch.inf if broken else 0
    with AppleGpu():
        found = effective_rank(features.to("mps:0"))
    assert found.device.type == "mps"
    torch.testing.assert_close(found.cpu(), effective_rank(features), equal_nan=True)


def test_entropy_is_the_formula_s():
    rows = np.random.default_rng(0).dirichlet(np.full(12, 0.2), size=(4, 5)).astype(np.float32)
    wanted = np.array([[naive_entropy(row) for row in clip] for clip in rows])
    np.testing.assert_allclose(entropy_bits(torch.from_numpy(rows)).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_entropy_of_certain_and_of_even_rows():
    probabilities = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert entropy_bits(probabilities).tolist() == pytest.approx([0.0, 1.0, 2.0])
