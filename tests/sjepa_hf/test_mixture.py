import copy
import math

import numpy as np
import pytest
import torch
from apple_gpu import AppleGpu
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import nn

from sjepa_hf import DiagonalGaussianMixture


def naive_log_joint(mixture: DiagonalGaussianMixture, features: torch.Tensor) -> torch.Tensor:
    """The definition, in float64, with the difference tensor."""
    weights, means, variances = (getattr(mixture, name).double() for name in ("weights", "means", "variances"))
    difference = features.double()[:, None] - means  # [N, K, D]
    mahalanobis = (difference.square() / variances).sum(-1)
    return weights.log() - 0.5 * (means.shape[1] * math.log(2 * math.pi) + variances.log().sum(-1) + mahalanobis)


def random_mixture(num_components=7, num_features=5, spread=2.0) -> DiagonalGaussianMixture:
    mixture = DiagonalGaussianMixture(num_components, num_features)
    mixture.weights.copy_(torch.rand(num_components).softmax(0))
    mixture.means.mul_(spread)
    mixture.variances.copy_(torch.rand(num_components, num_features) + 0.2)
    return mixture


@pytest.fixture
def golden_mixture(golden_targets):
    mixture = DiagonalGaussianMixture(6, 5)
    for name in ("weights", "means", "variances"):
        getattr(mixture, name).copy_(golden_targets[f"gmm.{name}"])
    return mixture


def test_golden_posteriors(golden_mixture, golden_targets):
    features = golden_targets["gmm.features"]
    torch.testing.assert_close(golden_mixture.posterior(features), golden_targets["gmm.posteriors"], atol=1e-5, rtol=0)
    joint = golden_mixture.log_joint(features).double()
    torch.testing.assert_close(joint, golden_targets["gmm.log_joint_float64"], atol=1e-4, rtol=1e-6)
    evidence = golden_targets["gmm.log_joint_float64"].logsumexp(-1)
    torch.testing.assert_close(
        golden_mixture.log_joint(features).logsumexp(-1).double(), evidence, atol=1e-4, rtol=1e-6
    )


def test_golden_published_update(golden_mixture, golden_targets):
    statistics = golden_mixture.clip_expectation(golden_targets["gmm.features"][None])[1]
    golden_mixture.apply_statistics(statistics, decay=0.9, average="parameters")
    for name in ("weights", "means", "variances"):
        expected = golden_targets[f"gmm.after_update.{name}"]
        torch.testing.assert_close(getattr(golden_mixture, name), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unequal_variances", [False, True])
def test_posterior_is_exact_far_from_the_origin_in_many_dimensions(unequal_variances):
    # The expansion without centring is off by 1e-2 here.
    mixture = DiagonalGaussianMixture(500, 768)
    mixture.means.copy_(10 + 0.05 * torch.randn(500, 768))
    if unequal_variances:
        mixture.variances.copy_(0.8 + 0.4 * torch.rand(500, 768))
    features = 10 + torch.randn(64, 768)
    expected = naive_log_joint(mixture, features).softmax(-1)
    assert expected.max() < 1, "the case must be a soft one"
    torch.testing.assert_close(mixture.posterior(features).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_posterior_against_float64_at_other_scales(scale):
    mixture = random_mixture()
    mixture.means.mul_(scale)
    mixture.variances.mul_(scale**2)
    features = torch.randn(100, 5) * 2 * scale
    expected = naive_log_joint(mixture, features)
    torch.testing.assert_close(mixture.posterior(features).double(), expected.softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixture.log_joint(features).double(), expected, atol=1e-3, rtol=1e-5)


def test_temperature_divides_the_log_joint():
    mixture, features = random_mixture(), torch.randn(50, 5)
    expected = (naive_log_joint(mixture, features) / 10).softmax(-1)
    torch.testing.assert_close(mixture.posterior(features, temperature=10).double(), expected, atol=1e-5, rtol=0)
    assert mixture.posterior(features, temperature=0).equal(
        torch.nn.functional.one_hot(expected.argmax(1), mixture.num_components).float()
    )
    with pytest.raises(ValueError, match="temperature"):
        mixture.posterior(features, temperature=-1)


def test_statistics_update_is_stepwise_em():
    mixture, features, decay = random_mixture(), torch.randn(300, 5), 0.9
    responsibilities = naive_log_joint(mixture, features).softmax(-1)
    old = [getattr(mixture, name).double() for name in ("weights", "means", "variances")]
    x = features.double()
    moments = [
        decay * before + (1 - decay) * batch
        for before, batch in zip(
            (old[0], old[0][:, None] * old[1], old[0][:, None] * (old[2] + old[1] ** 2)),
            (responsibilities.mean(0), responsibilities.T @ x / 300, responsibilities.T @ x**2 / 300),
        )
    ]
    mixture.apply_statistics(mixture.clip_expectation(features[None])[1], decay=decay)
    means = moments[1] / moments[0][:, None]
    torch.testing.assert_close(mixture.weights.double(), moments[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixture.means.double(), means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        mixture.variances.double(), moments[2] / moments[0][:, None] - means**2, atol=1e-5, rtol=1e-4
    )


def test_decay_zero_is_one_em_iteration_of_scikit_learn():
    mixture, features = random_mixture(4, 3), torch.randn(500, 3) * 2
    reference = GaussianMixture(
        4, covariance_type="diag", max_iter=1, tol=0, reg_covar=0,
        weights_init=mixture.weights.numpy(), means_init=mixture.means.numpy(),
        precisions_init=1 / mixture.variances.numpy(),
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        reference.fit(features.numpy())
    mixture.apply_statistics(mixture.clip_expectation(features[None])[1], decay=0)
    np.testing.assert_allclose(mixture.means.numpy(), reference.means_, atol=1e-4)
    np.testing.assert_allclose(mixture.variances.numpy(), reference.covariances_, atol=1e-4)


def test_statistics_add_up_over_batches():
    whole, parts = random_mixture(), None
    split = random_mixture()
    split.load_state_dict(whole.state_dict())
    features = torch.randn(90, 5)
    for chunk in features.split(31):
        statistics = split.statistics(chunk, split.posterior(chunk))
        parts = statistics if parts is None else parts + statistics
    split.apply_statistics(parts, decay=0.5)
    whole.apply_statistics(whole.clip_expectation(features[None])[1], decay=0.5)
    for name, value in whole.named_buffers():
        torch.testing.assert_close(getattr(split, name), value, atol=1e-6, rtol=1e-5)


def test_a_component_that_nobody_visits_stays_where_it_is_and_fades():
    mixture = random_mixture()
    mixture.means[3] = 1e3
    mean, variance, weight = mixture.means[3].clone(), mixture.variances[3].clone(), mixture.weights[3].clone()
    published = DiagonalGaussianMixture(7, 5)
    published.load_state_dict(mixture.state_dict())
    for _ in range(100):
        features = torch.randn(50, 5)
        mixture.apply_statistics(mixture.clip_expectation(features[None])[1], decay=0.99)
        published.apply_statistics(published.clip_expectation(features[None])[1], decay=0.99, average="parameters")
    torch.testing.assert_close(mixture.means[3], mean)
    torch.testing.assert_close(mixture.variances[3], variance)
    torch.testing.assert_close(mixture.weights[3], weight * 0.99**100, rtol=1e-3, atol=0)
    assert published.means[3].abs().max() < 400, "the published update drags it to the origin"
    assert all(torch.isfinite(buffer).all() for buffer in mixture.buffers())


def test_dead_components_are_split_off_the_heaviest_the_same_everywhere():
    mixture = random_mixture()
    mixture.weights.copy_(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1 - 2e-5, 1e-5, 1e-5]))
    twin = DiagonalGaussianMixture(7, 5)
    twin.load_state_dict(mixture.state_dict())
    donor = mixture.means[0].clone()
    torch.manual_seed(1)
    assert mixture.reseed_dead() == 2
    torch.manual_seed(2)
    assert twin.reseed_dead() == 2
    assert all(torch.equal(a, b) for a, b in zip(mixture.buffers(), twin.buffers()))
    assert mixture.weights.sum() == pytest.approx(1) and mixture.weights.min() > 0.05
    torch.testing.assert_close(mixture.weights[[0, 1, 2, 3]], torch.tensor([0.25, 0.1, 0.1, 0.1]), atol=1e-4, rtol=0)
    heir = 5 if mixture.weights[5] > mixture.weights[6] else 6
    torch.testing.assert_close((mixture.means[0] + mixture.means[heir]) / 2, donor)
    assert mixture.reseed_dead() == 0


def test_no_dead_component_is_split():
    """Five of seven are dead: as many come alive as are."""
    mixture = random_mixture()
    mixture.weights.copy_(torch.tensor([0.6, 0.4, 0, 0, 0, 0, 0]))
    assert mixture.reseed_dead() == 2
    assert (mixture.weights > 0.1).sum() == 4 and mixture.weights.sum() == pytest.approx(1)


def test_a_component_is_dead_below_a_hundredth_of_the_mean_weight():
    mixture = random_mixture(4)
    mixture.weights.copy_(torch.tensor([0.9, 0.0949, 0.0027, 0.0024]))
    assert mixture.num_dead() == 1


def test_a_mixture_is_fitted_once_a_variance_is_not_1():
    mixture = DiagonalGaussianMixture(4, 3)
    assert not mixture.is_fitted()
    mixture.variances[0, 0] = 0.5
    assert mixture.is_fitted()


def swollen_mixture(features: torch.Tensor) -> DiagonalGaussianMixture:
    """One component has all of `features` to itself, six are elsewhere, and one is dead."""
    mixture = DiagonalGaussianMixture(8, features.shape[1])
    mixture.means.mul_(10).add_(50)
    mixture.means[0], mixture.variances[0] = features.mean(0), features.var(0)
    mixture.weights.copy_(torch.tensor([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0]))
    return mixture


@pytest.mark.parametrize("num_features", [39, 256, 768])
@pytest.mark.parametrize("correlated", [False, True])
def test_a_split_costs_next_to_nothing_in_any_number_of_dimensions(num_features, correlated):
    features = torch.randn(2000, num_features)
    if correlated:  # as features are: steps in all dimensions would leave the narrow subspace where frames lie
        features = torch.randn(2000, 20) @ torch.randn(20, num_features) + 0.1 * features
    mixture = swollen_mixture(features)
    before = naive_log_joint(mixture, features).logsumexp(1)
    assert mixture.reseed_dead() == 1
    assert (before - naive_log_joint(mixture, features).logsumexp(1)).mean() < 0.01
    shares = mixture.posterior(features)[:, [0, 7]]
    torch.testing.assert_close(shares.sum(1), torch.ones(2000))
    assert shares.mean(0).sub(0.5).abs().max() < 0.02
    assert shares.min() > 0.05, "no frame goes to one half alone"


@pytest.mark.parametrize("num_features", [16, 256, 768])
@pytest.mark.parametrize("parted", ["in one dimension", "in a random direction", "in every dimension"])
def test_the_halves_part_where_there_are_two_clusters(num_features, parted):
    cluster = torch.arange(2000) % 2
    direction = torch.ones(num_features) / 6
    if parted == "in one dimension":
        direction = torch.eye(num_features)[num_features // 2]
    elif parted == "in a random direction":
        direction = nn.functional.normalize(torch.randn(num_features), dim=0)
    features = torch.randn(2000, num_features) + 6 * (cluster[:, None] - 0.5) * direction
    mixture = swollen_mixture(features)
    mixture.reseed_dead()
    for _ in range(20):
        mixture.apply_statistics(mixture.clip_expectation(features[None])[1], decay=0.5)
    ours = mixture.posterior(features)[:, 7] > 0.5
    agreement = (ours == cluster.bool()).float().mean()
    assert max(agreement, 1 - agreement) > 0.95


def test_fit_recovers_a_mixture_and_em_does_not_lower_the_likelihood():
    centres = torch.randn(4, 6) * 10
    labels = torch.randint(4, (4000,))
    features = centres[labels] + torch.randn(4000, 6) * torch.tensor([0.5, 1, 1.5, 2])[labels][:, None]
    best, found = -math.inf, None
    for seed in range(5):  # random starts may end in local optima; EM must climb from each
        mixture = DiagonalGaussianMixture(4, 6)
        history = mixture.fit(features, generator=torch.Generator().manual_seed(seed), chunk_size=700)
        assert len(history) == 21
        assert all(after > before - 1e-4 for before, after in zip(history, history[1:]))
        if history[-1] > best:
            best, found = history[-1], mixture
    expected = GaussianMixture(4, covariance_type="diag", n_init=5, random_state=0).fit(features.numpy())
    assert best == pytest.approx(expected.score(features.numpy()), abs=0.02)
    assert best == pytest.approx(found.log_joint(features).logsumexp(-1).mean().item(), abs=1e-3)
    assert torch.cdist(centres, found.means).min(1).values.max() < 0.5


def test_fit_is_reproducible_and_independent_of_the_chunk_size():
    features = torch.randn(1000, 4)
    fitted = []
    for chunk_size in (1000, 1000, 137):
        mixture = DiagonalGaussianMixture(5, 4)
        mixture.fit(features, num_passes=0, chunk_size=chunk_size, generator=torch.Generator().manual_seed(1))
        fitted.append(mixture.means.clone())
    assert torch.equal(fitted[0], fitted[1])
    torch.testing.assert_close(fitted[0], fitted[2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("num_components", "num_features"), [(100, 39), (500, 39), (50, 256)])
def test_one_component_on_silence_costs_the_others_no_digits(num_components, num_features):
    """Its variance is the published floor; all others' are those of speech."""
    torch.manual_seed(0)
    mixture = DiagonalGaussianMixture(num_components, num_features)
    mixture.means.mul_(3)
    mixture.variances.copy_(torch.rand(num_components, num_features) + 0.5)
    mixture.variances[7] = 1e-6
    features = mixture.means[torch.randint(num_components, (500,))] + torch.randn(500, num_features)
    wanted = naive_log_joint(mixture, features)
    torch.testing.assert_close(mixture.posterior(features).double(), wanted.softmax(-1), atol=1e-4, rtol=0)
    others = torch.arange(num_components) != 7
    torch.testing.assert_close(mixture.log_joint(features)[:, others].double(), wanted[:, others], atol=1e-2, rtol=0)


def test_digital_silence_does_not_swallow_its_neighbours():
    features = torch.cat([torch.zeros(300, 3), torch.randn(3000, 3)])
    mixture = DiagonalGaussianMixture(8, 3)
    mixture.fit(features, generator=torch.Generator().manual_seed(0))
    floor = 1e-3 * features.var(0)
    assert (mixture.variances >= 0.99 * floor).all()
    torch.testing.assert_close(mixture.variance_floor, floor, rtol=1e-4, atol=0)
    wanted = naive_log_joint(mixture, features)
    torch.testing.assert_close(mixture.posterior(features).double(), wanted.softmax(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        mixture.log_joint(features).logsumexp(-1).double(), wanted.logsumexp(-1), atol=1e-2, rtol=0
    )


def test_the_likelihoods_of_a_fit_are_those_before_each_iteration_and_of_what_it_leaves():
    features, histories = torch.randn(300, 4), []
    for iterations in (0, 1, 3):
        mixture = DiagonalGaussianMixture(5, 4)
        generator = torch.Generator().manual_seed(1)
        histories.append(mixture.fit(features, 0, iterations, chunk_size=128, generator=generator))
        left = mixture.log_joint(features).logsumexp(-1).mean().item()
        assert histories[-1][-1] == pytest.approx(left, abs=1e-5)
        if iterations == 0:
            mixture.apply_statistics(mixture.clip_expectation(features[None])[1], decay=0)
            after_one = mixture.log_joint(features).logsumexp(-1).mean().item()
    assert histories[0] == pytest.approx(histories[2][:1]) and histories[1] == pytest.approx(histories[2][:2])
    assert histories[1][1] == pytest.approx(after_one, abs=1e-5)


def test_a_single_frame_is_fitted_too():
    mixture = DiagonalGaussianMixture(1, 4)
    assert all(map(math.isfinite, mixture.fit(torch.randn(1, 4))))
    assert all(buffer.isfinite().all() for buffer in mixture.buffers())


def test_fit_says_what_is_wrong():
    mixture = DiagonalGaussianMixture(5, 4)
    with pytest.raises(ValueError, match="Cannot fit 5 components to 3 frames"):
        mixture.fit(torch.randn(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        mixture.fit(torch.full((10, 4), float("nan")))
    for shape in ((2, 10, 4), (10, 3)):
        with pytest.raises(ValueError, match=r"\(frames, 4\)"):
            mixture.posterior(torch.randn(shape))
    for features, kind in ((torch.randn(10, 4).numpy(), "ndarray"), (torch.ones(10, 4, dtype=int), "torch.int64")):
        with pytest.raises(ValueError, match=f"must be a floating point tensor, but is {kind}"):
            mixture.fit(features)
    with pytest.raises(ValueError, match="average"):
        mixture.apply_statistics(mixture.clip_expectation(torch.randn(1, 10, 4))[1], average="moments")
    with pytest.raises(ValueError, match="decay"):
        mixture.apply_statistics(mixture.clip_expectation(torch.randn(1, 10, 4))[1], decay=1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_buffers_stay_fp32(dtype):
    model = nn.Sequential(nn.Linear(2, 2), random_mixture())
    before = model[1].means.clone()
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    assert torch.equal(model[1].means, before)
    assert model[1].posterior(torch.randn(3, 5, dtype=dtype)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.randn(20, 5)
        expected = naive_log_joint(model[1], features).softmax(-1)
        torch.testing.assert_close(model[1].posterior(features).double(), expected, atol=1e-5, rtol=0)


# Whole clips


def test_clips_are_their_frames():
    mixture, features, lengths = random_mixture(), torch.randn(3, 20, 5), torch.tensor([20, 7, 0])
    real = torch.arange(20) < lengths[:, None]
    posteriors, statistics = mixture.clip_expectation(features, lengths, temperature=3.0)
    assert posteriors.equal(mixture.clip_posteriors(features, lengths, temperature=3.0))
    assert posteriors.equal(mixture.posterior(features.flatten(0, 1), temperature=3.0).view(3, 20, 7))
    expected = mixture.statistics(features[real], mixture.posterior(features[real]))
    for ours, theirs in zip(statistics, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert list(mixture.state_dict()) == ["weights", "means", "variances", "variance_floor"]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(garbage):
    mixture, lengths = random_mixture(), torch.tensor([20, 7, 0])
    features = torch.randn(3, 20, 5)
    real = torch.arange(20) < lengths[:, None]
    posteriors, statistics = mixture.clip_expectation(features, lengths)
    padded = features.masked_fill(~real[..., None], garbage)
    found, with_garbage = mixture.clip_expectation(padded, lengths)
    assert found[real].equal(posteriors[real])
    for ours, theirs in zip(with_garbage, statistics, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("average", ["statistics", "parameters"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_statistics_of_nothing_change_nothing(average, decay):
    mixture = random_mixture()
    before = copy.deepcopy(mixture.state_dict())
    nothing = mixture.clip_expectation(torch.randn(1, 4, 5), torch.tensor([0]))[1]
    mixture.apply_statistics(nothing, decay, average)
    for name, value in mixture.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("average", ["statistics", "parameters"])
def test_what_is_not_a_number_and_a_decay_of_1_change_nothing(average):
    mixture = random_mixture()
    before = copy.deepcopy(mixture.state_dict())
    for frame, decay in ((float("nan"), 0.5), (3.0, 1.0)):
        mixture.apply_statistics(mixture.clip_expectation(torch.full((1, 4, 5), frame))[1], decay, average)
        for name, value in mixture.state_dict().items():
            torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_updated_variances_far_from_the_centre_are_exact_within_a_thousandth():
    """Components 30 of their standard deviations away from the mean of all, against differences in float64."""
    torch.manual_seed(0)
    mixture, decay = DiagonalGaussianMixture(50, 64), 0.9
    mixture.means.normal_()
    mixture.means.mul_(30 / mixture.means.abs().mean())
    frames = mixture.means[torch.randint(50, (4000,))] + 1.1 * torch.randn(4000, 64)
    (posteriors,), statistics = mixture.clip_expectation(frames[None])
    means, counts = mixture.means.double(), posteriors.double().sum(0)
    step = (1 - decay) * counts / 4000 / (decay / 50 + (1 - decay) * counts / 4000)
    distances = frames.double()[:, None] - means
    first, second = (
        (posteriors.double()[..., None] * power).sum(0) / counts[:, None] for power in (distances, distances.square())
    )
    wanted = (1 - step)[:, None] + step[:, None] * second - (step[:, None] * first).square()
    mixture.apply_statistics(statistics, decay)
    torch.testing.assert_close(mixture.variances.double(), wanted, rtol=2e-3, atol=0)
    torch.testing.assert_close(mixture.means.double(), means + step[:, None] * first, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("of_frames", "of_mixture"), [("cpu", "mps:0"), ("mps:0", "cpu"), ("mps:0", "mps:0")])
def test_an_apple_gpu_fits_and_follows_as_a_cpu_does(of_frames, of_mixture):
    torch.manual_seed(0)
    frames, found = torch.randn(400, 5) + torch.arange(4).repeat(100)[:, None], []
    for on_frames, on_mixture in (("cpu", "cpu"), (of_frames, of_mixture)):
        with AppleGpu():
            mixture = DiagonalGaussianMixture(4, 5).to(on_mixture)
            history = mixture.fit(frames.to(on_frames), generator=torch.Generator().manual_seed(0))
            targets, statistics = mixture.clip_expectation(frames[None].to(on_mixture))
            mixture.apply_statistics(statistics, decay=0.5)
            posteriors = mixture.posterior(frames.to(on_mixture))
            state = [value.cpu() for value in mixture.state_dict().values()]
            found.append((torch.tensor(history), targets.cpu(), posteriors.cpu(), *state))
    torch.testing.assert_close(found[1], found[0])
