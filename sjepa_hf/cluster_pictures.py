"""Clusters in pictures: an order in which neighbours sound alike, and a coloured strip of them in time."""

import numpy as np
import torch

from .frames import FRAME_SECONDS, frame_centres


INCHES_A_DIGIT = 0.058  # of a number on the strip
APART = 2.0  # inches a second from which runs are parted by a line


def order_clusters(means: torch.Tensor) -> np.ndarray:
    """
    Rank between 0 and 1 of each mean of `(num_components, num_features)` along their first principal component, the
    one whose heaviest feature counts upwards: clusters that sound alike have ranks that are near.
    """
    centred = (means - means.mean(0)).float()
    first = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    first = first * first[first.abs().argmax()].sign()
    ranks = (centred @ first).argsort().argsort()
    return ranks.cpu().numpy() / max(len(ranks) - 1, 1)


def draw_clusters(panel, clusters: np.ndarray, places: np.ndarray, inches_a_second: float) -> None:
    """
    A strip in time: one bar for each run of a cluster, with its number where that fits in.

    Args:
        panel: Matplotlib axes, x in seconds.
        clusters: `(num_frames,)`, a cluster's number for each frame.
        places: `(num_components,)`, from [`order_clusters`]; the colour goes by them.
        inches_a_second: width of a second in the picture.
    """
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))
    lengths = np.diff(starts, append=len(clusters))
    edges = FRAME_SECONDS * np.append(starts, len(clusters)) + frame_centres(1) - FRAME_SECONDS / 2
    found = places[clusters[starts]]
    panel.pcolormesh(edges, [0, 1], found[None], cmap="viridis", vmin=0, vmax=1)
    if inches_a_second >= APART:
        panel.vlines(edges[1:-1], 0, 1, color="white", lw=0.4)
    for start, length, left, place in zip(starts, lengths, edges, found):
        text = str(clusters[start])
        if length * FRAME_SECONDS * inches_a_second > INCHES_A_DIGIT * len(text):
            ink = "black" if place > 0.55 else "white"
            middle = left + length * FRAME_SECONDS / 2
            panel.text(middle, 0.47, text, ha="center", va="center", fontsize=6.5, color=ink, clip_on=True)
    panel.set(ylim=(0, 1), yticks=[])
