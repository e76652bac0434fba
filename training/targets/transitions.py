"""Transitions of an [`HmmMixture`]: estimated on audio, its Gaussians staying as they are."""

import logging
import math
from collections.abc import Callable

import torch

from sjepa_hf.float32 import widest_float
from sjepa_hf.frames import frame_lengths
from sjepa_hf.hmm import TransitionStatistics
from sjepa_hf.hmm_mixture import HmmMixture
from training.common.processes import summed
from training.targets.sampling import FitAudio


logger = logging.getLogger(__name__)


@torch.no_grad()
def fit_transitions(
    mixture: HmmMixture,
    features: Callable[[dict], torch.Tensor],
    audio: FitAudio,
    num_frames: int,
    passes: int,
    max_seconds: float = math.inf,
) -> list[float]:
    """
    Baum-Welch over the transitions alone, the same in all processes. After [`HmmMixture.fit`] states are
    independent: the first pass counts how posteriors of consecutive frames follow one another. The mixture's weights
    become shares of frames given whole clips.

    Args:
        mixture: whose `transitions` are where they begin.
        features: function from a batch to `(batch_size, sequence_length, num_features)`.
        audio: of which passes are read.
        num_frames, max_seconds: over all processes, after which a pass ends.
        passes: how many.

    Returns:
        Log-likelihood in nats per frame before each pass has changed anything.
    """
    history, transitions, accelerator = [], mixture.transitions, audio.coordinator.accelerator
    exact = widest_float(transitions.pairs.device)  # so that sums do not tell which process read which batch
    for _ in range(passes):
        initial, pairs = (torch.zeros_like(each, dtype=exact) for each in (transitions.initial, transitions.pairs))
        counts, likelihood = TransitionStatistics(initial, pairs), torch.zeros_like(initial[:1])
        for batch in audio.batches(max_seconds, num_frames):
            frames = features(batch)
            observed = mixture.log_likelihoods(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            found = transitions.expectation(observed, frame_lengths(batch["lengths"]))
            counts, likelihood = counts + found.statistics, likelihood + found.log_likelihoods.sum(dtype=exact)
        initial, pairs, likelihood = summed([*counts, likelihood], accelerator)
        visits = initial + pairs.sum(0)
        transitions.apply_statistics(TransitionStatistics(initial, pairs))
        mixture.weights.copy_(visits / visits.sum())
        history.append((likelihood / visits.sum()).item())
    logger.info(
        "Transitions estimated in %d passes over %.0f frames: log-likelihood in nats per frame before each: %s",
        passes,
        visits.sum(),
        " ".join(f"{value:.3f}" for value in history),
    )
    return history
