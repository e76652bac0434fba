"""Diagonal Gaussian mixture: the soft clustering anchors of S-JEPA (arXiv 2606.19398, sections 3 and appendix).

The posterior of component k at a frame x of D dimensions is the softmax over components of

    log pi_k + log N(x; mu_k, s2_k)  =  log pi_k - 1/2 sum_d [ log 2 pi + log s2_kd + (x_d - mu_kd)^2 / s2_kd ]

which [`DiagonalGaussianMixture.log_joint`] gives. Its square is expanded into `x^2 / s2 - 2 x mu / s2 + mu^2 / s2`, so
that `N` frames and `K` components are one matrix product and no `[N, K, D]` tensor exists anywhere. Features and means
are first moved to the mixture's own mean, which is what keeps the expansion exact where features lie far from the
origin. Components far from that mean cost digits of their updated variances: 0.1 % at 30 of their standard deviations,
1 % at 100. Everything is fp32 (float64 after `.double()`) and outside autograd.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import Literal, NamedTuple

import torch
from torch import nn

from .float32 import Float32Buffers, widest_float, without_autocast, zero_tiny_
from .frames import length_mask
from .kmeans import kmeans, nearest


class SufficientStatistics(NamedTuple):
    """
    What a mixture update needs to know about a set of frames. Statistics of several micro-batches or of several ranks
    add up, as long as the mixture that made them did not change in between.

    Attributes:
        counts (`torch.Tensor` of shape `(num_components,)`): `sum_n q_nk`.
        sums (`torch.Tensor` of shape `(num_components, num_features)`): `sum_n q_nk (x_n - c)`.
        squares (`torch.Tensor` of shape `(num_components, num_features)`): `sum_n q_nk (x_n - c)^2`.

    `c` is the mean of the mixture, [`DiagonalGaussianMixture.centre`].
    """

    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor

    def __add__(self, other: "SufficientStatistics") -> "SufficientStatistics":
        return SufficientStatistics(*(a + b for a, b in zip(self, other, strict=True)))


class DiagonalGaussianMixture(Float32Buffers):
    """
    Mixture of `num_components` Gaussians with diagonal covariance over `num_features` dimensions.

    Args:
        num_components (`int`): K.
        num_features (`int`): D.

    Buffers (persistent, fp32 also after `model.half()`):
        weights (`(K,)`): component weights, summing to 1.
        means (`(K, D)`): component means.
        variances (`(K, D)`): component variances.
        variance_floor (`(D,)`): smallest variance that an update may leave. 1e-6 (published) until `fit` sets it
            relative to the variance of the data, which keeps digital silence from capturing its neighbours.
    """

    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    variance_floor: torch.Tensor

    def __init__(self, num_components: int, num_features: int):
        super().__init__()
        self.num_components = num_components
        self.num_features = num_features
        as_fp32 = {"dtype": torch.float32}
        self.register_buffer("weights", torch.full((num_components,), 1.0 / num_components, **as_fp32))
        self.register_buffer("means", torch.randn(num_components, num_features, **as_fp32))
        self.register_buffer("variances", torch.ones(num_components, num_features, **as_fp32))
        self.register_buffer("variance_floor", torch.full((num_features,), 1e-6, **as_fp32))

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, num_features={self.num_features}"

    @property
    def centre(self) -> torch.Tensor:
        """Mean of the mixture, `(num_features,)`: the origin in which all products are formed."""
        with without_autocast(self.means.device):
            return self.weights @ self.means

    def is_fitted(self) -> bool:
        """Whether any variance differs from 1: a new mixture has ones alone, and a fit never leaves them so."""
        return not bool((self.variances == 1).all())

    # Posteriors

    @torch.no_grad()
    def log_joint(self, features: torch.Tensor) -> torch.Tensor:
        """`log pi_k + log N(x_n; mu_k, s2_k)` in nats for features `(N, num_features)`: `(N, num_components)`."""
        with without_autocast(features.device):
            moments = self._moments(features)
            squares = moments[:, self.num_features :] @ self._shared_precision()  # [N]
            rest = self.num_features * math.log(2 * math.pi) + squares
            return self._scores(moments).sub_(0.5 * rest[:, None])

    def _moments(self, features: torch.Tensor) -> torch.Tensor:
        """Features about the centre, and their squares beside them: `(N, D) -> (N, 2D)`."""
        features, centre, size = self._check(features).to(self.means.dtype), self.centre, self.num_features
        moments = features.new_empty(len(features), 2 * size)
        frames = torch.sub(features, centre, out=moments[:, :size])
        torch.square(frames, out=moments[:, size:])
        return moments

    def _scores(self, moments: torch.Tensor) -> torch.Tensor:
        """
        [`log_joint`] of moments `(N, 2D)` up to one constant per frame, `(N, num_components)`: what a softmax needs.

        It keeps more digits than [`log_joint`]: of `x^2 / s2_k` only `x^2 (1 / s2_k - shared)` goes into the product,
        as the part that all components share adds the same to a whole row.
        """
        precisions, offsets = self.variances.reciprocal(), self.means - self.centre
        scaled = offsets * precisions
        constants = self.log_weights() - 0.5 * (self.variances.log().sum(1) + (offsets * scaled).sum(1))
        coefficients = torch.cat([scaled, 0.5 * (self._shared_precision() - precisions)], dim=1)  # [K, 2D]
        return torch.addmm(constants, moments, coefficients.T)  # [N, K]

    def _shared_precision(self) -> torch.Tensor:
        """Inverse of the mean variance: a mean of the precisions would be that of a component that fell on silence."""
        return self.variances.mean(0).reciprocal()

    def log_weights(self) -> torch.Tensor:
        """`log pi_k`, `(num_components,)`."""
        return self.weights.clamp_min(torch.finfo(torch.float32).tiny).log()

    @torch.no_grad()
    def posterior(self, features: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """
        Posterior of each component given each frame: the responsibilities, and the soft target of S-JEPA.

        Args:
            features (`torch.Tensor` of shape `(N, num_features)`): frames, without padding.
            temperature (`float`, *optional*, defaults to 1.0):
                Divides the log-joint before the softmax; 1 is the posterior proper, 0 its limit, one-hot at the
                likeliest component. In many dimensions the posterior is nearly one-hot and a temperature above 1
                softens it.

        Returns:
            `torch.Tensor` of shape `(N, num_components)`, fp32, rows summing to 1.
        """
        with without_autocast(features.device):
            return tempered_softmax(self._scores(self._moments(features)), temperature)

    def clip_posteriors(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, temperature: float = 1.0
    ) -> torch.Tensor:
        """
        Soft targets of clips: each frame's [`~DiagonalGaussianMixture.posterior`].

        Args:
            features (`torch.Tensor` of shape `(batch_size, sequence_length, num_features)`): frames of clips.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real frames; without it, all are real.
            temperature (`float`, *optional*, defaults to 1.0): as there.

        Returns:
            `torch.Tensor` of shape `(batch_size, sequence_length, num_components)`; padded frames hold anything.
        """
        return self.posterior(features.flatten(0, 1), temperature).unflatten(0, features.shape[:2])

    # Estimation

    @torch.no_grad()
    def statistics(self, features: torch.Tensor, responsibilities: torch.Tensor) -> SufficientStatistics:
        """
        Sufficient statistics of frames `(N, num_features)` under responsibilities `(N, num_components)`.
        """
        with without_autocast(features.device):
            return self._statistics(self._moments(features), responsibilities.to(self.means.dtype))

    @torch.no_grad()
    def clip_expectation(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, SufficientStatistics]:
        """
        [`~DiagonalGaussianMixture.clip_posteriors`] and the statistics of their real frames, cheaper than one after
        the other: the E-step of online EM. The statistics always take the plain posteriors.
        """
        with without_autocast(features.device):
            moments = self._moments(features.flatten(0, 1))
            scores = self._scores(moments).unflatten(0, features.shape[:2])
            plain = tempered_softmax(scores)
            targets = plain if temperature == 1 else tempered_softmax(scores, temperature)
            return targets, self._clip_statistics(moments, plain, lengths)

    def _clip_statistics(
        self, moments: torch.Tensor, posteriors: torch.Tensor, lengths: torch.Tensor | None
    ) -> SufficientStatistics:
        """Statistics of the real frames of clips, `posteriors` `(batch_size, sequence_length, K)`; clears moments."""
        responsibilities = posteriors.flatten(0, 1)
        if lengths is not None:  # zeros on both sides: padding may be NaN
            padded = ~length_mask(lengths, posteriors.shape[1]).flatten()[:, None]
            responsibilities = responsibilities.masked_fill(padded, 0)
            moments.masked_fill_(padded, 0)
        return self._statistics(moments, responsibilities)

    def _statistics(self, moments: torch.Tensor, responsibilities: torch.Tensor) -> SufficientStatistics:
        sums, squares = (responsibilities.T @ moments).chunk(2, dim=1)
        return SufficientStatistics(responsibilities.sum(0), sums, squares)

    @torch.no_grad()
    def apply_statistics(
        self,
        statistics: SufficientStatistics,
        decay: float = 0.999,
        average: Literal["statistics", "parameters"] = "statistics",
    ) -> None:
        """
        Move the mixture towards the frames of statistics, which may be summed over micro-batches and ranks (online EM;
        paper, appendix), so that the share `decay` of the old mixture stays.

        `average="statistics"` averages the sufficient statistics (stepwise EM, Cappé & Moulines 2009) and derives the
        parameters: a component that the batch never visits keeps its mean and variance while its weight decays.
        `average="parameters"` averages weights, means and variances themselves, as the released code does; there a
        component that nobody visits drifts to the origin.

        Raises:
            ValueError: if `average` is neither of the two, or `decay` is not in [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` is {decay}; it must lie between 0 and 1.")
        counts, sums, squares = statistics
        total = counts.sum()
        share = counts / total.clamp_min(torch.finfo(torch.float32).tiny)
        centre = self.centre
        if average == "statistics":
            weights = decay * self.weights + (1 - decay) * share
            # A component becomes a mixture of its old self and, by the part `rate`, of its frames y in the batch.
            # About its old mean mu, with E over those frames:
            #   mu' - mu = rate E[y - mu] = step
            #   s2' = (1 - rate) s2 + rate E[(y - mu)^2] - step^2, the second moment less the square of the first
            rate = ((1 - decay) * share / weights.clamp_min(torch.finfo(torch.float32).tiny))[:, None]
            visits = counts.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            offsets = self.means - centre
            step = rate * (sums / visits - offsets)
            second_moment = squares / visits - offsets * (2 * sums / visits - offsets)  # about the old mean
            variances = (1 - rate) * self.variances + rate * second_moment - step.square()
            self.means.add_(torch.where(counts[:, None] > 0, step, 0))
            self.variances.copy_(torch.where(counts[:, None] > 0, variances, self.variances))
        elif average == "parameters":
            visits = counts.clamp_min(1e-8)[:, None]
            batch_means = (sums + counts[:, None] * centre) / visits
            offsets = batch_means - centre
            batch_variances = (squares - 2 * offsets * sums + offsets.square() * counts[:, None]) / visits
            weights = decay * self.weights + (1 - decay) * share
            batch_variances = torch.maximum(batch_variances, self.variance_floor)
            for own, new in ((self.means, batch_means), (self.variances, batch_variances)):
                own.copy_(torch.where(total > 0, own.lerp(new, 1 - decay), own))
        else:
            raise ValueError(f"`average` is {average!r}; choose 'statistics' or 'parameters'.")
        self.variances.copy_(torch.maximum(self.variances, self.variance_floor))
        self.weights.copy_(torch.where(total > 0, weights / weights.sum(), self.weights))

    @torch.no_grad()
    def fit(
        self,
        features: torch.Tensor,
        num_passes: int = 5,
        num_iterations: int = 20,
        relative_variance_floor: float = 1e-3,
        chunk_size: int = 16384,
        generator: torch.Generator | None = None,
        progress: Callable[[str], None] = lambda done: None,
    ) -> list[float]:
        """
        Fit from scratch: mini-batch k-means, then EM (paper, section 3).

        Args:
            features (`torch.Tensor` of shape `(N, num_features)`): frames, without padding, on any device.
            num_passes (`int`, *optional*, defaults to 5): k-means passes over the frames.
            num_iterations (`int`, *optional*, defaults to 20): EM iterations.
            relative_variance_floor (`float`, *optional*, defaults to 1e-3):
                `variance_floor` becomes this share of each dimension's global variance, and at least 1e-6. Below 1e-4,
                float32 EM does not resolve narrow components (digital silence): posteriors beside them are wrong.
            chunk_size (`int`, *optional*, defaults to 16384): frames that are processed at once.
            generator (`torch.Generator`, *optional*): CPU generator that makes the fit reproducible.
            progress (`Callable`, *optional*): told in a few words how far the fit is, at every chunk.

        Returns:
            `list[float]` of `num_iterations + 1` entries: mean log-likelihood in nats per frame after k-means and
            after each EM iteration. EM does not lower it, beyond rounding and the variance floor.

        Raises:
            ValueError: if there are fewer frames than components, or a frame is not finite.
        """
        self._check(features)
        if len(features) < self.num_components:
            raise ValueError(
                f"Cannot fit {self.num_components} components to {len(features)} frames:"
                " give more audio or fewer components."
            )
        if not torch.isfinite(features).all():
            raise ValueError(
                "Cannot fit a mixture to frames that are NaN or infinite: check the audio they come from."
            )
        device = self.means.device
        exact = min(map(widest_float, (features.device, device)), key=lambda dtype: dtype.itemsize)
        correction = min(len(features) - 1, 1)  # of a single frame the variance is 0
        columns = (some.to(exact).var(dim=0, correction=correction) for some in features.split(64, dim=1))
        variance = torch.cat(list(columns)).to(device)
        self.variance_floor.copy_((relative_variance_floor * variance).clamp_min(1e-6))
        centroids = kmeans(features, self.num_components, num_passes, chunk_size, generator, progress, device)
        self.weights.fill_(1.0 / self.num_components)
        self.means.copy_(centroids)
        self.variances.copy_(variance.clamp_min(1e-6).expand_as(self.variances))

        def chunks(stage: str) -> Iterator[torch.Tensor]:
            for chunk in features.split(chunk_size):
                progress(stage)
                yield chunk.to(device)

        hard = (
            self.statistics(chunk, nn.functional.one_hot(nearest(chunk, self.means), self.num_components))
            for chunk in chunks("nearest clusters of all frames")
        )
        self.apply_statistics(reduce(add, hard), decay=0)
        history = []
        for iteration in range(num_iterations + 1):
            total, log_likelihood = None, 0.0
            for chunk in chunks(f"EM iteration {min(iteration + 1, num_iterations)} of {num_iterations}"):
                joint = self.log_joint(chunk)
                evidence = joint.logsumexp(-1, keepdim=True)
                log_likelihood += evidence.sum(dtype=widest_float(device)).item()
                if iteration < num_iterations:
                    statistics = self.statistics(chunk, tempered_softmax(joint))
                    total = statistics if total is None else total + statistics
            history.append(log_likelihood / len(features))
            if total is not None:
                self.apply_statistics(total, decay=0)
        return history

    def num_dead(self) -> int:
        """How many components have a weight below a hundredth of the mean one, `1 / num_components`."""
        return int((self.weights < 0.01 / self.num_components).sum())

    @torch.no_grad()
    def reseed_dead(self) -> int:
        """
        Give every dead component ([`~DiagonalGaussianMixture.num_dead`]) one half of one of the heaviest ones.

        The halves part along one dimension alone: that in which the component is widest, measured by the mean
        precision of all components there. What it has swallowed lies there, and its own variance says how wide its
        frames lie, so that a step of 0.3 standard deviations to either side costs about 0.002 nats of each of its
        frames in any number of dimensions (steps in all of them would cost that times their number). EM then takes the
        halves apart. All is a function of the mixture alone: all ranks arrive at the same mixture without a word.

        Returns:
            `int`: how many components were re-seeded (at most as many as are alive).
        """
        order = self.weights.argsort(descending=True, stable=True)
        dead = self.num_dead()
        dead = min(dead, self.num_components - dead)
        if dead == 0:
            return 0
        self._split(order[:dead], order[-dead:])
        return dead

    def _split(self, heavy: torch.Tensor, dead: torch.Tensor) -> None:
        """Give each of `dead`, `(num_splits,)`, one half of its `heavy` one, as [`reseed_dead`] says."""
        widest = (self.variances[heavy] * self.variances.reciprocal().mean(0)).argmax(1, keepdim=True)
        step = 0.3 * self.variances[heavy].gather(1, widest).sqrt()
        shift = torch.zeros_like(self.means[heavy]).scatter_(1, widest, step)
        self.means[dead] = self.means[heavy] + shift
        self.means[heavy] -= shift
        self.variances[dead] = self.variances[heavy]
        self.weights[heavy] *= 0.5
        self.weights[dead] = self.weights[heavy]
        self.weights.div_(self.weights.sum())

    def _check(self, features: torch.Tensor) -> torch.Tensor:
        if not isinstance(features, torch.Tensor) or not features.is_floating_point():
            kind = features.dtype if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"`features` must be a floating point tensor, but is {kind}: convert it.")
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"`features` must have shape (frames, {self.num_features}), but has {tuple(features.shape)}:"
                " flatten batch and time, and leave padding out."
            )
        return features


def tempered_softmax(scores: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    `softmax(scores / temperature)` over components, what is tiny being zero; at temperature 0 its limit, one-hot.
    """
    if temperature < 0:
        raise ValueError(
            f"`temperature` is {temperature}; it must be at least 0 (1: the plain posterior, 0: one-hot)."
        )
    if temperature == 0:
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
    tempered = scores if temperature == 1 else scores / temperature
    return zero_tiny_(tempered.softmax(-1))
