"""Targets of other targets' mixture under whole clips: its components become states of a hidden Markov model."""

from collections.abc import Iterable

import torch

from sjepa_hf.hmm import TransitionModel, TransitionStatistics, count_transitions
from training.data.batches import real_frames
from training.targets.targets import MfccTargets, OnlineTargets


class HmmTargets:
    """
    Posteriors of a fitted mixture's components given all frames of a clip, by forward-backward.

    Args:
        targets (`MfccTargets` or `OnlineTargets`): whose features and mixture they are; both stay as they are.

    Attributes:
        transitions (`TransitionModel`): what follows what; at first nothing is known of it.
    """

    def __init__(self, targets: MfccTargets | OnlineTargets):
        self.targets = targets
        self.mixture = targets.mixture
        self.transitions = TransitionModel(self.mixture.num_components).to(self.mixture.means.device)

    @torch.no_grad()
    def posteriors(self, batch: dict) -> torch.Tensor:
        """Soft targets `(batch_size, sequence_length, num_components)`, zero in padding."""
        return self.transitions.expectation(*self._observed(batch), count=False).posteriors

    @torch.no_grad()
    def count(self, batches: Iterable[dict]) -> None:
        """Estimate transitions from the mixture's own posteriors of consecutive frames."""
        total = None
        for batch in batches:
            observed, lengths = self._observed(batch)
            plain = (observed + self.mixture.log_weights()).softmax(-1)
            total = _sum(total, count_transitions(plain, lengths))
        self.transitions.apply_statistics(total)

    @torch.no_grad()
    def baum_welch(self, batches: Iterable[dict]) -> float:
        """Re-estimate transitions once. Returns the mean log-likelihood before it, in nats per frame."""
        total, likelihood, frames = None, 0.0, 0
        for batch in batches:
            observed, lengths = self._observed(batch)
            found = self.transitions.expectation(observed, lengths)
            total = _sum(total, found.statistics)
            likelihood, frames = likelihood + found.log_likelihoods.sum().item(), frames + lengths.sum().item()
        self.transitions.apply_statistics(total)
        return likelihood / frames

    def _observed(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihoods `(batch_size, sequence_length, num_components)` and real frames `(batch_size,)`."""
        features = self.targets.features(batch)
        found = self.mixture.log_likelihoods(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return found, real_frames(batch, features.shape[1]).sum(1)


def _sum(total: TransitionStatistics | None, new: TransitionStatistics) -> TransitionStatistics:
    return new if total is None else total + new
