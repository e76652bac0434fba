"""K-means: the nearest centroid against brute force, and centroids that started in one place."""

import torch

from sjepa_hf.kmeans import kmeans, nearest


def test_kmeans_reseeds_empty_clusters():
    # 500 identical frames and two clusters' worth of others: random starts coincide, and must be moved apart.
    features = torch.cat([torch.zeros(500, 2), torch.full((20, 2), 5.0), torch.full((20, 2), -5.0)])
    found = 0
    for seed in range(5):
        centroids = kmeans(features, 8, num_passes=20, generator=torch.Generator().manual_seed(seed))
        labels = nearest(features, centroids)
        distance = (features - centroids[labels]).norm(dim=1)
        found += bool(distance.max() < 1)
    assert found >= 4


def test_nearest_equals_brute_force():
    features, centroids = torch.randn(200, 6) + 50, torch.randn(9, 6) + 50
    distances = (features.double()[:, None] - centroids.double()).square().sum(-1)
    assert torch.equal(nearest(features, centroids), distances.argmin(1))
