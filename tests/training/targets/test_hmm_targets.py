import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture
from training.targets.hmm_targets import HmmTargets
from training.targets.targets import MfccTargets


@pytest.fixture
def batches() -> list[dict]:
    """Two padded batches of a loud and a quiet noise in turn, 0.2 s each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for lengths in ([16000, 9000], [12000, 300]):
        loud = (torch.arange(max(lengths)) // 3200 % 2).float() * 0.3 + 0.01
        noise = torch.randn(2, max(lengths), generator=generator) * loud
        found.append({"input_values": noise, "attention_mask": None, "lengths": torch.tensor(lengths)})
    return found


@pytest.fixture
def targets(batches) -> MfccTargets:
    torch.manual_seed(0)
    targets = MfccTargets(DiagonalGaussianMixture(4, 39))
    features = torch.cat([targets.features(batch)[0] for batch in batches])
    targets.mixture.fit(features, num_iterations=3, relative_variance_floor=1.0)  # wide: components overlap
    return targets


def test_transitions_of_independent_frames_give_the_mixtures_posteriors(targets, batches):
    found, weights = HmmTargets(targets), targets.mixture.weights
    found.transitions.initial.copy_(weights)
    found.transitions.pairs.copy_(weights[:, None] * weights)
    torch.testing.assert_close(found.posteriors(batches[1])[0], targets.posteriors(batches[1])[0], atol=2e-3, rtol=0)


def test_counts_are_of_consecutive_real_frames_of_the_mixtures_posteriors(targets, batches):
    found, pairs, first = HmmTargets(targets), 0, 0
    found.count(batches)
    for batch, clips in zip(batches, ([49, 27], [37, 0]), strict=True):
        for posteriors, length in zip(targets.posteriors(batch), clips, strict=True):
            pairs = pairs + sum((a[:, None] * b for a, b in zip(posteriors[: length - 1], posteriors[1:length])), 0)
            first = first + posteriors[: min(length, 1)].sum(0)
    torch.testing.assert_close(found.transitions.pairs, pairs / (48 + 26 + 36))
    torch.testing.assert_close(found.transitions.initial, first / 3)


def test_baum_welch_raises_the_likelihood_and_leaves_the_mixture(targets, batches):
    before = [buffer.clone() for buffer in targets.mixture.buffers()]
    found = HmmTargets(targets)
    found.count(batches)
    plain = sum(targets.mixture.log_prob(targets.features(b)[i, :n]).sum() for b, i, n in (
        (batches[0], 0, 49), (batches[0], 1, 27), (batches[1], 0, 37)
    )) / (49 + 27 + 37)  # fmt: skip
    history = [found.baum_welch(batches) for _ in range(3)]
    assert plain < history[0] < history[1] <= history[2] + 1e-4
    posteriors = found.posteriors(batches[1])
    assert posteriors.shape == (2, 37, 4) and (posteriors[1] == 0).all(), "a clip without a frame"
    torch.testing.assert_close(posteriors[0].sum(1), torch.ones(37))
    assert all(map(torch.equal, before, targets.mixture.buffers()))
