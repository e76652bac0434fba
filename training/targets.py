"""Where the soft targets come from: a mixture fixed over MFCC (phase 1), then one over an EMA encoder's features
(phase 2). Both are computed from the clean audio, in fp32, outside autograd.
"""

import copy
from collections.abc import Iterable

import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaModel, SufficientStatistics
from training.features import MfccFeatures, frame_lengths
from training.layer_choice import LayerChoice, effective_rank
from training.reservoir import FrameReservoir


RANK_FRAMES = 2000  # frames that an effective rank is measured on (paper, section 3.3)


class MfccTargets:
    """Phase 1: posteriors of a mixture that was fitted to MFCC once and stays as it is."""

    def __init__(self, mixture: DiagonalGaussianMixture):
        self.mixture = mixture
        self.mfcc = MfccFeatures().to(mixture.means.device)

    def features(self, batch: dict) -> torch.Tensor:
        """MFCC of a batch, `(batch_size, sequence_length, 39)`."""
        return self.mfcc(batch["input_values"], batch["lengths"])

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """Soft targets `(batch_size, sequence_length, num_components)`; padded frames hold anything."""
        features = self.features(batch)
        return self.mixture.posterior(features.flatten(0, 1)).unflatten(0, features.shape[:2])

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
    ):
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.mixture = mixture
        self.layer_choice = layer_choice
        self.accelerator = accelerator
        self.temperature = temperature
        self.mixture_decay = mixture_decay
        self.average = average
        self._pending: SufficientStatistics | None = None

    @torch.no_grad()
    def features(self, batch: dict) -> torch.Tensor:
        """EMA features of the active layer, `(batch_size, sequence_length, hidden_size)`; later layers do not run."""
        with self.accelerator.autocast():
            return self.teacher(
                batch["input_values"], batch["attention_mask"], num_layers=self.layer_choice.active + 1
            ).last_hidden_state.float()

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
        """After the optimizer's step: move the mixture by the step's statistics and the EMA encoder by the student."""
        if self._pending is not None:
            self.mixture.apply_statistics(
                sum_over_ranks(self._pending, self.accelerator), self.mixture_decay, self.average
            )
            self._pending = None
        torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - ema_decay)

    @torch.no_grad()
    def seed(self, batches: Iterable[dict], num_frames: int, seed: int, **fit) -> list[float]:
        """Fit the mixture to the active layer's features of some batches. Returns the log-likelihoods of `fit`."""
        sample = sample_frames(self.features, batches, num_frames, seed, self.accelerator, stop_when_full=True)
        self._pending = None
        return self.mixture.fit(sample, generator=torch.Generator().manual_seed(seed), **fit)


def real_frames(batch: dict, sequence_length: int) -> torch.Tensor:
    """Which frames of a batch are real: bool `(batch_size, sequence_length)`."""
    lengths = frame_lengths(batch["lengths"])
    return torch.arange(sequence_length, device=lengths.device) < lengths[:, None]


def sum_over_ranks(statistics: SufficientStatistics, accelerator: Accelerator) -> SufficientStatistics:
    """Statistics of all ranks together, by one all-reduce."""
    if accelerator.num_processes == 1:
        return statistics
    flat = accelerator.reduce(torch.cat([part.flatten() for part in statistics]), reduction="sum")
    parts = flat.split([part.numel() for part in statistics])
    return SufficientStatistics(*(new.view_as(old) for new, old in zip(parts, statistics, strict=True)))


@torch.no_grad()
def sample_frames(
    features,
    batches: Iterable[dict],
    num_frames: int,
    seed: int,
    accelerator: Accelerator,
    max_seconds: float | None = None,
    stop_when_full: bool = False,
) -> torch.Tensor:
    """
    Uniform sample of the frames of all ranks, the same on every rank: `(at most num_frames, num_features)`.

    Args:
        features: function from a batch to `(batch_size, sequence_length, num_features)`.
        batches: this rank's batches.
        num_frames: size of the sample over all ranks.
        seed: seed of the sample.
        max_seconds: stop after this much audio over all ranks.
        stop_when_full: stop as soon as the reservoir is full, instead of reading all that there is.
    """
    ranks = accelerator.num_processes
    reservoir = FrameReservoir(-(-num_frames // ranks), seed + accelerator.process_index)
    seconds = 0.0
    for batch in batches:
        batch = to_device(batch, accelerator.device)
        values = features(batch)
        reservoir.add(values[real_frames(batch, values.shape[1])])
        seconds += batch["seconds"]
        if max_seconds is not None and seconds * ranks >= max_seconds:
            break
        if stop_when_full and reservoir.seen >= reservoir.capacity:
            break
    sample = reservoir.frames()
    if ranks == 1:
        return sample
    fewest = accelerator.gather(torch.tensor([len(sample)], device=accelerator.device)).min().item()
    return accelerator.gather(sample[:fewest].to(accelerator.device).contiguous()).cpu()


@torch.no_grad()
def layer_ranks(encoder: SJepaModel, batch: dict, accelerator: Accelerator, seed: int) -> list[float]:
    """
    Effective rank of every Transformer layer's features on 2,000 random real frames of a batch (over all ranks), from
    one forward pass. The same numbers on every rank.
    """
    training = encoder.training
    encoder.eval()
    with accelerator.autocast():
        hidden_states = encoder(
            batch["input_values"], batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    encoder.train(training)
    positions = torch.cat([batch["masked_positions"], batch["visible_positions"]])
    generator = torch.Generator().manual_seed(seed + accelerator.process_index)
    quota = -(-RANK_FRAMES // accelerator.num_processes)
    chosen = positions[torch.randperm(len(positions), generator=generator)[:quota].to(positions.device)]
    ranks = []
    for layer in hidden_states[1:]:
        frames = layer.flatten(0, 1)[chosen].float()
        if accelerator.num_processes > 1:
            frames = accelerator.gather(accelerator.pad_across_processes(frames, pad_index=float("nan")))
            frames = frames[~frames.isnan().any(1)]
        ranks.append(effective_rank(frames))
    ranks = torch.stack(ranks)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast(ranks, src=0)
    return ranks.tolist()


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
