"""Operations of a step, counted from the configuration."""

import pytest

from benchmarks.steps.candidates import SJepaStep
from benchmarks.steps.flops import bf16_peak
from benchmarks.steps.operations import OperationCounter


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
    sizes = dict(num_conv_pos_embedding_groups=4, predictor_num_hidden_layers=2)
    arguments = make_arguments(front_end, sizes, phase=phase, include_visible=include_visible, seconds=4.0)
    ours = SJepaStep(arguments, accelerator, encode_visible_only)
    with OperationCounter() as counter:
        ours()
    analytic, run = sum(ours.flops().values()), sum(count.flops for count in counter.counts.values())
    if front_end == "waveform":  # not counted: moments of windows, rows beyond the frames, columns beyond a window
        assert analytic < run < 1.05 * analytic
    else:
        clips, samples = ours.shape[:2]
        means = 2 * clips * ours.config.num_frames(samples) * ours.config.num_mel_bins
        norms = phase * 2 * means  # mean and variance of the student's norm and of the EMA encoder's: not counted
        assert run - norms == pytest.approx(analytic, rel=2e-3)


def test_peaks_are_found_by_device_name():
    assert bf16_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert bf16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bf16_peak("NVIDIA H100 PCIe") == 756e12
    assert bf16_peak("NVIDIA H200 NVL") == 835e12
    assert bf16_peak("NVIDIA L4") == 121e12 and bf16_peak("NVIDIA L40") is None
    assert bf16_peak("NVIDIA L40S") == 362e12
    assert bf16_peak("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert bf16_peak("Some other device") is None
