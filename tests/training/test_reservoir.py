import numpy as np
import torch

from training.reservoir import FrameReservoir


def test_keeps_everything_that_fits():
    reservoir = FrameReservoir(10)
    reservoir.add(torch.arange(4.0)[:, None])
    reservoir.add(torch.arange(4.0, 7.0)[:, None])
    assert reservoir.frames().squeeze(1).tolist() == list(range(7))
    assert FrameReservoir(3).frames().numel() == 0


def test_every_frame_has_the_same_chance():
    counts = np.zeros(60)
    for seed in range(600):
        reservoir = FrameReservoir(12, seed)
        for chunk in torch.arange(60.0)[:, None].split(7):
            reservoir.add(chunk)
        kept = reservoir.frames().squeeze(1).long()
        assert len(set(kept.tolist())) == 12, "a frame is kept once"
        counts[kept] += 1
    # Each count is binomial(600, 0.2): mean 120, standard deviation 9.8.
    assert abs(counts - 120).max() < 45
    assert abs(counts.reshape(5, 12).mean(1) - 120).max() < 12


def test_reproducible():
    samples = []
    for _ in range(2):
        reservoir = FrameReservoir(5, seed=3)
        reservoir.add(torch.arange(100.0)[:, None])
        samples.append(reservoir.frames())
    assert torch.equal(*samples)
