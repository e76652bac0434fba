"""Targets: posteriors of a frozen mixture over frame features (phase 1), then of an online one over features of an EMA
encoder (phase 2), given a frame or, where the mixture is an [`HmmMixture`], the whole clip. Both are computed from the
clean audio, in fp32, outside autograd.
"""

import copy
import logging

import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining, SJepaModel, SufficientStatistics
from sjepa_hf.command import once
from sjepa_hf.frame_features import FRAME_FEATURES
from sjepa_hf.frames import check_frames, frame_lengths, real_frames
from sjepa_hf.hmm_mixture import HmmMixture, HmmStatistics
from sjepa_hf.layer_features import SJepaWhitening, read_layers
from training.common.processes import Coordinator, share, summed
from training.targets.layer_choice import LayerChoice
from training.targets.sampling import FitAudio, sample_frames
from training.targets.transitions import fit_transitions
from training.targets.whitening import fit_whitening


logger = logging.getLogger(__name__)


class FrozenTargets:
    """
    Phase 1: posteriors of a mixture that is fitted once to frame features (MFCC, log-mel, ...) and stays as it is.

    Args:
        mixture (`DiagonalGaussianMixture`): the mixture.
        features (`str`): what it is over, a name in `sjepa_hf.frame_features.FRAME_FEATURES`.
        temperature (`float`): tempers the target; 0 makes it one-hot.

    Attributes:
        phase (`int`): 1.
        fitted (`bool`): whether the mixture is that of `features`, so that it can be predicted; set as
            `training/pretraining/phases.py` says.
        modules (`dict`): what a checkpoint holds of the targets beside student and mixture: nothing.
    """

    phase = 1
    modules: dict[str, torch.nn.Module] = {}

    def __init__(self, mixture: DiagonalGaussianMixture, features: str = "mfcc", temperature: float = 1.0):
        self.mixture = mixture
        self.fitted = False
        self.temperature = temperature
        self.feature_name = features
        self.frame_features = FRAME_FEATURES[features]().to(mixture.means.device)

    def features(self, batch: dict) -> torch.Tensor:
        """Frame features of a batch, `(batch_size, sequence_length, num_features)`: 39 for MFCC."""
        return self.frame_features(batch["input_values"], batch["lengths"])

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """Soft targets `(batch_size, sequence_length, num_components)`; padded frames hold anything."""
        return self.mixture.clip_posteriors(self.features(batch), frame_lengths(batch["lengths"]), self.temperature)

    def expectation(self, batch: dict) -> tuple[torch.Tensor, None]:
        """The posteriors, and no statistics: the mixture is frozen."""
        return self.posteriors(batch), None

    def accumulate(self, statistics: None) -> None:
        """Nothing: the mixture is frozen."""

    def update(self, student: SJepaModel, ema_decay: float) -> None:
        """Nothing: the mixture is frozen."""

    def reseed_dead(self) -> int:
        """Nothing: the mixture is frozen."""
        return 0

    def describe(self, model: SJepaForPreTraining) -> None:
        """Have a model's configuration say what its mixture is over."""
        model.describe_mixture(self.feature_name, temperature=self.temperature)


class OnlineTargets:
    """
    Phase 2: posteriors of a mixture over a layer of an EMA copy of the encoder. Both follow the student.

    In each step, [`~OnlineTargets.expectation`] of every micro-batch and [`~OnlineTargets.accumulate`] of its
    statistics, then one [`~OnlineTargets.update`].

    Args:
        student (`SJepaModel`): encoder that the EMA copy starts from.
        mixture (`DiagonalGaussianMixture`): mixture over its features.
        layer_choice (`LayerChoice`): which layer is read.
        accelerator (`Accelerator`): sums statistics over processes, so that all hold the same mixture.
        temperature (`float`): tempers the target; the mixture's own update keeps the plain responsibilities.
        mixture_decay, average: see [`DiagonalGaussianMixture.apply_statistics`].
        layers (`tuple[int]`): layers whose mean is taken, numbered as in `hidden_states` (0 is the input of the first
            Transformer layer); `None`: the active one of `layer_choice`.
        instance_norm (`bool`): whether each layer of each clip gets mean 0 and variance 1 over the clip's frames, per
            dimension, as in data2vec: takes the speaker's and the channel's share off.
        num_components (`int`): whitened principal components that the mixture sees; `None`: all dimensions.
        compiled (`bool`): whether to `torch.compile` the EMA encoder.

    Attributes:
        phase (`int`): 2.
        fitted (`bool`): whether the mixture is that of the layer that is read, so that it can be predicted; set as
            there.
        whitening (`nn.Module`): the principal components, once [`~OnlineTargets.seed`] has fitted them; the identity
            without `num_components`.
    """

    phase = 2

    def __init__(
        self,
        student: SJepaModel,
        mixture: DiagonalGaussianMixture,
        layer_choice: LayerChoice,
        accelerator: Accelerator,
        temperature: float = 1.0,
        mixture_decay: float = 0.999,
        average: str = "statistics",
        layers: tuple[int, ...] | None = None,
        instance_norm: bool = False,
        num_components: int | None = None,
        compiled: bool = False,
    ):
        check_frames(student.config, "The encoder")
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.fixed_layers, self.instance_norm = layers, instance_norm
        self.whitening = torch.nn.Identity()
        if num_components is not None:
            self.whitening = SJepaWhitening(student.config.hidden_size, num_components).to(student.device)
        if compiled:
            self.teacher.compile(dynamic=True)
        self.mixture = mixture
        self.fitted = False
        self.layer_choice = layer_choice
        self.accelerator = accelerator
        self.temperature = temperature
        self.mixture_decay = mixture_decay
        self.average = average
        self._pending: SufficientStatistics | HmmStatistics | None = None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds beside the student and the mixture."""
        return {"teacher": self.teacher, "target_features": self.whitening}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose mean is read."""
        return self.fixed_layers or (self.layer_choice.active,)

    @torch.inference_mode()
    def features(self, batch: dict) -> torch.Tensor:
        """EMA features that the mixture models, `(batch_size, sequence_length, D)`, fp32; later layers do not run."""
        return self.whitening(self.full_features(batch))

    @torch.inference_mode()
    def full_features(self, batch: dict) -> torch.Tensor:
        """The same before the principal components, `(batch_size, sequence_length, hidden_size)`."""
        real = None
        if self.instance_norm:
            real = real_frames(batch["lengths"], frame_lengths(batch["input_values"].shape[1]))
        with self.accelerator.autocast():
            return read_layers(self.teacher, batch["input_values"], batch["attention_mask"], self.layers, real)

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """Soft targets `(batch_size, sequence_length, num_components)`; padded frames hold anything."""
        return self.mixture.clip_posteriors(self.features(batch), frame_lengths(batch["lengths"]), self.temperature)

    @torch.no_grad()
    def expectation(self, batch: dict) -> tuple[torch.Tensor, SufficientStatistics | HmmStatistics]:
        """The posteriors, and the statistics of the batch for [`~OnlineTargets.accumulate`]."""
        return self.mixture.clip_expectation(self.features(batch), frame_lengths(batch["lengths"]), self.temperature)

    def accumulate(self, statistics: SufficientStatistics | HmmStatistics) -> None:
        """Add statistics of a micro-batch to those that the next `update` moves the mixture by."""
        self._pending = statistics if self._pending is None else self._pending + statistics

    @torch.no_grad()
    def update(self, student: SJepaModel, ema_decay: float) -> None:
        """
        After the optimizer's step: move the mixture by the step's statistics and the EMA encoder by the student.
        Statistics that would make the mixture NaN or infinite leave it as it is.
        """
        if self._pending is not None:
            before = [buffer.clone() for buffer in self.mixture.buffers()]
            statistics = type(self._pending)(*summed([*self._pending], self.accelerator))
            self.mixture.apply_statistics(statistics, self.mixture_decay, self.average)
            finite = torch.stack([buffer.isfinite().all() for buffer in self.mixture.buffers()]).all()
            for buffer, old in zip(self.mixture.buffers(), before, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
            self._pending = None
        torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - ema_decay)

    def describe(self, model: SJepaForPreTraining) -> None:
        """Have a model's configuration say what its mixture is over; principal components go along as buffers."""
        model.describe_mixture(
            "encoder",
            layers=self.layers,
            instance_norm=self.instance_norm,
            whitening=tuple(self.whitening.buffers()) or None,  # mean, directions
            temperature=self.temperature,
        )

    def reseed_dead(self) -> int:
        """Give components that nothing is assigned to a new place; returns how many."""
        return self.mixture.reseed_dead()

    @torch.no_grad()
    def seed(self, audio: FitAudio, num_frames: int, seed: int, transition_passes: int = 1, **fit) -> list[float]:
        """
        Fit principal components (if any) and mixture to the active layer's features of some frames, then transitions
        (if any) to as many. Returns the log-likelihoods of `fit`. If it is interrupted, all are as they were.
        """
        buffers = [*self.whitening.buffers(), *self.mixture.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            sample = sample_frames(self.full_features, audio, num_frames, seed, stop_when_full=True)
            if isinstance(self.whitening, SJepaWhitening):
                fit_whitening(self.whitening, sample, audio.coordinator)
            sample = self.whitening(sample.to(self.accelerator.device)).cpu()
            history = fit_mixture(self.mixture, sample, seed, audio.coordinator, **fit)
            if isinstance(self.mixture, HmmMixture):
                fit_transitions(self.mixture, self.features, audio, num_frames, transition_passes)
        except BaseException:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            raise
        return history


def fit_mixture(
    mixture: DiagonalGaussianMixture, sample: torch.Tensor, seed: int, coordinator: Coordinator, **fit
) -> list[float]:
    """
    Fit a mixture to a sample that every process holds; each does the same. Returns the log-likelihoods of `fit`.

    On a GPU sums may be formed in another order each time: all take the first process's mixture, which is the others'
    up to that rounding.

    Raises:
        Interrupted: if the run is to end meanwhile, or the fit fails.
    """
    with coordinator.waiting():
        history = mixture.fit(sample, generator=torch.Generator().manual_seed(seed), **fit)
    coordinator.barrier()
    logger.info(
        "Mixture of %d components fitted to %d frames: log-likelihood in nats per frame after k-means and each EM"
        " iteration: %s",
        mixture.num_components,
        len(sample),
        " ".join(f"{value:.3f}" for value in history),
    )
    if dead := mixture.num_dead():
        said = "%d of the components have hardly a frame: equal frames, such as digital silence."
        logger.log(once(logging.WARNING), said, dead)
    share(mixture.buffers(), coordinator.accelerator)
    return history
