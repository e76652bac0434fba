"""Hold-out: which items of a data set are kept from training, whole groups of what belongs together."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def held_out(
    groups: np.ndarray, share: float, seed: int | Sequence[int] = 0, evenly: Sequence | None = None
) -> np.ndarray:
    """
    Which items are held out, `(num_items,)` bool: whole groups at random, always the same for a seed, as near to
    `share` of the items as whole groups come, but at least one group, and never all.

    Args:
        groups: group of each item `(num_items,)`, such as the recording or the speaker.
        share: of the items, between 0 and 1.
        evenly: label of each item, anything that can be sorted: from each label that share is drawn, as far as a
            group can be counted by the label of its first item. The only group of a label is not drawn, so that
            there is something to learn the label from.

    Raises:
        ValueError: if there are fewer than two groups.
    """
    _, firsts, members = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(members)
    if len(sizes) < 2:
        raise ValueError(f"All {len(members)} clips belong together: none of them can be held out from the others.")
    order = np.random.default_rng(seed).permutation(len(sizes))
    if evenly is not None:
        labels = [evenly[first] for first in firsts]
        counts = Counter(labels)
        order = sorted((group for group in order if counts[labels[group]] > 1), key=lambda group: labels[group])
    drawn, seen, held = np.zeros(len(sizes), bool), 0, 0
    for group in order:
        seen += sizes[group]
        if share * seen + sizes[group] / 2 >= held + sizes[group]:  # nearer to the share with it than without
            drawn[group], held = True, held + sizes[group]
    if not drawn.any():
        drawn[min(order, key=sizes.__getitem__, default=sizes.argmin())] = True
    if drawn.all():
        drawn[sizes.argmin()] = False
    return drawn[members]
