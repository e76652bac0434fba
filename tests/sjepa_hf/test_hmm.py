import itertools
import math

import pytest
import torch

from sjepa_hf.hmm import SMOOTHING, TransitionModel, TransitionStatistics, forward_backward
from sjepa_hf.hmm_mixture import HmmMixture


def random_model(num_states: int, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial probabilities and transitions; the sharper, the nearer to zero most of them are."""
    return (sharpness * torch.randn(num_states)).softmax(0), (sharpness * torch.randn(num_states, num_states)).softmax(
        1
    )


def all_paths(log_likelihoods, initial, transitions):
    """The definition for one clip `(T, K)`: a sum over all paths, in float64."""
    num_frames, num_states = log_likelihoods.shape
    posteriors, first, pairs, total = (torch.zeros(shape, dtype=torch.float64) for shape in (
        (num_frames, num_states), (num_states,), (num_states, num_states), ()
    ))  # fmt: skip
    likelihoods, initial, transitions = log_likelihoods.double().exp(), initial.double(), transitions.double()
    for path in itertools.product(range(num_states), repeat=num_frames):
        probability = initial[path[0]] * math.prod(likelihoods[t, s] for t, s in enumerate(path))
        probability = probability * math.prod(transitions[a, b] for a, b in itertools.pairwise(path))
        posteriors[range(num_frames), path] += probability
        first[path[0]] += probability
        for step in itertools.pairwise(path):
            pairs[step] += probability
        total += probability
    return posteriors / total, total.log(), first / total, pairs / total


def log_space(log_likelihoods, initial, transitions):
    """Textbook recursions of one clip `(T, K)` in float64 logarithms."""
    frames, start, steps = log_likelihoods.double(), initial.double().log(), transitions.double().log()
    forward, backward = [start + frames[0]], [torch.zeros_like(start)]
    for frame in frames[1:]:
        forward.append(torch.logsumexp(forward[-1][:, None] + steps, 0) + frame)
    for frame in frames[1:].flip(0):
        backward.append(torch.logsumexp(steps + frame + backward[-1], 1))
    forward, backward = torch.stack(forward), torch.stack(backward[::-1])
    total = forward[-1].logsumexp(0)
    pairs = torch.zeros_like(steps)
    for t in range(len(frames) - 1):
        pairs += (forward[t, :, None] + steps + frames[t + 1] + backward[t + 1] - total).exp()
    return (forward + backward - total).exp(), total, pairs


def test_posteriors_likelihoods_and_counts_are_sums_over_all_paths():
    torch.manual_seed(0)
    initial, transitions = random_model(3)
    lengths = torch.tensor([5, 1, 4, 0, 2])
    log_likelihoods = 2 * torch.randn(5, 5, 3)
    padded = log_likelihoods.clone()
    for clip, length in zip(padded, lengths.tolist(), strict=True):
        clip[length:] = math.nan
    found = forward_backward(padded, initial, transitions, lengths, count=True)
    first, pairs = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for index in (0, 1, 2, 4):
        length = lengths[index]
        expected = all_paths(log_likelihoods[index, :length], initial, transitions)
        torch.testing.assert_close(found.posteriors[index, :length].double(), expected[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.log_likelihoods[index].double(), expected[1], atol=1e-5, rtol=1e-6)
        first, pairs = first + expected[2], pairs + expected[3]
    real = torch.arange(5) < lengths[:, None]
    assert (found.posteriors[~real] == 0).all() and found.log_likelihoods[3] == 0
    torch.testing.assert_close(found.statistics.initial.double(), first, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.statistics.pairs.double(), pairs, atol=1e-6, rtol=1e-5)
    assert forward_backward(padded, initial, transitions, lengths).statistics is None


@pytest.mark.parametrize("sharpness, gap", [(1.0, 5.0), (4.0, 30.0), (4.0, 400.0)])
def test_fp32_does_not_underflow_over_fifteen_seconds(sharpness, gap):
    torch.manual_seed(0)
    initial, transitions = random_model(50, sharpness)
    model = TransitionModel(50)
    model.initial.copy_(initial)
    model.pairs.copy_(transitions / 50)
    log_likelihoods = gap * torch.randn(750, 50) - 2000
    found = model.expectation(log_likelihoods[None])
    posteriors, total, pairs = log_space(log_likelihoods, *model.probabilities())
    torch.testing.assert_close(found.posteriors[0].double(), posteriors, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.posteriors[0].double().clamp_min(1e-6), posteriors.clamp_min(1e-6), atol=0, rtol=1e-3
    )
    torch.testing.assert_close(found.log_likelihoods[0].double(), total, atol=0, rtol=1e-6)
    torch.testing.assert_close(found.statistics.pairs.double(), pairs, atol=1e-4, rtol=1e-3)


def test_frames_that_speak_for_a_state_no_counted_step_reaches():
    model = TransitionModel(500)  # counted: states stay what they are
    model.pairs.copy_(torch.eye(500) / 500)
    frames = torch.full((1, 40, 500), -300.0)
    frames[0, torch.arange(40), torch.arange(40) // 10 * 100] = 0.0  # three jumps
    frames[0, 25] = 0.0  # says nothing
    found = model.expectation(frames)
    expected, total, _ = log_space(frames[0], *model.probabilities())
    torch.testing.assert_close(found.posteriors[0].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log_likelihoods[0].double(), total, atol=0, rtol=1e-6)
    assert found.posteriors[0, 25, 200] > 0.999 and found.posteriors[0, 30, 300] > 0.999
    assert found.statistics.pairs[200, 300] == pytest.approx(1, abs=1e-3)


def test_an_impossible_clip_is_nan_and_spoils_no_other():
    frames = torch.full((2, 3, 2), -200.0)
    frames[:, :, 0] = 0.0
    frames[0, 1] = torch.tensor([-200.0, 0.0])  # a state that is never entered
    found = forward_backward(frames, torch.tensor([1.0, 0.0]), torch.eye(2))
    assert found.posteriors[0].isnan().any() and not found.log_likelihoods[0].isfinite()
    assert found.posteriors[1, :, 0].tolist() == [1, 1, 1] and found.log_likelihoods[1] == 0


def test_without_knowledge_of_order_it_is_the_mixture():
    torch.manual_seed(0)
    mixture = HmmMixture(30, 8)
    mixture.weights.copy_(torch.randn(30).softmax(0))
    features = 2 * torch.randn(60, 8)
    frames = mixture.log_likelihoods(features)
    torch.testing.assert_close(frames + mixture.weights.log(), mixture.log_joint(features))
    found = forward_backward(frames[None], mixture.weights, mixture.weights.expand(30, 30), count=True)
    torch.testing.assert_close(found.posteriors[0], mixture.posterior(features), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        found.log_likelihoods[0], mixture.log_joint(features).logsumexp(-1).sum(), atol=0, rtol=1e-6
    )
    before, after = found.posteriors[0, :-1], found.posteriors[0, 1:]
    torch.testing.assert_close(found.statistics.pairs, before.T @ after, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.statistics.initial, before[0])
    model = TransitionModel(30)
    model.make_independent(mixture.weights)
    torch.testing.assert_close(
        model.expectation(frames[None]).posteriors[0], mixture.posterior(features), atol=0.01, rtol=0
    )
    new = TransitionModel(30).expectation(frames[None]).posteriors[0]
    torch.testing.assert_close(new, frames.softmax(-1), atol=1e-6, rtol=1e-5)


def test_a_clip_alone_is_as_in_a_batch():
    torch.manual_seed(0)
    initial, transitions = random_model(20)
    lengths, frames = torch.tensor([30, 7, 19]), 5 * torch.randn(3, 30, 20)
    together = forward_backward(frames, initial, transitions, lengths, count=True)
    total = TransitionStatistics(torch.zeros(20), torch.zeros(20, 20))
    for index, length in enumerate(lengths.tolist()):
        alone = forward_backward(frames[index : index + 1, :length], initial, transitions, count=True)
        torch.testing.assert_close(together.posteriors[index, :length], alone.posteriors[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.log_likelihoods[index], alone.log_likelihoods[0])
        total += alone.statistics
    torch.testing.assert_close(together.statistics.pairs, total.pairs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.statistics.initial, total.initial)


def test_logarithms_of_posteriors_lose_nothing_where_these_are_zero():
    torch.manual_seed(0)
    initial, transitions = random_model(20)
    lengths, frames = torch.tensor([30, 12]), 200 * torch.randn(2, 30, 20)
    found = forward_backward(frames, initial, transitions, lengths, scores=True)
    assert (found.posteriors[0] == 0).any() and found.scores.isfinite().all() and (found.scores[1, 12:] == 0).all()
    for clip, length in enumerate(lengths.tolist()):
        steps, (states,) = transitions.double().log(), initial.shape
        forward, backward = [initial.double().log() + frames[clip, 0]], [torch.zeros(states, dtype=torch.float64)]
        for frame in frames[clip, 1:length]:
            forward.append(torch.logsumexp(forward[-1][:, None] + steps, 0) + frame)
        for frame in frames[clip, 1:length].flip(0):
            backward.append(torch.logsumexp(steps + frame + backward[-1], 1))
        expected = (torch.stack(forward) + torch.stack(backward[::-1])).log_softmax(1)
        torch.testing.assert_close(found.scores[clip, :length].double().log_softmax(1), expected, atol=1e-3, rtol=1e-6)
    assert forward_backward(frames, initial, transitions, lengths).scores is None


def test_halves_of_a_state_are_as_probable_together_as_it_was(monkeypatch):
    monkeypatch.setattr("sjepa_hf.hmm.SMOOTHING", 0.0)
    torch.manual_seed(0)
    model, frames = TransitionModel(6), 3 * torch.randn(2, 40, 6)
    model.initial.copy_(torch.rand(6))
    model.pairs.copy_(torch.rand(6, 6))
    for buffer in model.buffers():  # 4 and 5 are dead
        buffer[..., 4:] = 0
    model.pairs[4:] = 0
    initial, transitions = model.probabilities()
    transitions[4:] = 0.25
    before = forward_backward(frames, initial, transitions)
    model.split(torch.tensor([2, 0]), torch.tensor([5, 4]))
    frames[..., 5], frames[..., 4] = frames[..., 2], frames[..., 0]
    after = model.expectation(frames)
    torch.testing.assert_close(after.log_likelihoods, before.log_likelihoods, atol=1e-4, rtol=1e-6)
    for whole, half in ((2, 5), (0, 4)):
        torch.testing.assert_close(after.posteriors[..., whole], after.posteriors[..., half])
        torch.testing.assert_close(2 * after.posteriors[..., half], before.posteriors[..., whole], atol=1e-5, rtol=0)
    torch.testing.assert_close(after.posteriors[..., [1, 3]], before.posteriors[..., [1, 3]], atol=1e-5, rtol=0)
    assert model.pairs.sum() == pytest.approx(1) and model.initial.sum() == pytest.approx(1)


def test_baum_welch_raises_the_likelihood_and_finds_the_transitions():
    torch.manual_seed(0)
    truth = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.5, 0.0, 0.5]])
    states = torch.zeros(40, 100, dtype=torch.long)
    for t in range(1, 100):
        states[:, t] = truth[states[:, t - 1]].multinomial(1).squeeze(1)
    noisy = torch.eye(3)[states] + 0.7 * torch.randn(40, 100, 3)
    frames = -((noisy[..., None, :] - torch.eye(3)) ** 2).sum(-1) / (2 * 0.7**2)
    model = TransitionModel(3)
    history = []
    for _ in range(30):
        found = model.expectation(frames)
        history.append(found.log_likelihoods.sum().item())
        model.apply_statistics(found.statistics)
    assert all(new > old - 0.1 for old, new in itertools.pairwise(history)) and history[-1] > history[0] + 100
    initial, transitions = model.probabilities()
    torch.testing.assert_close(transitions, truth, atol=0.05, rtol=0)
    assert initial[0] > 0.85


def test_no_transition_is_zero_and_all_sum_to_one():
    model = TransitionModel(4)
    once = torch.tensor([1.0, 0, 0, 0])
    model.apply_statistics(TransitionStatistics(once, once.diag()))
    initial, transitions = model.probabilities()
    torch.testing.assert_close(transitions.sum(1), torch.ones(4))
    assert transitions.min() >= SMOOTHING / 4 / 4 / (1 + SMOOTHING) and initial.min() > SMOOTHING / 5
    torch.testing.assert_close(transitions[1], torch.full((4,), 0.25))  # a state that is never left


def test_update_decays_old_statistics_and_heeds_counts_of_nothing():
    model = TransitionModel(2)
    step = TransitionStatistics(torch.tensor([0.0, 3.0]), torch.tensor([[0.0, 8.0], [2.0, 0.0]]))
    model.apply_statistics(step, decay=0.9)
    torch.testing.assert_close(model.pairs, torch.tensor([[0.225, 0.305], [0.245, 0.225]]))
    torch.testing.assert_close(model.initial, torch.tensor([0.45, 0.55]))
    before = model.pairs.clone()
    model.apply_statistics(TransitionStatistics(torch.zeros(2), torch.zeros(2, 2)))
    assert torch.equal(model.pairs, before)
    with pytest.raises(ValueError, match="`decay` is 1.5"):
        model.apply_statistics(step, decay=1.5)


def test_buffers_stay_fp32_and_autocast_changes_nothing():
    torch.manual_seed(0)
    model = TransitionModel(6).half()
    model.apply_statistics(TransitionStatistics(torch.rand(6), torch.rand(6, 6)))
    assert model.pairs.dtype == torch.float32 and list(model.state_dict()) == ["initial", "pairs"]
    frames = 3 * torch.randn(2, 9, 6)
    plain = model.expectation(frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.expectation(frames)
    assert torch.equal(plain.posteriors, found.posteriors) and torch.equal(
        plain.statistics.pairs, found.statistics.pairs
    )
    assert model.double().expectation(frames).posteriors.dtype == torch.float64
    assert model.expectation(frames[:, :0]).log_likelihoods.tolist() == [0, 0]


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"`lengths` \(batch_size,\), but they have \(2, 3, 4\), .*\(3,\)\."):
        forward_backward(torch.zeros(2, 3, 4), *random_model(4), torch.ones(3))
    with pytest.raises(ValueError, match="`log_likelihoods` must have shape"):
        forward_backward(torch.zeros(3, 4), *random_model(4))
