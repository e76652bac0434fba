"""The waveform front end against the convolutions and the norm of the library, one after the other."""

from pathlib import Path

import pytest
import torch

from sjepa_hf import SJepaModel
from sjepa_hf import front_end as module
from sjepa_hf.front_end import RowConvolution, SJepaWaveformFrontEnd, window_moments


ROOT = Path(__file__).parents[2]


def made(make_config, dtype: torch.dtype = torch.float64, **changes) -> SJepaWaveformFrontEnd:
    """A front end with weights as the model has them, whose norm and biases do something."""
    front_end = SJepaWaveformFrontEnd(make_config(**changes)).to(dtype)
    for parameter in front_end.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
        else:
            torch.nn.init.kaiming_normal_(parameter)
    return front_end


def frames(front_end: SJepaWaveformFrontEnd, num_samples: torch.Tensor | int) -> torch.Tensor | int:
    return (num_samples - front_end.receptive_field) // front_end.hop + 1


def check(front_end, waveforms, lengths=None, tolerance=1e-12, gradient_tolerance=1e-11):
    """Outputs of real frames and the gradients of all parameters, and of the samples, are those of the plain form."""
    num_frames = frames(front_end, waveforms.shape[1])
    real = torch.ones(len(waveforms), num_frames, dtype=torch.bool)
    if lengths is not None:
        real = torch.arange(num_frames) < frames(front_end, lengths)[:, None]
    direction = torch.randn(real.shape + (front_end.output_size,), dtype=waveforms.dtype) * real[:, :, None]
    found, given = [], (waveforms.requires_grad_(), *front_end.parameters())
    for forward in (front_end, front_end.plain):
        output = forward(waveforms, lengths)
        found.append((output * real[:, :, None], *torch.autograd.grad(output, given, direction)))
    for number, (ours, plain) in enumerate(zip(*found, strict=True)):
        allowed = (gradient_tolerance if number else tolerance) * plain.abs().max().item()
        torch.testing.assert_close(ours, plain, atol=allowed, rtol=0)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (2, 2), (10, 5), (4, 1), (1, 1), (5, 3), (2, 3), (3, 4)])
@pytest.mark.parametrize("num_rows", [60, 120])
def test_rows_are_convolved_as_the_library_does(kernel_size, stride, num_rows):
    rows = torch.randn(num_rows, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, kernel_size, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv1d(rows.mT[None], weight, stride=stride)[0].mT
    found = RowConvolution.apply(rows, weight, stride)
    assert len(found) == num_rows // stride
    found = found[: len(expected)]
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (rows, weight), direction), torch.autograd.grad(expected, (rows, weight), direction)
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_samples", [400, 719, 720, 4000, 4001, 4319])
@pytest.mark.parametrize("conv_bias", [False, True])
def test_one_length(make_config, num_samples, conv_bias):
    check(made(make_config, conv_bias=conv_bias), torch.randn(2, num_samples, dtype=torch.float64) + 0.3)


def test_padded_batch(make_config):
    lengths = torch.tensor([4000, 400, 2999, 719])
    waveforms = torch.randn(4, 4000, dtype=torch.float64)
    waveforms[torch.arange(4000) >= lengths[:, None]] = 0
    check(made(make_config), waveforms, lengths)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(conv_kernel=[10, 3, 2], conv_stride=[5, 2, 2]),
        dict(conv_kernel=[8, 5, 3], conv_stride=[4, 1, 3]),
        dict(conv_kernel=[5, 2], conv_stride=[7, 3]),
        dict(conv_kernel=[12], conv_stride=[4]),
    ],
)
def test_other_kernels_and_strides(make_config, sizes):
    front_end = made(make_config, conv_dim=[6] * len(sizes["conv_kernel"]), **sizes)
    for more in range(2 * front_end.hop):
        num_samples = front_end.receptive_field + more
        check(front_end, torch.randn(2, num_samples, dtype=torch.float64))


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.5])
def test_silence_and_a_constant(make_config, level):
    """What the norm divides by is its epsilon, or the spread of the channels' sums."""
    waveforms = torch.full((2, 2000), level)
    check(made(make_config, torch.float32), waveforms, tolerance=1e-5, gradient_tolerance=1e-4)


def test_fp32_far_from_zero(make_config):
    """A small signal on a large constant: the difference of large squares would lose it."""
    waveforms = 0.5 + 1e-3 * torch.randn(1, 8000)
    check(made(make_config, torch.float32), waveforms, tolerance=1e-5, gradient_tolerance=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.0025)])
def test_half_precision_against_float64(make_config, dtype, tolerance):
    exact = made(make_config, conv_dim=[64] * 7)
    waveforms, lengths = 0.1 * torch.randn(3, 16000, dtype=torch.float64), torch.tensor([16000, 9000, 400])
    waveforms[torch.arange(16000) >= lengths[:, None]] = 0
    real = torch.arange(49) < frames(exact, lengths)[:, None]
    expected = exact(waveforms, lengths)[real]
    mixed = made(make_config, torch.float32, conv_dim=[64] * 7)
    mixed.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", dtype):
        found = mixed(waveforms.float(), lengths)
    assert found.dtype == dtype
    assert (found[real] - expected).norm() < tolerance * expected.norm()
    # All weights in half precision, as `from_pretrained(dtype=...)` makes them; the norm's stay in fp32.
    half = mixed.to(dtype)
    half.conv_layers[0].layer_norm.float()
    assert (half(waveforms.float(), lengths)[real] - expected).norm() < tolerance * expected.norm()


def test_gradients_where_the_backward_pass_runs_under_autocast(make_config):
    front_end, waveforms = made(make_config, torch.float32), torch.randn(2, 2000)
    outside, inside = front_end(waveforms), front_end(waveforms)
    expected = torch.autograd.grad(outside.sum(), tuple(front_end.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(inside.sum(), tuple(front_end.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02 * theirs.abs().max().item(), rtol=0)


def test_what_stands_in_the_padding_is_never_read(make_config):
    front_end, lengths = made(make_config), torch.tensor([4000, 1500])
    waveforms = torch.randn(2, 4000, dtype=torch.float64)
    expected = front_end(waveforms, lengths)[1, : frames(front_end, 1500)]
    waveforms[1, 1500:] = torch.nan
    torch.testing.assert_close(front_end(waveforms, lengths)[1, : frames(front_end, 1500)], expected)
    torch.testing.assert_close(front_end(waveforms[1:, :1500])[0], expected)


@pytest.mark.parametrize("lengths", [None, torch.tensor([80000, 61234])])
def test_long_recordings_go_through_in_pieces(make_config, monkeypatch, lengths):
    front_end, waveforms = made(make_config), torch.randn(2, 80000, dtype=torch.float64)
    expected = front_end(waveforms, lengths)
    calls = []
    frames_of = front_end.frames
    monkeypatch.setattr(front_end, "frames", lambda *given: calls.append(given[2]) or frames_of(*given))
    monkeypatch.setitem(module.FRAMES_AT_ONCE, "cpu", 128)
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", 1000)
    with torch.no_grad():
        found = front_end(waveforms, lengths)
    assert calls == [64, 64, 64, 57]
    torch.testing.assert_close(found, expected.detach(), atol=1e-12, rtol=1e-12)


def test_moments_of_windows():
    waveforms, lengths = torch.randn(2, 300, dtype=torch.float64) + 4, torch.tensor([300, 123])
    waveforms[1, 123:] = 0
    mean, covariance = window_moments(waveforms, lengths, 10, 5)
    for number, length in enumerate(lengths):
        windows = waveforms[number, :length].unfold(0, 10, 5)
        torch.testing.assert_close(mean[number], windows.mean(0))
        torch.testing.assert_close(covariance[number], torch.cov(windows.mT, correction=0))


def test_long_clips_lose_no_digits(make_config):
    """A minute in fp32, whose neighbouring samples are alike as speech's are."""
    exact = made(make_config)
    waveform = torch.randn(1, 60 * 16000, dtype=torch.float64).cumsum(1).mul(0.01).sin() * 0.1
    fast = made(make_config, torch.float32)
    fast.load_state_dict(exact.state_dict())
    with torch.no_grad():
        wanted, found = exact.plain(waveform), fast(waveform.float()).double()
    assert (found - wanted).norm() < 5e-6 * wanted.norm()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("clip", ["one frame", "constant"])
def test_fp16_bears_clips_whose_frames_are_alike(clip, autocast):
    """A clip of a single frame, or a channel that is stuck, beside a longer one: finite, and as it is alone."""
    torch.manual_seed(0)
    model = SJepaModel.from_pretrained(ROOT / "model_cards" / "tiny").eval()  # weights as training leaves them
    model = model if autocast else model.half()
    waveforms = 0.1 * torch.randn(2, 32000)
    length = 400 if clip == "one frame" else 8000
    waveforms[1] = 0
    waveforms[1, :length] = 0.1 * torch.randn(400) if clip == "one frame" else 0.3
    attention_mask = torch.ones(2, 32000, dtype=torch.long)
    attention_mask[1, length:] = 0
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        together = model(waveforms, attention_mask).last_hidden_state
        alone = model(waveforms[1:, :length]).last_hidden_state
    real = together[1, : alone.shape[1]].float()
    assert together[0].isfinite().all() and real.isfinite().all()
    torch.testing.assert_close(real, alone[0].float(), atol=0.1, rtol=0)
    if autocast:
        real.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
