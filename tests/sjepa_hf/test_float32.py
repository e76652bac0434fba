import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.float32 import SJepaGroupNorm, SJepaLayerNorm


def naive(values: torch.Tensor, lengths, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Each clip's real frames through the library's group norm; padded frames with the same statistics."""
    rows = []
    for row, length in zip(values, lengths):
        real = row[:length]
        normed = (row - real.mean()) / (real.var(correction=0) + eps).sqrt()
        rows.append(normed * weight + bias)
    return torch.stack(rows)


def test_masked_group_norm_and_its_gradient_against_float64():
    norm = SJepaGroupNorm(6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    values = (torch.randn(3, 40, 6) * 3 + 1).requires_grad_()
    lengths = torch.tensor([40, 23, 1])
    direction = torch.randn(3, 40, 6)
    ours = norm(values, lengths)
    ours.mul(direction).sum().backward()
    gradients = values.grad.clone(), norm.weight.grad.clone(), norm.bias.grad.clone()
    values.grad = norm.weight.grad = norm.bias.grad = None
    expected = naive(values.double(), lengths, norm.weight, norm.bias, norm.eps)
    expected.mul(direction).sum().backward()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(gradients, (values.grad, norm.weight.grad, norm.bias.grad)):
        torch.testing.assert_close(found.double(), wanted.double(), atol=1e-4, rtol=1e-4)


def test_without_lengths_it_is_the_library_group_norm():
    norm, values = SJepaGroupNorm(6), torch.randn(2, 30, 6)
    expected = torch.nn.functional.group_norm(values.mT, 1, norm.weight, norm.bias, norm.eps).mT
    torch.testing.assert_close(norm(values), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(norm(values, torch.tensor([30, 30])), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_compute_in_fp32(dtype):
    values = (torch.randn(2, 8, 8) * 300).to(dtype)  # squares overflow fp16
    for norm, arguments in (
        (SJepaLayerNorm(8), ()),
        (SJepaGroupNorm(8), ()),
        (SJepaGroupNorm(8), (torch.tensor([8, 5]),)),
    ):
        normed = norm(values, *arguments)
        assert normed.dtype == dtype
        torch.testing.assert_close(normed.float(), norm(values.float(), *arguments), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 23])])
def test_norms_of_float64_keep_its_digits(lengths):
    values = torch.randn(2, 40, 6, dtype=torch.float64) * 3 + 1
    ours = SJepaGroupNorm(6).double()(values, lengths)
    expected = naive(values, [40, 40] if lengths is None else lengths, torch.ones(()), torch.zeros(()), 1e-5)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=1e-13)
    ours = SJepaLayerNorm(6).double()(values)
    torch.testing.assert_close(ours, torch.nn.functional.layer_norm(values, (6,)), atol=1e-13, rtol=1e-13)


def test_buffers_go_up_to_float64_and_never_below_fp32():
    mixture = DiagonalGaussianMixture(3, 2)
    means = mixture.means.clone()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, torch.nn.Module.half):
        cast(mixture)
        assert mixture.means.dtype == (torch.float64 if cast is torch.nn.Module.double else torch.float32)
        assert mixture.means.float().equal(means)
