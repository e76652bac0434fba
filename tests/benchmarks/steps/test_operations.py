"""Bytes and FLOP of single operations against counts by hand, and whose they are."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.steps.operations import BANDWIDTH, FULL_PRECISION, HALF_PRECISION, Count, OperationCounter


def counted(function, *tensors) -> Count:
    """The sum over the operations of a call."""
    with OperationCounter() as counter:
        function(*tensors)
    return sum(counter.counts.values(), Count())


def test_a_linear_layer_reads_input_weight_and_bias_and_writes_its_output():
    layer = nn.Linear(64, 32)
    found = counted(layer, torch.randn(10, 64))
    moved = 4 * (10 * 64 + 32 * 64 + 32 + 10 * 32)
    assert (found.flops, found.bytes, found.operations) == (2 * 10 * 64 * 32, moved, 1)
    assert found.roof == max(moved / BANDWIDTH, found.flops / FULL_PRECISION)


@pytest.mark.parametrize("dtype, peak", [(torch.float32, FULL_PRECISION), (torch.bfloat16, HALF_PRECISION)])
def test_a_large_product_takes_as_long_as_its_precision_does(dtype, peak):
    with FakeTensorMode():
        found = counted(torch.matmul, *torch.empty(2, 4096, 4096, dtype=dtype).unbind())
    assert found.roof == found.flops / peak == 2 * 4096**3 / peak


def test_its_backward_pass_is_two_products_and_a_sum():
    output = nn.Linear(64, 32)(torch.randn(10, 64, requires_grad=True))
    found = counted(output.backward, torch.randn(10, 32))
    products = (10 * 32 + 32 * 64 + 10 * 64) + (10 * 32 + 10 * 64 + 32 * 64)
    assert (found.flops, found.bytes, found.operations) == (2 * 2 * 10 * 64 * 32, 4 * (products + 10 * 32 + 32), 3)


def test_layer_norm_is_one_pass():
    found = counted(nn.LayerNorm(64), torch.randn(10, 64))
    assert found.bytes == 4 * (2 * 10 * 64 + 2 * 64 + 2 * 10)  # input, output; weight, bias; mean, deviation
    assert (found.flops, found.operations) == (0, 1)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_operation_each_way(masked):
    """CUDA's kernel, which fake tensors know on any machine."""
    heads, frames, size = 4, 32, 16
    name, attend = "_scaled_dot_product_efficient_attention", torch.ops.aten._scaled_dot_product_efficient_attention
    whole, statistics = 4 * 2 * heads * frames * size, 4 * 2 * heads * frames
    mask = 4 * 2 * frames * frames if masked else 0  # all heads read the same
    with FakeTensorMode(), OperationCounter() as counter:
        query, key, value = (torch.empty(2, heads, frames, size, requires_grad=True) for _ in range(3))
        bias = torch.empty(2, 1, frames, frames).expand(2, heads, frames, frames) if masked else None
        attend(query, key, value, bias, True)[0].backward(torch.empty(2, heads, frames, size))
    forward, backward = counter.counts["", "", name], counter.counts["", "", f"{name}_backward"]
    seed = 16  # of dropout
    assert forward.bytes == 4 * whole + statistics + mask + seed
    assert backward.bytes == 8 * whole + statistics + mask + seed  # q, k, v, output, its gradient; three gradients
    assert forward.flops == 2 * 2 * 2 * heads * frames * frames * size
    assert backward.flops == 5 * forward.flops // 2


def test_a_product_that_is_added_in_place_reads_what_it_is_added_to():
    found = counted(torch.zeros(10, 30).addmm_, torch.randn(10, 20), torch.randn(20, 30))
    assert (found.flops, found.bytes) == (2 * 10 * 20 * 30, 4 * (10 * 20 + 20 * 30 + 2 * 10 * 30))


def test_in_place_reads_and_writes():
    a, b = torch.randn(2, 100).unbind()
    assert counted(a.add_, b).bytes == 3 * 400
    assert counted(a.mul_, 2.0).bytes == 2 * 400
    assert counted(a.zero_).bytes == 400 and counted(a.copy_, b).bytes == 2 * 400
    assert counted(lambda: torch.add(a, 1.0, out=b)).bytes == 2 * 400
    assert counted(lambda: torch.zeros_like(a)).bytes == counted(lambda: a.new_zeros(100)).bytes == 400


def test_what_is_broadcast_or_overlaps_counts_with_its_memory():
    a = torch.randn(10, 100)
    assert counted(torch.add, a, torch.randn(100)).bytes == 2 * 4000 + 400
    assert counted(torch.add, a, torch.randn(100).expand(10, 100)).bytes == 2 * 4000 + 400
    assert counted(torch.mul, a, a).bytes == 2 * 4000
    assert counted(torch.add, a, torch.randn(200)[::2].expand(10, 100)).bytes == 2 * 4000 + 400  # with gaps
    windows = torch.randn(1000).unfold(0, 10, 5)  # 199 windows
    assert counted(windows.contiguous).bytes == 4 * (1000 + 199 * 10)


def test_views_and_empty_memory_move_nothing():
    a = torch.randn(10, 100)
    assert counted(lambda: a.view(1000)[::2].expand(3, 500).detach()) == Count()
    assert counted(lambda: torch.empty(5, 5)) == Count()
    assert counted(lambda: torch.zeros(5, 5)).bytes == 100
    with torch.inference_mode():  # here operations come as they are written
        assert counted(lambda: a.to(torch.float32).reshape(100, 10).contiguous()) == Count()
        assert counted(lambda: a.to(torch.bfloat16)).bytes == 4000 + 2000
        assert counted(lambda: a.t().reshape(1000)).bytes == 2 * 4000
        assert counted(nn.functional.linear, a, torch.randn(5, 100)).flops == 2 * 10 * 100 * 5


def test_look_ups_and_scatters_touch_their_rows_alone():
    table, rows = torch.randn(1000, 8), torch.tensor([3, 1])
    assert counted(table.index_select, 0, rows).bytes == 2 * 64 + 16
    assert counted(lambda: table.index_copy_(0, rows, torch.zeros(2, 8))).bytes == 64 + (2 * 64 + 16)
    assert counted(lambda: table.index_add_(0, rows, torch.zeros(2, 8))).bytes == 64 + (3 * 64 + 16)


def test_a_slice_in_backward_is_zeros_and_a_copy():
    a = torch.randn(10, 100, requires_grad=True)
    found = counted(a[:, 20:40].backward, torch.ones(10, 20))
    assert (found.bytes, found.operations) == (4000 + 2 * 800, 2)
    assert a.grad[:, 20:40].eq(1).all() and a.grad.sum() == 200


@pytest.mark.parametrize("both", [True, False])
def test_each_gradient_of_a_grouped_convolution_costs_a_forward_pass(both):
    layer = nn.Conv1d(16, 16, 5, groups=4)
    with OperationCounter() as counter:
        output = layer(torch.randn(2, 16, 50, requires_grad=both))
        forward = counter.counts["", "", "convolution"].flops
        output.sum().backward()
    assert forward == 2 * 2 * 46 * 5 * 4 * 16
    assert counter.counts["", "", "convolution_backward"].flops == (1 + both) * forward


def test_fused_adam_reads_four_tensors_and_writes_three():
    parameter = nn.Parameter(torch.randn(1000))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.zeros(1000)
    optimizer.step()
    with OperationCounter() as counter:
        optimizer.step()
    assert counter.counts["", "", "_fused_adamw_"].bytes == pytest.approx(7 * 4000, abs=16)  # and the step's number


class Cube(torch.autograd.Function):
    """A function with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient * ctx.saved_tensors[0].square()


class Cubes(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_operations_are_of_the_module_that_they_or_their_node_were_made_in(checkpointed):
    inner, outer = Cubes(), nn.Sequential(nn.Linear(8, 8))
    run = (lambda x: torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)) if checkpointed else inner
    outer.forward = lambda x: outer[0](run(outer[0](x)))
    counter = OperationCounter()
    counter.watch(inner, "inner")
    counter.watch(outer, "outer")
    inputs = torch.randn(4, 8)
    with counter:
        with counter.phase("forward", "loss"):
            loss = outer(inputs).exp().sum()
        with counter.phase("backward", "loss"):
            loss.backward()
    found = {part: {name for *key, name in counter.counts if tuple(key) == part} for part in PARTS}
    assert set().union(*({tuple(key) for *key, _ in counter.counts},)) == PARTS
    assert found["forward", "loss"] == {"exp", "sum"} and found["forward", "outer"] == {"addmm"}
    assert found["forward", "inner"] == {"mul"}
    assert found["backward", "loss"] == {"ones_like", "mul"}
    assert found["backward", "inner"] == {"mul", "pow"}
    assert {"mm", "sum"} <= found["backward", "outer"] <= {"mm", "sum", "add_", "add"}
    products = counter.counts["backward", "inner", "mul"].operations
    assert products == (4 if checkpointed else 2), "a checkpoint runs the module's forward pass anew"


PARTS = {(phase, part) for phase in ("forward", "backward") for part in ("loss", "outer", "inner")}
