"""What stands in for CUDA: its casts, its operations."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.steps.cuda_rules import cuda_rules
from benchmarks.steps.operations import OperationCounter


@pytest.fixture
def counter():
    with FakeTensorMode(), cuda_rules(), OperationCounter() as counter:
        yield counter


def names(counter) -> list[str]:
    return [name for *_, name in counter.counts]


def test_norms_and_sums_are_fp32_under_autocast(counter):
    half = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    for function in (nn.LayerNorm(8), nn.GroupNorm(3, 3), nn.Softmax(-1), torch.Tensor.sum, torch.Tensor.square):
        with torch.autocast("cpu", torch.bfloat16):
            assert function(half).dtype == torch.float32
    assert half.square().dtype == half.sum().dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.Linear(8, 4)(half.float()).dtype == torch.bfloat16
        assert nn.functional.gelu(half).dtype == torch.bfloat16


def test_dropout_is_one_operation_each_way(counter):
    layer, inputs = nn.Dropout(0.1), torch.empty(1000, requires_grad=True)
    layer(inputs).backward(torch.empty(1000))
    assert names(counter) == ["native_dropout", "native_dropout_backward"]
    assert counter.counts["", "", "native_dropout"].bytes == 4000 + 4000 + 1000  # a mask of bytes
    counter.counts.clear()
    assert layer.eval()(inputs) is inputs and not counter.counts


def test_attention_takes_the_kernel_that_can_read_its_mask(counter):
    query = torch.empty(2, 4, 20, 16, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.empty(2, 1, 20, 20, dtype=torch.bool)
    attend = nn.functional.scaled_dot_product_attention
    whole, statistics = 2 * query.numel(), 4 * 2 * 4 * 20
    attend(query, query.detach(), query.detach().clone(), dropout_p=0.1)
    flash = counter.counts["", "", "_scaled_dot_product_flash_attention"]
    assert 4 * whole + statistics <= flash.bytes <= 4 * whole + statistics + 100
    output = attend(query, query.detach(), query.detach().clone(), mask)
    efficient = counter.counts["", "", "_scaled_dot_product_efficient_attention"]
    bias = 2 * 2 * 20 * 24  # rows padded to a multiple of 8
    assert 4 * whole + statistics <= efficient.bytes <= 4 * whole + 2 * statistics + bias + 100
    output.sum().backward()
    assert "_scaled_dot_product_efficient_attention_backward" in names(counter)
    single = query.detach().float()
    counter.counts.clear()
    assert attend(single, single, single).dtype == torch.float32
    assert names(counter) == ["_scaled_dot_product_efficient_attention"]
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(single, single, single).dtype == torch.bfloat16


def test_the_host_is_told_no_and_clipping_takes_all_tensors_at_once(counter):
    assert not torch.ones(3, dtype=torch.bool).all()
    parameters = [nn.Parameter(torch.zeros(5)) for _ in range(20)]
    for parameter in parameters:
        parameter.grad = torch.zeros(5)
    counter.counts.clear()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert sum(count.operations for count in counter.counts.values()) < 20
