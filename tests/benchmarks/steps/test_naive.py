"""The plain step, the reference of the fast one."""

import pytest
import torch
from noise_batches import collate

from benchmarks.steps import candidates
from benchmarks.steps.candidates import SJepaStep
from sjepa_hf.frames import real_frames
from training.data.masking import SpanMask


def padded_batches(count):
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(length).mul(0.1).numpy() for length in (16000, 9000, 12345)]
    return [collate(clips, SpanMask(0.5, 5), generator) for _ in range(count)]


@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
@pytest.mark.parametrize("phase, include_visible", [(1, True), (2, True), (2, False)])
def test_the_naive_step_is_the_same_step(make_arguments, accelerator, monkeypatch, front_end, phase, include_visible):
    """Three steps on padded batches, with rates at which the second step shows what the first one updated."""
    for name, value in dict(LEARNING_RATE=1e-4, MIXTURE_DECAY=0.9, EMA_DECAY=0.5).items():
        monkeypatch.setattr(candidates, name, value)
    ours = SJepaStep(make_arguments(front_end, phase=phase, include_visible=include_visible), accelerator)
    mixture = ours.model.mixture
    mixture.means.mul_(10.0 if phase == 1 else 0.3)
    mixture.variances.fill_(500.0 if phase == 1 else 5.0)  # posteriors that are neither uniform nor one-hot
    before = mixture.means.clone()
    naive = ours.naive()
    *batches, last = padded_batches(4)
    real = real_frames(last["lengths"], 49)
    start = naive.features(last, 49)[real]
    losses = [(ours.train_on(batch), naive.train_on(batch)) for batch in batches]
    mine, theirs = torch.tensor(losses).T
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert mine.min() > 0.01, "a loss of nothing would agree too"
    for name, expected in naive.model.mixture.named_buffers():
        torch.testing.assert_close(getattr(mixture, name), expected, atol=1e-4, rtol=1e-3)
    features = naive.features(last, 49)[real]
    torch.testing.assert_close(ours.targets.features(last)[real], features, atol=1e-4, rtol=1e-5)
    if phase == 2:
        assert (features - start).abs().max() > 2e-3, "both EMA encoders moved"
        assert (mixture.means - before).abs().max() > 0.1, "both mixtures moved"
    else:
        assert torch.equal(mixture.means, before)
