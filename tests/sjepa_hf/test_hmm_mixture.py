import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.hmm import forward_backward
from sjepa_hf.hmm_mixture import HmmMixture, HmmStatistics


def random_hmm(num_components=7, num_features=5) -> HmmMixture:
    """A mixture whose components overlap, and follow one another in some ways rather than in others."""
    mixture = HmmMixture(num_components, num_features)
    mixture.weights.copy_(torch.rand(num_components).softmax(0))
    mixture.variances.copy_(torch.rand(num_components, num_features) + 0.2)
    mixture.transitions.initial.copy_(torch.rand(num_components))
    mixture.transitions.pairs.copy_((2 * torch.randn(num_components, num_components)).exp())
    for buffer in mixture.transitions.buffers():
        buffer.div_(buffer.sum())
    return mixture


def test_it_is_the_mixture_for_frames_and_holds_transitions_beside_it():
    mixture, features = random_hmm(), torch.randn(30, 5)
    plain = DiagonalGaussianMixture(7, 5)
    assert list(mixture.state_dict()) == [*plain.state_dict(), "transitions.initial", "transitions.pairs"]
    plain.load_state_dict({name: mixture.get_buffer(name) for name in plain.state_dict()})
    assert mixture.posterior(features).equal(plain.posterior(features))
    for ours, theirs in zip(mixture.clip_expectation(features[None])[1], HmmStatistics._fields, strict=True):
        assert ours.isfinite().all(), theirs


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(garbage):
    mixture, lengths = random_hmm(), torch.tensor([20, 7, 0])
    features = torch.randn(3, 20, 5)
    real = torch.arange(20) < lengths[:, None]
    posteriors, statistics = mixture.clip_expectation(features, lengths)
    padded = features.masked_fill(~real[..., None], garbage)
    found, with_garbage = mixture.clip_expectation(padded, lengths)
    assert found[real].equal(posteriors[real])
    for ours, theirs in zip(with_garbage[:3], statistics[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert with_garbage.pairs.equal(statistics.pairs) and with_garbage.initial.equal(statistics.initial)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0, 0.0])
def test_targets_are_given_the_clip_and_weights_have_no_say(temperature):
    mixture, features, lengths = random_hmm(), torch.randn(3, 20, 5), torch.tensor([20, 7, 1])
    found, statistics = mixture.clip_expectation(features, lengths, temperature)
    gaussians = torch.distributions.Normal(mixture.means.double(), mixture.variances.double().sqrt())
    observed = gaussians.log_prob(features.double()[:, :, None]).sum(-1)  # [3, 20, 7]
    model = (part.double() for part in mixture.transitions.probabilities())
    expected = forward_backward(observed, *model, lengths, count=True)
    real = torch.arange(20) < lengths[:, None]
    plain = expected.posteriors[real]
    if temperature == 0:
        tempered = torch.nn.functional.one_hot(plain.argmax(-1), 7).double()
    else:
        tempered = plain ** (1 / temperature) / (plain ** (1 / temperature)).sum(-1, keepdim=True)
    torch.testing.assert_close(found[real].double(), tempered, atol=1e-5, rtol=0)
    assert found.equal(mixture.clip_posteriors(features, lengths, temperature)) and found.isfinite().all()
    assert (plain - mixture.posterior(features[real])).abs().max() > 0.1
    torch.testing.assert_close(statistics.pairs.double(), expected.statistics.pairs, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(statistics[:3], mixture.statistics(features[real], plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_statistics_of_clips_are_em_of_the_hidden_markov_model():
    mixture, lengths = random_hmm(4, 3), torch.tensor([60, 60, 31])
    features = torch.randn(4, 3)[torch.arange(180).div(5, rounding_mode="floor") % 4].view(3, 60, 3)
    features = 2 * features + torch.randn(3, 60, 3)
    history = []
    for _ in range(8):
        frames = mixture.log_likelihoods(features.flatten(0, 1)).view(3, 60, 4)
        history.append(mixture.transitions.expectation(frames, lengths).log_likelihoods.sum().item())
        halves = [mixture.clip_expectation(features[i:j], lengths[i:j])[1] for i, j in ((0, 1), (1, 3))]
        mixture.apply_statistics(halves[0] + halves[1], decay=0)
    assert all(new > old - 0.05 for old, new in zip(history, history[1:])) and history[-1] > history[0] + 20
    share = mixture.clip_posteriors(features, lengths).sum((0, 1)) / lengths.sum()
    torch.testing.assert_close(mixture.weights, share, atol=0.05, rtol=0, msg="weights are shares of frames")


def test_transitions_decay_as_the_other_statistics_do():
    mixture, features = random_hmm(), torch.randn(2, 30, 5)
    statistics, old = mixture.clip_expectation(features)[1], mixture.transitions.pairs.clone()
    mixture.apply_statistics(statistics, decay=0.9)
    new = statistics.pairs / 58
    torch.testing.assert_close(mixture.transitions.pairs, 0.9 * old + 0.1 * new, atol=1e-6, rtol=1e-5)
    before = mixture.transitions.pairs.clone()
    frames = features.flatten(0, 1)
    mixture.apply_statistics(mixture.statistics(frames, mixture.posterior(frames)), decay=0.9)
    assert mixture.transitions.pairs.equal(before), "frames alone say nothing of order"


def test_a_new_fit_forgets_the_order_of_other_clusters():
    mixture, features = random_hmm(), torch.randn(300, 5)
    mixture.fit(features, num_iterations=2)
    clips = features.view(6, 50, 5)
    torch.testing.assert_close(
        mixture.clip_posteriors(clips).flatten(0, 1), mixture.posterior(features), atol=2e-3, rtol=0
    )


def test_a_split_costs_a_clip_next_to_nothing_too():
    mixture, features = random_hmm(8, 5), torch.randn(4, 100, 5)
    statistics = mixture.clip_expectation(features)[1]
    dead = statistics.counts.argmin()
    mixture.apply_statistics(statistics, decay=0)
    for buffer in (mixture.weights, mixture.transitions.initial):
        buffer[dead] = 0
    mixture.transitions.pairs[dead] = mixture.transitions.pairs[:, dead] = 0
    donor = mixture.weights.argmax()

    def likelihood() -> torch.Tensor:
        frames = mixture.log_likelihoods(features.flatten(0, 1)).view(4, 100, 8)
        return mixture.transitions.expectation(frames, count=False).log_likelihoods.sum() / 400

    before, whole = likelihood(), mixture.clip_posteriors(features)[..., donor]
    assert mixture.reseed_dead() == 1
    assert abs(before - likelihood()) < 0.01
    halves = mixture.clip_posteriors(features)[..., [donor, dead]].sum((0, 1))
    assert halves.sum().item() == pytest.approx(whole.sum().item(), rel=0.05) and halves.min() > 0.3 * whole.sum()
