"""Whitened principal components: the directions of the encoder's features that the online mixture sees, if not all."""

import torch

from sjepa_hf.layer_features import SJepaWhitening
from training.common.processes import Coordinator, share


FRAMES_AT_ONCE = 10_000  # in double precision: 61 MB of 768 dimensions


@torch.no_grad()
def fit_whitening(whitening: SJepaWhitening, sample: torch.Tensor, coordinator: Coordinator) -> None:
    """
    Principal components of frames `(N, hidden_size)` that every process holds, each scaled to variance 1; all take the
    first process's.

    Raises:
        Interrupted: if the run is to end meanwhile, or there are too few frames.
    """
    with coordinator.waiting():
        mean, directions = whitened_components(sample, whitening.directions.shape[1])
    coordinator.barrier()
    whitening.mean.copy_(mean)
    whitening.directions.copy_(directions)
    share(whitening.buffers(), coordinator.accelerator)


def whitened_components(sample: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean `(H,)` of frames `(N, H)` and the `(H, count)` that maps centred frames to their leading principal components,
    each of variance 1. Components of variance 0 are not blown up; signs are fixed, so that it is one answer.

    Raises:
        ValueError: if there are fewer dimensions or frames than components.
    """
    if count > min(sample.shape):
        raise ValueError(
            f"Cannot find {count} principal components in {sample.shape[0]} frames of {sample.shape[1]} dimensions:"
            " give more audio or ask for fewer."
        )
    parts = sample.cpu().split(FRAMES_AT_ONCE)
    mean = sum(part.double().sum(0) for part in parts) / len(sample)
    centred = (part.double() - mean for part in parts)
    variances, vectors = torch.linalg.eigh(sum(part.T @ part for part in centred) / len(sample))  # in rising order
    variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    scale = variances.clamp_min(1e-8 * variances[0].clamp_min(1e-12)).rsqrt()
    return mean.float(), (vectors * scale).float()
