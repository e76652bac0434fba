from itertools import zip_longest

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from noise_batches import make_batch

from training.common.processes import Coordinator
from training.targets import sampling
from training.targets.sampling import FitAudio, FrameReservoir, sample_frames, smallest


def test_keeps_everything_that_fits():
    reservoir = FrameReservoir(10)
    reservoir.add(torch.arange(4.0)[:, None], batch_seed=1)
    reservoir.add(torch.arange(4.0, 7.0)[:, None], batch_seed=2)
    numbers, frames = reservoir.sample()
    assert sorted(frames.squeeze(1).tolist()) == list(range(7))
    assert torch.equal(numbers, numbers.sort().values)
    assert FrameReservoir(3).sample()[1].numel() == 0


def test_every_frame_has_the_same_chance():
    counts = np.zeros(60)
    for seed in range(600):
        reservoir = FrameReservoir(12, seed)
        for batch_seed, chunk in enumerate(torch.arange(60.0)[:, None].split(7)):
            reservoir.add(chunk, batch_seed)
        kept = reservoir.sample()[1].squeeze(1).long()
        assert len(set(kept.tolist())) == 12, "a frame is kept once"
        counts[kept] += 1
    # Each count is binomial(600, 0.2): mean 120, standard deviation 9.8.
    assert abs(counts - 120).max() < 45
    assert abs(counts.reshape(5, 12).mean(1) - 120).max() < 12


@pytest.mark.parametrize("capacity", [5, 40])
def test_the_sample_is_the_same_in_whatever_order_and_parts_the_batches_come(capacity):
    batches = [(batch_seed, torch.randn(9, 2)) for batch_seed in range(30)]
    whole = FrameReservoir(capacity, seed=3)
    for batch_seed, frames in batches:
        whole.add(frames, batch_seed)
    parts = [FrameReservoir(capacity, seed=3) for _ in range(3)]
    for n, (batch_seed, frames) in enumerate(reversed(batches)):
        parts[n % 3].add(frames, batch_seed)
    numbers, frames = (torch.cat(values) for values in zip(*(part.sample() for part in parts)))
    assert torch.equal(frames[numbers.argsort()[:capacity]], whole.sample()[1])
    other = FrameReservoir(capacity, seed=4)
    other.add(batches[0][1], 0)
    assert not torch.equal(other.sample()[1][:5], whole.sample()[1][:5])


def test_sample_frames_takes_real_frames_only_and_stops():
    def loudness(batch):
        return batch["input_values"][:, ::320][:, : batch["mask_time_indices"].shape[1], None]

    coordinator = Coordinator(Accelerator(cpu=True))
    batches = [make_batch(16000, 7000) | {"seed": seed} for seed in range(5)]
    audio = FitAudio(lambda: batches, coordinator)
    sample = sample_frames(loudness, audio, 10_000, 0)
    assert len(sample) == 5 * (49 + 21) and (sample != 0).all()
    assert len(sample_frames(loudness, audio, 10_000, 0, max_seconds=2.0)) == 2 * 70
    read = []
    audio = FitAudio(lambda: (read.append(batch) or batch for batch in batches), coordinator)
    assert len(sample_frames(loudness, audio, 100, 0, stop_when_full=True)) == 100 and len(read) == 2
    with pytest.raises(ValueError, match="No frame of the training data could be read"):
        sample_frames(loudness, FitAudio(list, coordinator), 100, 0)


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_the_smallest_numbers_are_those_of_all_processes(monkeypatch, count):
    """Two processes of 8 and 2 frames; each sends those that may be among the smallest of all."""

    class TwoProcesses:
        num_processes, device = 2, torch.device("cpu")

    numbers = torch.randperm(10)
    frames, sent = numbers[:, None] * 1.0, []

    def gathered(values, accelerator):
        sent.append(len(values))
        return torch.cat([values, (numbers if values.ndim == 1 else frames)[8:]])

    monkeypatch.setattr(sampling, "gathered", gathered)
    found = smallest(numbers[:8], frames[:8], count, TwoProcesses())
    assert found.squeeze(1).tolist() == list(range(min(count, 10)))
    assert sent == [8, *[int((numbers[:8] < count).sum())] * 2], "no frame travels that is not needed"


@pytest.mark.parametrize("counts", [(2, 4, 4), (4, 2, 3), (1, 5, 1), (3, 3, 3)])
def test_a_pass_ends_after_a_round_of_the_readers_that_are_left(counts):
    """As it would if each reader had a process of its own, of which some have come to their end."""
    readers = [
        [make_batch(400 + 320 * reader) | {"reader": reader, "seed": 10 * reader + i} for i in range(count)]
        for reader, count in enumerate(counts)
    ]
    rounds = [[batch for batch in each if batch is not None] for each in zip_longest(*readers)]
    audio = FitAudio(lambda: [batch for each in rounds for batch in each], Coordinator(Accelerator(cpu=True)), 3)
    for limit in range(1, 30):
        expected, seen = [], 0
        for each in rounds:
            if seen < limit:
                expected += [batch["seed"] for batch in each]
                seen += sum(int(batch["lengths"].sum() - 400) // 320 + len(batch["lengths"]) for batch in each)
        assert [batch["seed"] for batch in audio.batches(max_frames=limit)] == expected
