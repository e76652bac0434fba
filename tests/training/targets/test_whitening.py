import numpy as np
import pytest
import torch
from accelerate import Accelerator
from noise_batches import collate
from sklearn.decomposition import PCA

from sjepa_hf import DiagonalGaussianMixture, SJepaModel
from sjepa_hf.layer_features import SJepaWhitening
from training.common.processes import Coordinator
from training.common.signals import Interrupted
from training.data.masking import SpanMask
from training.targets import whitening
from training.targets.layer_choice import LayerChoice
from training.targets.sampling import FitAudio
from training.targets.targets import OnlineTargets
from training.targets.whitening import fit_whitening, whitened_components


LENGTHS = (16000, 7000)  # 49 and 21 frames


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def encoder(make_config):
    return SJepaModel(make_config("log_mel")).eval()


@pytest.fixture
def batch():
    clips = [torch.randn(length).mul(0.1).numpy() for length in LENGTHS]
    made = collate(clips, SpanMask(0.65, 10), torch.Generator().manual_seed(0))
    return made | {"seconds": sum(LENGTHS) / 16000, "seed": 7}


def test_components_are_those_of_scikit_learn():
    frames = torch.randn(500, 3) @ torch.randn(3, 12) + 0.01 * torch.randn(500, 12) + 5
    mean, directions = whitened_components(frames, 3)
    ours = (frames - mean) @ directions
    theirs = torch.from_numpy(PCA(3, whiten=True, svd_solver="full").fit_transform(frames.double().numpy())).float()
    torch.testing.assert_close(ours.abs(), theirs.abs() * (500 / 499) ** 0.5, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(ours.T.cov(correction=0), torch.eye(3), atol=1e-3, rtol=0)
    assert whitened_components(frames, 3)[1].equal(directions)
    assert directions.gather(0, directions.abs().argmax(0, keepdim=True)).min() > 0, "whatever LAPACK says"
    assert whitened_components(torch.ones(10, 4), 2)[1].isfinite().all(), "frames all alike"


def test_what_is_fitted_has_mean_0_and_variance_1(accelerator):
    fitted, frames = SJepaWhitening(6, 3), torch.randn(200, 6) * torch.arange(1.0, 7) + 5
    fit_whitening(fitted, frames, Coordinator(accelerator))
    torch.testing.assert_close(fitted(frames).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(fitted(frames).T.cov(correction=0), torch.eye(3), atol=1e-3, rtol=0)


def test_directions_without_variance_are_not_blown_up():
    frames = torch.randn(100, 2) @ torch.randn(2, 6)
    projected = (frames - frames.mean(0)) @ whitened_components(frames, 4)[1]
    assert projected[:, 2:].abs().max() < 0.1 and projected[:, :2].std(0).min() > 0.9
    with pytest.raises(ValueError, match="Cannot find 7 principal components in 100 frames of 6 dim"):
        whitened_components(frames, 7)


def test_components_are_found_in_parts(monkeypatch):
    """No second copy of all frames in double precision is made, and the covariance is that of numpy."""
    monkeypatch.setattr(whitening, "FRAMES_AT_ONCE", 7)
    frames = 1000 + torch.randn(40, 3) @ torch.randn(3, 5)
    mean, directions = whitened_components(frames, 3)
    variances, vectors = np.linalg.eigh(np.cov(frames.double().numpy().T, bias=True))
    expected = np.abs(vectors[:, :-4:-1] / np.sqrt(variances[:-4:-1]))
    torch.testing.assert_close(directions.abs().double(), torch.from_numpy(expected), atol=0, rtol=1e-6)
    torch.testing.assert_close(mean, frames.double().mean(0).float(), atol=0, rtol=0)
    doubled, double = [], torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda self: doubled.append(len(self)) or double(self))
    whitened_components(frames, 3)
    assert max(doubled) == 7


def test_too_few_frames_for_the_components_end_a_run_in_order(accelerator):
    coordinator = Coordinator(accelerator)
    with pytest.raises(Interrupted):
        fit_whitening(SJepaWhitening(48, 8), torch.randn(4, 48), coordinator)
    assert coordinator.interruption.stop.reason.startswith("Cannot find 8 principal components in 4 frames of 48")


def test_the_mixture_models_the_components_and_both_travel_in_the_state(encoder, batch, accelerator):
    def fresh():
        mixture = DiagonalGaussianMixture(4, 8)
        return OnlineTargets(encoder, mixture, LayerChoice(2), accelerator, layers=(1, 2), num_components=8)

    targets = fresh()
    audio = FitAudio(lambda: [batch] * 4, Coordinator(accelerator))
    history = targets.seed(audio, num_frames=200, seed=0, num_iterations=3)
    assert history[-1] >= history[0]
    posteriors = targets.posteriors(batch)
    assert posteriors.shape == (2, 49, 4)
    torch.testing.assert_close(posteriors.sum(-1), torch.ones(2, 49))
    other = fresh()
    other.mixture.load_state_dict(targets.mixture.state_dict())
    assert set(targets.modules) == {"teacher", "target_features"}
    for name, module in other.modules.items():
        module.load_state_dict(targets.modules[name].state_dict())
    assert other.posteriors(batch).equal(posteriors)
    assert list(targets.modules["target_features"].state_dict()) == ["mean", "directions"], "the teacher is saved once"
