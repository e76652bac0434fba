"""Operations of a step, counted from the configuration."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps.candidates import SJepaStep
from benchmarks.steps.flops import bf16_peak


def group_norm_operations(ours: SJepaStep, clips: int, samples: int) -> int:
    """Products by which the front end's norm takes mean and variance: the counter sees them, utilisation does not."""
    config = ours.config
    kernel, stride = config.conv_kernel[0], config.conv_stride[0]
    values = ((samples - kernel) // stride + 1) * config.conv_dim[0]
    if config.front_end == "log_mel":
        values = config.num_frames(samples) * config.num_mel_bins
    return 2 * 2 * clips * values


@pytest.mark.parametrize(
    "front_end, phase, include_visible, encode_visible_only",
    [
        ("waveform", 2, False, False),
        ("waveform", 1, True, True),
        ("log_mel", 2, True, True),
        ("log_mel", 1, True, False),
    ],
)
def test_analytic_flops_are_those_that_are_run(
    make_arguments, accelerator, front_end, phase, include_visible, encode_visible_only
):
    # One group: the counter takes the backward pass of a grouped convolution for a dense one.
    sizes = dict(num_conv_pos_embedding_groups=1, predictor_num_hidden_layers=2)
    arguments = make_arguments(front_end, sizes, phase=phase, include_visible=include_visible)
    ours = SJepaStep(arguments, accelerator, encode_visible_only)
    with FlopCounterMode(display=False) as counter:
        ours()
    norms = phase * group_norm_operations(ours, *ours.shape[:2])  # of the student, and of the EMA encoder
    assert sum(ours.flops().values()) == pytest.approx(counter.get_total_flops() - norms, rel=2e-3)


def test_flops_of_a_grouped_positional_convolution(make_arguments, accelerator):
    ours = SJepaStep(make_arguments("waveform"), accelerator)
    ours()
    with FlopCounterMode(display=False) as counter:
        ours.model.sjepa(torch.randn(2, 16000))
    parts = ours.flops()
    student = ("front end", "feature projection", "positional convolution")
    student += ("attention projections", "attention products", "feed-forward")
    assert sum(parts[name] for name in student) == counter.get_total_flops() - group_norm_operations(ours, 2, 16000)


def test_peaks_are_found_by_device_name():
    assert bf16_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert bf16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bf16_peak("NVIDIA H100 PCIe") == 756e12
    assert bf16_peak("NVIDIA L4") == 121e12
    assert bf16_peak("NVIDIA L40S") == 362e12
    assert bf16_peak("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert bf16_peak("Some other device") is None
