"""Measures of what a model computes: effective rank of features, entropy of posteriors in bits."""

import math

import torch

from .float32 import without_autocast


@torch.no_grad()
def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """
    Effective rank (Roy & Vetterli 2007) of features `(num_frames, num_features)`: `exp` of the entropy in nats of the
    singular values of the centred features, normalised to sum 1. A scalar between 1 and `num_features`; 1 where all
    frames are alike; NaN where a feature is not finite.
    """
    device = features.device
    if device.type == "mps":  # torch has no singular values for an Apple GPU
        features = features.cpu()
    with without_autocast(features.device):
        centred = features.float() - features.float().mean(0)
        if not centred.isfinite().all():  # LAPACK refuses such a matrix
            return centred.new_tensor(math.nan).to(device)
        share = torch.linalg.svdvals(centred)
        share = share / share.sum().clamp_min(torch.finfo(torch.float32).tiny)
        return torch.special.entr(share).sum().exp().to(device)


def entropy_bits(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in bits of each row of probabilities `(..., num_components)`: `(...)`."""
    return torch.special.entr(probabilities).sum(-1) / math.log(2)
