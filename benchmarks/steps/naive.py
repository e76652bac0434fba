"""A pretraining step written down as the method reads, without a thought for speed.

It is the reference that the fast step is checked against (same loss, same mixture, same EMA encoder) and measured
against: the mixture by differences of every frame to every component, MFCC and loss clip by clip, predictor and head
at every frame, all layers of the EMA encoder, parameters averaged one at a time.
"""

import copy
import math

import torch
from accelerate import Accelerator
from torch import Tensor

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining
from sjepa_hf.frame_features import MfccFeatures
from sjepa_hf.frames import frame_lengths


CHUNK = 500  # frames whose [N, K, D] differences are held at a time


class NaiveStep:
    """
    One optimizer step of either phase.

    Args:
        model: what is trained, mixture included.
        accelerator: gives device and precision.
        phase: 1 takes targets from MFCC, 2 from an EMA copy of the encoder.
        layer: layer of that copy, numbered as in `hidden_states`.
        include_visible: whether visible frames count in the loss.
        mixture_decay, ema_decay, learning_rate, max_grad_norm: as in training.
    """

    def __init__(
        self,
        model: SJepaForPreTraining,
        accelerator: Accelerator,
        *,
        phase: int,
        layer: int,
        include_visible: bool,
        mixture_decay: float,
        ema_decay: float,
        learning_rate: float,
        max_grad_norm: float,
    ):
        self.model = model
        self.teacher = copy.deepcopy(model.sjepa).eval().requires_grad_(False) if phase == 2 else None
        self.accelerator = accelerator
        self.layer, self.include_visible = layer, include_visible
        self.mixture_decay, self.ema_decay, self.max_grad_norm = mixture_decay, ema_decay, max_grad_norm
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def train_on(self, batch: dict) -> Tensor:
        """One step on a batch of `with_masks`. Returns the loss, `()`."""
        num_frames = batch["mask_time_indices"].shape[1]
        frames = torch.arange(num_frames, device=batch["lengths"].device)
        real = frames < frame_lengths(batch["lengths"])[:, None]  # [B, T]
        features = self.features(batch, num_frames)
        targets = difference_posterior(features.flatten(0, 1), self.model.mixture).unflatten(0, real.shape)
        with self.accelerator.autocast():
            logits = self.logits(batch, real)
        loss = clipwise_loss(logits, targets, real if self.include_visible else batch["mask_time_indices"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            difference_update(self.model.mixture, features[real], targets[real], self.mixture_decay)
            with torch.no_grad():
                for old, new in zip(self.teacher.parameters(), self.model.sjepa.parameters(), strict=True):
                    old.copy_(self.ema_decay * old + (1 - self.ema_decay) * new)
        return loss.detach()

    @torch.no_grad()
    def features(self, batch: dict, num_frames: int) -> Tensor:
        """What the mixture models: `(batch_size, num_frames, D)`."""
        if self.teacher is None:
            found = batch["input_values"].new_zeros(len(batch["lengths"]), num_frames, 39)
            for clip, length in enumerate(batch["lengths"].tolist()):
                mfcc = clip_mfcc(batch["input_values"][clip, :length])
                found[clip, : len(mfcc)] = mfcc
            return found
        with self.accelerator.autocast():
            states = self.teacher(
                batch["input_values"], batch["attention_mask"], output_hidden_states=True
            ).hidden_states
        return states[self.layer].float()

    def logits(self, batch: dict, real: Tensor) -> Tensor:
        """Predictor and head at every frame, `(batch_size, num_frames, K)`; each frame then takes its own path."""
        model, mask = self.model, batch["mask_time_indices"]
        hidden = model.sjepa(batch["input_values"], batch["attention_mask"], mask_time_indices=mask).last_hidden_state
        everywhere = torch.arange(mask.numel(), device=mask.device)
        predicted = model.predictor(hidden, mask, everywhere, real).view_as(hidden)
        return torch.where(mask[:, :, None], model.cluster_head(predicted), model.cluster_head(hidden))


def clip_mfcc(waveform: Tensor) -> Tensor:
    """MFCC with deltas of one clip `(num_samples,)`: `(num_frames, 39)`."""
    return MfccFeatures().to(waveform.device)(waveform[None])[0]


@torch.no_grad()
def difference_posterior(features: Tensor, mixture: DiagonalGaussianMixture) -> Tensor:
    """Posterior of each component given each row of `(N, D)`, through the `[N, K, D]` differences: `(N, K)`."""
    posteriors = []
    for chunk in features.split(CHUNK):
        distances = ((chunk[:, None] - mixture.means).square() / mixture.variances).sum(-1)
        log_density = -0.5 * (distances + mixture.variances.log().sum(1) + features.shape[1] * math.log(2 * math.pi))
        posteriors.append((mixture.weights.log() + log_density).softmax(-1))
    return torch.cat(posteriors)


@torch.no_grad()
def difference_update(mixture: DiagonalGaussianMixture, features: Tensor, posterior: Tensor, decay: float) -> None:
    """Stepwise EM from frames `(N, D)` and their posterior `(N, K)`, variances about the new means."""
    share = posterior.sum(0) / len(features)
    weights = decay * mixture.weights + (1 - decay) * share
    sums = decay * mixture.weights[:, None] * mixture.means + (1 - decay) * (posterior.T @ features) / len(features)
    means = sums / weights[:, None]
    spread = decay * mixture.weights[:, None] * (mixture.variances + (mixture.means - means).square())
    for chunk, counted in zip(features.split(CHUNK), posterior.split(CHUNK)):
        squares = (counted[:, :, None] * (chunk[:, None] - means).square()).sum(0)
        spread += (1 - decay) * squares / len(features)
    mixture.variances.copy_(torch.maximum(spread / weights[:, None], mixture.variance_floor))
    mixture.means.copy_(means)
    mixture.weights.copy_(weights / weights.sum())


def clipwise_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean `KL(target || prediction)` over the frames where `counted`, bool `(batch_size, num_frames)`, is True."""
    total, frames = 0.0, 0
    for clip in range(len(counted)):
        target = targets[clip][counted[clip]]
        prediction = logits[clip][counted[clip]].float().log_softmax(-1)
        total = total + (torch.xlogy(target, target) - target * prediction).sum()
        frames += len(target)
    return total / frames
