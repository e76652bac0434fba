import copy

import pytest
import torch
from accelerate import Accelerator

from sjepa_hf.hmm_mixture import HmmMixture
from training.common.processes import Coordinator
from training.targets.sampling import FitAudio
from training.targets.targets import FrozenTargets
from training.targets.transitions import fit_transitions


@pytest.fixture
def batches() -> list[dict]:
    """Two padded batches of a loud and a quiet noise in turn, 0.2 s each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for lengths in ([16000, 9000], [12000, 300]):
        loud = (torch.arange(max(lengths)) // 3200 % 2).float() * 0.3 + 0.01
        noise = torch.randn(2, max(lengths), generator=generator) * loud
        found.append({"input_values": noise, "attention_mask": None, "lengths": torch.tensor(lengths), "seconds": 1.0})
    return found


@pytest.fixture
def targets(batches) -> FrozenTargets:
    torch.manual_seed(0)
    targets = FrozenTargets(HmmMixture(4, 39))
    features = torch.cat([targets.features(batch)[0] for batch in batches])
    targets.mixture.fit(features, num_iterations=3, relative_variance_floor=1.0)  # wide: components overlap
    return targets


def fitted(targets, batches, num_frames=1000, passes=1, readers=1, **options):
    read = []
    coordinator = Coordinator(Accelerator(cpu=True))
    audio = FitAudio(lambda: (read.append(batch) or batch for batch in batches), coordinator, readers)
    return fit_transitions(targets.mixture, targets.features, audio, num_frames, passes, **options), read


def test_the_first_pass_counts_consecutive_real_frames_of_the_mixtures_posteriors(targets, batches):
    pairs, first = 0, 0
    for batch, clips in zip(batches, ([49, 27], [37, 0]), strict=True):
        for features, length in zip(targets.features(batch), clips, strict=True):
            posteriors = targets.mixture.posterior(features[:length])
            pairs = pairs + posteriors[:-1].T @ posteriors[1:]
            first = first + posteriors[:1].sum(0)
    history, read = fitted(targets, batches)
    torch.testing.assert_close(targets.mixture.transitions.pairs, pairs / (48 + 26 + 36), atol=1e-3, rtol=0)
    torch.testing.assert_close(targets.mixture.transitions.initial, first / 3, atol=1e-3, rtol=0)
    torch.testing.assert_close(targets.mixture.weights, (pairs.sum(0) + first) / 113, atol=1e-3, rtol=0)
    assert len(history) == 1 and len(read) == 2


def test_which_process_reads_a_batch_first_changes_no_bit(targets, batches):
    halves = [{**batch, "input_values": batch["input_values"] * (0.1 * i + 1)} for i in range(5) for batch in batches]
    found = []
    for order in (halves, halves[::-1], halves[::2] + halves[1::2]):
        mixture = copy.deepcopy(targets)
        fitted(mixture, order)
        found.append(list(mixture.mixture.buffers()))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_later_passes_raise_the_likelihood_and_leave_the_gaussians(targets, batches):
    mixture, real = targets.mixture, ((batches[0], 0, 49), (batches[0], 1, 27), (batches[1], 0, 37))
    frames = torch.cat([targets.features(batch)[clip, :n] for batch, clip, n in real])
    plain = mixture.log_joint(frames).logsumexp(-1).sum() / 113
    before = mixture.means.clone(), mixture.variances.clone()
    history = fitted(targets, batches, passes=4)[0]
    assert history[0] == pytest.approx(plain.item(), abs=0.01)
    assert history[0] + 0.1 < history[1] < history[2] <= history[3] + 1e-4
    assert mixture.means.equal(before[0]) and mixture.variances.equal(before[1])
    posteriors = targets.posteriors(batches[1])
    assert posteriors.shape == (2, 37, 4) and (posteriors[1] == 0).all(), "a clip without a frame"
    torch.testing.assert_close(posteriors[0].sum(1), torch.ones(37))
    torch.testing.assert_close(mixture.weights.sum(), torch.tensor(1.0))


def test_a_pass_ends_where_enough_is_read(targets, batches):
    assert len(fitted(targets, batches, num_frames=50, passes=2)[1]) == 2
    assert [len(fitted(targets, batches, max_seconds=seconds)[1]) for seconds in (0.5, 1.5)] == [1, 2]
    shared = [batch | {"reader": number} for number, batch in enumerate(batches)]
    assert len(fitted(targets, shared, num_frames=50, readers=2)[1]) == 2, "whole rounds"
