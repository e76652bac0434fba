"""Mixture whose components are HMM states, so that each frame's posterior depends on the whole clip (our addition)."""

from typing import NamedTuple

import torch

from .float32 import without_autocast
from .hmm import ClipPosteriors, TransitionModel, TransitionStatistics
from .mixture import DiagonalGaussianMixture, SufficientStatistics, tempered_softmax


class HmmStatistics(NamedTuple):
    """
    What an update of an [`HmmMixture`] needs to know about a set of clips: the fields of [`SufficientStatistics`],
    then those of [`TransitionStatistics`]. They add up as these do.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    initial: torch.Tensor
    pairs: torch.Tensor

    def __add__(self, other: "HmmStatistics") -> "HmmStatistics":
        return HmmStatistics(*(a + b for a, b in zip(self, other, strict=True)))


class HmmMixture(DiagonalGaussianMixture):
    """
    [`DiagonalGaussianMixture`] with transitions between its components. The posteriors of clips
    ([`~HmmMixture.clip_posteriors`]) and their statistics heed the whole clip; all else is of frames alone.

    Args:
        num_components (`int`): K.
        num_features (`int`): D.

    Buffers (persistent, fp32 also after `model.half()`): those of the mixture, and of its `transitions`, a
    [`TransitionModel`].
    """

    def __init__(self, num_components: int, num_features: int):
        super().__init__(num_components, num_features)
        self.transitions = TransitionModel(num_components)

    @torch.no_grad()
    def log_likelihoods(self, features: torch.Tensor) -> torch.Tensor:
        """`log N(x_n; mu_k, s2_k)` in nats for features `(N, num_features)`, weights apart: `(N, num_components)`."""
        return self.log_joint(features).sub_(self.log_weights())

    @torch.no_grad()
    def clip_posteriors(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, temperature: float = 1.0
    ) -> torch.Tensor:
        """
        Soft targets of clips: the posterior of each component given the whole clip.

        Args:
            features, lengths: as in [`DiagonalGaussianMixture.clip_posteriors`].
            temperature (`float`, *optional*, defaults to 1.0): the logarithm of the posterior is divided by it.

        Returns:
            `torch.Tensor` of shape `(batch_size, sequence_length, num_components)`; padded frames hold anything.
        """
        with without_autocast(features.device):
            return self._given_clips(features, lengths, temperature, count=False)[0]

    @torch.no_grad()
    def clip_expectation(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, HmmStatistics]:
        """
        [`~HmmMixture.clip_posteriors`] and the statistics of their real frames: the E-step of Baum-Welch. The
        statistics always take the plain posteriors.
        """
        with without_autocast(features.device):
            targets, moments, expectation = self._given_clips(features, lengths, temperature, count=True)
            frames = self._clip_statistics(moments, expectation.posteriors, lengths)
            return targets, HmmStatistics(*frames, *expectation.statistics)

    def _given_clips(
        self, features: torch.Tensor, lengths: torch.Tensor | None, temperature: float, count: bool
    ) -> tuple[torch.Tensor, torch.Tensor, ClipPosteriors]:
        """Tempered posteriors, the moments of all frames, and what forward-backward found."""
        moments = self._moments(features.flatten(0, 1))
        likelihoods = self._scores(moments).sub_(self.log_weights()).unflatten(0, features.shape[:2])
        expectation = self.transitions.expectation(likelihoods, lengths, count, scores=temperature != 1)
        targets = expectation.posteriors if temperature == 1 else tempered_softmax(expectation.scores, temperature)
        return targets, moments, expectation

    @torch.no_grad()
    def apply_statistics(
        self, statistics: HmmStatistics | SufficientStatistics, decay: float = 0.999, average: str = "statistics"
    ) -> None:
        """
        As [`DiagonalGaussianMixture.apply_statistics`]; with statistics of clips the transitions average their shares
        of all steps, too. Statistics of frames alone say nothing of order and leave transitions as they are.
        """
        super().apply_statistics(SufficientStatistics(*statistics[:3]), decay, average)
        if isinstance(statistics, HmmStatistics):
            self.transitions.apply_statistics(TransitionStatistics(*statistics[3:]), decay)

    def fit(self, features: torch.Tensor, *args, **kwargs) -> list[float]:
        """As [`DiagonalGaussianMixture.fit`]; components are then independent of what came before them."""
        history = super().fit(features, *args, **kwargs)
        self.transitions.make_independent(self.weights)
        return history

    def _split(self, heavy: torch.Tensor, dead: torch.Tensor) -> None:
        super()._split(heavy, dead)
        self.transitions.split(heavy, dead)
