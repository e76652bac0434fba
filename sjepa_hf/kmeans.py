"""K-means: the start of a mixture's fit, or clusters by themselves."""

from collections.abc import Callable

import torch

from .float32 import without_autocast


def nearest(features: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid (Euclidean) of each row: `(N, D), (K, D) -> (N,)`."""
    centre = centroids.mean(0)
    offsets = centroids - centre
    with without_autocast(features.device):
        return torch.addmm(-0.5 * offsets.square().sum(1), features.to(centroids.dtype) - centre, offsets.T).argmax(1)


@torch.no_grad()
def kmeans(
    features: torch.Tensor,
    num_clusters: int,
    num_passes: int = 5,
    batch_size: int = 16384,
    generator: torch.Generator | None = None,
    progress: Callable[[str], None] = lambda done: None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """
    Mini-batch k-means (Sculley 2010) on features `(N, D)`: centroids `(num_clusters, D)`, fp32, on `device` (default:
    the features'), to which the features go batch by batch.

    Each centroid is the running mean of all frames ever assigned to it. A cluster that stayed empty for a whole pass
    starts again at a random frame.
    """

    def rows(index: torch.Tensor) -> torch.Tensor:
        return features[index.to(features.device)].to(device, torch.float32)

    centroids = rows(torch.randperm(len(features), generator=generator)[:num_clusters])
    totals = centroids.new_zeros(num_clusters)
    for number in range(num_passes):
        visits = torch.zeros_like(totals)
        for index in torch.randperm(len(features), generator=generator).split(batch_size):
            batch = rows(index)
            labels = nearest(batch, centroids)
            counts = torch.zeros_like(totals).index_add_(0, labels, torch.ones_like(labels, dtype=totals.dtype))
            sums = torch.zeros_like(centroids).index_add_(0, labels, batch)
            visits += counts
            totals += counts
            centroids += (sums - counts[:, None] * centroids) / totals.clamp_min(1)[:, None]
            progress(f"k-means pass {number + 1} of {num_passes}")
        empty = (visits == 0).nonzero().squeeze(1)
        fresh = torch.randint(len(features), (len(empty),), generator=generator)
        centroids[empty] = rows(fresh)
        totals[empty] = 0
    return centroids
