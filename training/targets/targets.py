"""Where the soft targets come from: a mixture fixed over MFCC (phase 1), then one over an EMA encoder's features
(phase 2). Both are computed from the clean audio, in fp32, outside autograd.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import islice

import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaModel, SufficientStatistics
from sjepa_hf.measures import effective_rank
from training.common.processes import Meeting
from training.targets.encoder_features import TargetFeatures, real_frames
from training.targets.frame_features import FRAME_FEATURES
from training.targets.layer_choice import LayerChoice
from training.targets.reservoir import FrameReservoir


logger = logging.getLogger(__name__)

RANK_FRAMES = 2000  # frames that an effective rank is measured on (paper, section 3.3)


class MfccTargets:
    """
    Phase 1: posteriors of a mixture that was fitted to MFCC once and stays as it is.

    Args:
        mixture (`DiagonalGaussianMixture`): the mixture.
        features (`str`): what it is over, a name in `training.targets.frame_features.FRAME_FEATURES`.
        temperature (`float`): tempers the target; 0 makes it one-hot.
    """

    def __init__(self, mixture: DiagonalGaussianMixture, features: str = "mfcc", temperature: float = 1.0):
        self.mixture = mixture
        self.temperature = temperature
        self.frame_features = FRAME_FEATURES[features]().to(mixture.means.device)

    def features(self, batch: dict) -> torch.Tensor:
        """Frame features of a batch, `(batch_size, sequence_length, num_features)`: 39 for MFCC."""
        return self.frame_features(batch["input_values"], batch["lengths"])

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """Soft targets `(batch_size, sequence_length, num_components)`; padded frames hold anything."""
        features = self.features(batch)
        return self.mixture.posterior(features.flatten(0, 1), self.temperature).unflatten(0, features.shape[:2])

    def update(self, student: SJepaModel, ema_decay: float) -> None:
        """Nothing: the mixture is frozen."""


class OnlineTargets:
    """
    Phase 2: posteriors of a mixture over one layer of an EMA copy of the encoder. Both follow the student.

    Args:
        student (`SJepaModel`): encoder that the EMA copy starts from.
        mixture (`DiagonalGaussianMixture`): mixture over its features.
        layer_choice (`LayerChoice`): which layer is read.
        accelerator (`Accelerator`): sums statistics over ranks, so that all hold the same mixture.
        temperature (`float`): tempers the target; the mixture's own update keeps the plain responsibilities.
        mixture_decay, average: see [`DiagonalGaussianMixture.apply_statistics`].
        layers, instance_norm, num_components: see [`TargetFeatures`].
        compiled (`bool`): whether to `torch.compile` the EMA encoder.
    """

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
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.target_features = TargetFeatures(self.teacher, layers, instance_norm, num_components)
        if compiled:
            self.teacher.compile(dynamic=True)
        self.mixture = mixture
        self.layer_choice = layer_choice
        self.accelerator = accelerator
        self.temperature = temperature
        self.mixture_decay = mixture_decay
        self.average = average
        self._pending: SufficientStatistics | None = None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds beside the student and the mixture."""
        return {"teacher": self.teacher, "target_features": self.target_features}

    @torch.inference_mode()
    def features(self, batch: dict) -> torch.Tensor:
        """EMA features that the mixture models, `(batch_size, sequence_length, D)`; later layers do not run."""
        with self.accelerator.autocast():
            return self.target_features(batch, self.layer_choice.active)

    @torch.inference_mode()
    def full_features(self, batch: dict) -> torch.Tensor:
        """The same before the principal components, `(batch_size, sequence_length, hidden_size)`."""
        with self.accelerator.autocast():
            return self.target_features.full(batch, self.layer_choice.active)

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """
        Soft targets `(batch_size, sequence_length, num_components)`; padded frames hold anything. The statistics of
        the batch are kept for `update`, so every micro-batch of a step counts, once.
        """
        features = self.features(batch)
        frames = features.flatten(0, 1)  # [B * T, H]
        real = real_frames(batch, features.shape[1]).flatten()
        targets, statistics = self.mixture.expectation(frames, real, self.temperature)
        self._pending = statistics if self._pending is None else self._pending + statistics
        return targets.unflatten(0, features.shape[:2])

    @torch.no_grad()
    def update(self, student: SJepaModel, ema_decay: float) -> None:
        """
        After the optimizer's step: move the mixture by the step's statistics and the EMA encoder by the student.
        Statistics that would make the mixture NaN or infinite leave it as it is.
        """
        if self._pending is not None:
            before = [buffer.clone() for buffer in self.mixture.buffers()]
            self.mixture.apply_statistics(
                sum_over_ranks(self._pending, self.accelerator), self.mixture_decay, self.average
            )
            finite = torch.stack([buffer.isfinite().all() for buffer in self.mixture.buffers()]).all()
            for buffer, old in zip(self.mixture.buffers(), before, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
            self._pending = None
        torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - ema_decay)

    @torch.no_grad()
    def seed(
        self,
        batches: Iterable[dict],
        num_frames: int,
        seed: int,
        batches_a_round: int = 1,
        meeting: Meeting | None = None,
        **fit,
    ) -> list[float]:
        """
        Fit principal components (if any) and mixture to the active layer's features of some batches. Returns the
        log-likelihoods of `fit`. Where it does not come to its end, both are as they were.
        """
        buffers = [*self.target_features.buffers(), *self.mixture.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            return self._seed(batches, num_frames, seed, batches_a_round, meeting, **fit)
        except BaseException:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            raise

    def _seed(self, batches, num_frames: int, seed: int, batches_a_round: int, meeting, **fit) -> list[float]:
        sample = sample_frames(
            self.full_features,
            batches,
            num_frames,
            seed,
            self.accelerator,
            stop_when_full=True,
            batches_a_round=batches_a_round,
            meeting=meeting,
        )
        self._pending = None
        self.target_features.fit(sample, self.accelerator)
        sample = self.target_features.project(sample.to(self.accelerator.device)).cpu()
        return fit_mixture(self.mixture, sample, seed, self.accelerator, meeting, **fit)


def sum_over_ranks(statistics: SufficientStatistics, accelerator: Accelerator) -> SufficientStatistics:
    """Statistics of all ranks together, by one all-reduce."""
    if accelerator.num_processes == 1:
        return statistics
    flat = accelerator.reduce(torch.cat([part.flatten() for part in statistics]), reduction="sum")
    parts = flat.split([part.numel() for part in statistics])
    return SufficientStatistics(*(new.view_as(old) for new, old in zip(parts, statistics, strict=True)))


def fit_mixture(
    mixture: DiagonalGaussianMixture,
    sample: torch.Tensor,
    seed: int,
    accelerator: Accelerator,
    meeting: Meeting | None = None,
    **fit,
) -> list[float]:
    """
    Fit a mixture to a sample that every rank holds; every rank does the same. Returns the log-likelihoods of `fit`.

    On a GPU sums may be formed in another order each time: the first rank's mixture, which is the others' up to that
    rounding, is taken by all.
    """
    with meeting.waiting() if meeting else nullcontext():
        history = mixture.fit(sample, generator=torch.Generator().manual_seed(seed), **fit)
    if meeting:
        meeting.sum()
    logger.info(
        "Mixture of %d components fitted to %d frames: log-likelihood in nats per frame after k-means and each EM"
        " iteration: %s",
        mixture.num_components,
        len(sample),
        " ".join(f"{value:.3f}" for value in history),
    )
    if accelerator.num_processes > 1:
        for buffer in mixture.buffers():
            torch.distributed.broadcast(buffer, src=0)
    return history


@torch.no_grad()
def sample_frames(
    features: Callable[[dict], torch.Tensor],
    batches: Iterable[dict],
    num_frames: int,
    seed: int,
    accelerator: Accelerator,
    *,
    max_seconds: float = math.inf,
    stop_when_full: bool = False,
    batches_a_round: int = 1,
    meeting: Meeting | None = None,
) -> torch.Tensor:
    """
    Uniform sample of the frames of all ranks, the same on every rank: `(at most num_frames, num_features)`. It depends
    on the batches alone, not on how they are shared out: each batch carries the `draw` that decides which of its
    frames are taken, and reading stops after a whole round of all readers.

    Args:
        features: function from a batch to `(batch_size, sequence_length, num_features)`.
        batches: this rank's batches.
        num_frames: size of the sample over all ranks.
        seed: seed of the sample.
        max_seconds: stop after this much audio over all ranks.
        stop_when_full: stop as soon as that many frames were seen, instead of reading all that there is.
        batches_a_round: batches of this rank between two looks at whether to stop: its number of readers.
        meeting: where the ranks look; from it they may leave.
    """
    meeting = meeting or Meeting(accelerator)
    reservoir = FrameReservoir(num_frames, seed)
    seconds, batches = 0.0, iter(batches)
    while True:
        batch = None
        for batch in islice(batches, batches_a_round):
            batch = to_device(batch, accelerator.device)
            values = features(batch)
            reservoir.add(values[real_frames(batch, values.shape[1])], batch["draw"])
            seconds += batch["seconds"]
        going, heard, seen = meeting.sum(float(batch is not None), seconds, float(reservoir.seen))
        if not going or heard >= max_seconds or (stop_when_full and seen >= num_frames):
            break
    return smallest(*reservoir.sample(), num_frames, accelerator).cpu()


def smallest(numbers: torch.Tensor, frames: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """
    The `count` frames with the smallest random numbers over all ranks, in their order, the same on every rank.

    Args:
        numbers: int64 `(n,)`; `frames`: `(n, ...)`. `n` may differ between ranks and may be 0.
    """
    if accelerator.num_processes > 1:
        numbers, frames = (values.to(accelerator.device) for values in (numbers, frames))
        limit = gathered(numbers, accelerator).sort().values[:count][-1]
        numbers, frames = numbers[numbers <= limit], frames[numbers <= limit]
        numbers, frames = gathered(numbers, accelerator), gathered(frames, accelerator)
    return frames[numbers.argsort()[:count]]


def gathered(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Rows of all ranks one after another; their number may differ, and a rank may have none."""
    shapes = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(shapes, tuple(values.shape))
    longest = max(shapes)
    padded = values.new_zeros(longest)
    if len(values):
        padded[: len(values)] = values
    parts = accelerator.gather(padded[None])
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])


@torch.no_grad()
def layer_ranks(encoder: SJepaModel, micro_batches: list[dict], accelerator: Accelerator, seed: int) -> list[float]:
    """
    Effective rank of the first Transformer layer's input and of every layer's output, as `hidden_states` has them, on
    2,000 random real frames of a step's micro-batches (over all ranks), from one forward pass each. The same numbers
    on every rank, and however the step is split.
    """
    training = encoder.training
    encoder.eval()
    reservoirs = None
    for batch in micro_batches:
        with accelerator.autocast():
            layers = encoder(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
        real = real_frames(batch, layers[0].shape[1])
        reservoirs = reservoirs or [FrameReservoir(RANK_FRAMES, seed) for _ in layers]
        for reservoir, layer in zip(reservoirs, layers, strict=True):
            reservoir.add(layer[real], batch["draw"])
    encoder.train(training)
    ranks = []
    for reservoir in reservoirs:
        frames = smallest(*reservoir.sample(), RANK_FRAMES, accelerator)
        ranks.append(effective_rank(frames.to(accelerator.device)))
    ranks = torch.stack(ranks)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast(ranks, src=0)  # the same up to the last bits, which must not decide either
    return ranks.tolist()


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
