import copy

import pytest
import torch
from accelerate import Accelerator
from noise_batches import make_batch

from sjepa_hf import DiagonalGaussianMixture, SJepaModel
from sjepa_hf.frames import real_frames
from sjepa_hf.hmm_mixture import HmmMixture
from training.common.processes import Coordinator
from training.common.signals import Interrupted
from training.targets.layer_choice import LayerChoice
from training.targets.sampling import FitAudio
from training.targets.targets import FrozenTargets, OnlineTargets, fit_mixture


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def audio(read) -> FitAudio:
    return FitAudio(read, Coordinator(Accelerator(cpu=True)))


@pytest.fixture
def online(make_config, accelerator):
    student = SJepaModel(make_config("log_mel")).train()
    targets = OnlineTargets(student, DiagonalGaussianMixture(6, 48), LayerChoice(2), accelerator, mixture_decay=0.9)
    targets.mixture.means.mul_(0.3)
    targets.mixture.variances.fill_(20.0)  # soft enough for a temperature to show
    return student, targets


def test_mfcc_targets_of_a_padded_batch_are_those_of_each_clip():
    targets = FrozenTargets(DiagonalGaussianMixture(8, 39))
    targets.mixture.variances.fill_(500.0)
    batch = make_batch(16000, 7000)
    together = targets.posteriors(batch)
    assert together.shape == (2, 49, 8)
    torch.testing.assert_close(together.sum(-1), torch.ones(2, 49))
    alone = {"input_values": batch["input_values"][1:, :7000], "lengths": batch["lengths"][1:]}
    torch.testing.assert_close(together[1, :21], targets.posteriors(alone)[0], atol=1e-4, rtol=0)
    before = copy.deepcopy(targets.mixture.state_dict())
    targets.update(None, 0.9)
    assert all(torch.equal(before[k], v) for k, v in targets.mixture.state_dict().items())


def test_mfcc_targets_can_be_one_hot_and_over_other_features():
    batch = make_batch(16000, 7000)
    targets = FrozenTargets(DiagonalGaussianMixture(8, 69), features="log_mel", temperature=0)
    posteriors = targets.posteriors(batch)
    soft = targets.mixture.posterior(targets.features(batch).flatten(0, 1)).view(2, 49, 8)
    assert posteriors.unique().tolist() == [0, 1] and posteriors.argmax(-1).equal(soft.argmax(-1))


def test_online_targets_come_from_the_active_layer_of_the_teacher_in_eval_mode(online):
    student, targets = online
    batch = make_batch(16000, 7000)
    hidden = targets.teacher(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
    expected = targets.mixture.posterior(hidden[2].flatten(0, 1)).view(2, 49, 6)
    torch.testing.assert_close(targets.posteriors(batch), expected)
    assert not targets.teacher.training and student.training
    assert all(not p.requires_grad for p in targets.teacher.parameters())


def test_temperature_softens_the_target_but_not_the_update(online, make_config, accelerator):
    _, plain = online
    batch = make_batch(16000, 7000)
    tempered = copy.copy(plain)
    tempered.mixture = copy.deepcopy(plain.mixture)
    tempered.temperature = 10.0
    features = plain.features(batch).flatten(0, 1)
    expected = plain.mixture.posterior(features, temperature=10.0).view(2, 49, 6)
    torch.testing.assert_close(tempered.posteriors(batch), expected)
    for each in (plain, tempered):
        each.accumulate(each.expectation(batch)[1])
        each.update(each.teacher, 1.0)
    for a, b in zip(plain.mixture.buffers(), tempered.mixture.buffers()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("instance_norm", [False, True])
@pytest.mark.parametrize("layers", [None, (0,), (2,), (0, 1, 3)])
@torch.no_grad()
def test_features_are_those_of_each_clip_alone(make_config, accelerator, layers, instance_norm):
    encoder = SJepaModel(make_config("log_mel")).eval()
    options = {"layers": layers, "instance_norm": instance_norm}
    targets = OnlineTargets(encoder, DiagonalGaussianMixture(6, 48), LayerChoice(3), accelerator, **options)
    batch, layers = make_batch(16000, 7000), layers or (3,)
    together = targets.features(batch)
    assert together.shape == (2, 49, 48) and targets.layers == layers
    for row, length in enumerate((16000, 7000)):
        alone = encoder(batch["input_values"][row : row + 1, :length], output_hidden_states=True).hidden_states
        read = [alone[layer][0].double() for layer in layers]
        if instance_norm:
            read = [(layer - layer.mean(0)) / (layer.var(0, correction=0) + 1e-5).sqrt() for layer in read]
        expected = torch.stack(read).mean(0).float()
        torch.testing.assert_close(together[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


def test_update_reads_real_frames_of_all_micro_batches_once(online):
    student, targets = online
    expected = copy.deepcopy(targets.mixture)
    batches = [make_batch(16000, 7000), make_batch(5000)]
    frames = [targets.features(b)[real_frames(b["lengths"], b["mask_time_indices"].shape[1])] for b in batches]
    expected.apply_statistics(expected.clip_expectation(torch.cat(frames)[None])[1], 0.9)
    for batch in batches:
        posteriors, statistics = targets.expectation(batch)
        targets.accumulate(statistics)
    assert targets.posteriors(batch).equal(posteriors), "a query, which is not counted"
    targets.update(student, 0.9)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(getattr(targets.mixture, name), value, atol=1e-5, rtol=1e-4)
    before = copy.deepcopy(targets.mixture.state_dict())
    targets.update(student, 0.9)
    assert all(torch.equal(before[k], v) for k, v in targets.mixture.state_dict().items()), "nothing is counted twice"


def test_teacher_is_an_average_of_students(online):
    student, targets = online
    old = [p.clone() for p in targets.teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    targets.update(student, 0.99)
    for before, now, new in zip(old, targets.teacher.parameters(), student.parameters()):
        torch.testing.assert_close(now, 0.99 * before + 0.01 * new, atol=1e-6, rtol=1e-5)


def test_seeding_fits_the_active_layer(online):
    _, targets = online
    with torch.no_grad():
        for parameter in targets.teacher.encoder.layers.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)  # else the layers of a fresh encoder are much alike
    history = targets.seed(audio(lambda: [make_batch(48000, 30000)]), num_frames=200, seed=0, num_iterations=5)
    assert len(history) == 6 and history[-1] > history[0]
    batch = make_batch(48000, 30000)
    real = real_frames(batch["lengths"], batch["mask_time_indices"].shape[1])
    layers = targets.teacher(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
    found = [targets.mixture.log_joint(layer[real]).logsumexp(-1).mean().item() for layer in layers]
    assert all(found[2] > other + 10 for layer, other in enumerate(found) if layer != 2), found


@pytest.fixture
def given_clips(make_config, accelerator):
    """Online targets whose components follow one another in some ways rather than in others."""
    student = SJepaModel(make_config("log_mel")).train()
    mixture = HmmMixture(6, 48)
    targets = OnlineTargets(student, mixture, LayerChoice(2), accelerator, mixture_decay=0.9)
    mixture.means.mul_(0.3)
    mixture.variances.fill_(20.0)
    mixture.transitions.pairs.copy_((2 * torch.randn(6, 6)).exp())
    mixture.transitions.pairs.div_(mixture.transitions.pairs.sum())
    return student, targets


def test_with_transitions_the_step_is_stepwise_em_of_the_hidden_markov_model(given_clips):
    student, targets = given_clips
    batches, expected = [make_batch(16000, 7000), make_batch(5000)], copy.deepcopy(targets.mixture)
    total = None
    for batch, lengths in zip(batches, ([49, 21], [15]), strict=True):
        features = targets.features(batch)
        for clip, length in zip(features, lengths, strict=True):
            posteriors, statistics = expected.clip_expectation(clip[None, :length])
            total = statistics if total is None else total + statistics
        found, statistics = targets.expectation(batch)
        targets.accumulate(statistics)
        torch.testing.assert_close(found[-1, :length], posteriors[0], atol=1e-5, rtol=1e-4)
    expected.apply_statistics(total, decay=0.9)
    targets.update(student, 0.9)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(targets.mixture.get_buffer(name), value, atol=1e-5, rtol=1e-4, msg=name)
    frames = targets.mixture.posterior(targets.features(batches[0]).flatten(0, 1)).view(2, 49, 6)
    assert (targets.posteriors(batches[0]) - frames)[0].abs().max() > 0.1


def test_broken_statistics_leave_transitions_too(given_clips):
    student, targets = given_clips
    before = copy.deepcopy(targets.mixture.state_dict())
    _, statistics = targets.expectation(make_batch(16000))
    statistics.pairs[2, 3] = float("nan")
    targets.accumulate(statistics)
    targets.update(student, 0.9)
    assert all(torch.equal(before[k], v) for k, v in targets.mixture.state_dict().items())


def test_seeding_finds_transitions_or_leaves_all_as_it_was(given_clips):
    _, targets = given_clips
    before = copy.deepcopy(targets.mixture.state_dict())

    passes = iter([[make_batch(48000, 30000)]] * 2)  # one for the frames, one of two for transitions
    options = {"num_frames": 200, "seed": 0, "num_iterations": 3}
    with pytest.raises(RuntimeError, match="StopIteration"):
        targets.seed(audio(lambda: next(passes)), transition_passes=2, **options)
    assert all(torch.equal(before[k], v) for k, v in targets.mixture.state_dict().items())
    targets.seed(audio(lambda: [make_batch(48000, 30000)]), transition_passes=2, **options)
    pairs, weights = targets.mixture.transitions.pairs, targets.mixture.weights
    assert (pairs - weights[:, None] * weights).abs().max() > 0.01, "order is known"


def test_a_fit_that_fails_ends_the_run_in_order(accelerator):
    coordinator = Coordinator(accelerator)
    with pytest.raises(Interrupted):
        fit_mixture(DiagonalGaussianMixture(5, 4), torch.randn(3, 4), 0, coordinator)
    assert "Cannot fit 5 components to 3 frames" in coordinator.interruption.stop.reason
