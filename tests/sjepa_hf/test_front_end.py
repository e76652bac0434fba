"""The convolutions of the waveform front end are those of the library."""

import pytest
import torch

from sjepa_hf.front_end import strided_convolution


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (2, 2), (10, 5), (4, 1), (1, 1), (5, 3), (2, 3), (3, 4)])
@pytest.mark.parametrize("length", [23, 24, 25, 26])
def test_strided_convolution_and_its_gradients(kernel_size, stride, length):
    hidden_states = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, kernel_size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv1d(hidden_states.mT, weight, bias, stride).mT
    found = strided_convolution(hidden_states, weight, bias, stride)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    inputs = (hidden_states, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
