"""Hold-out: which items of a data set are kept from training, whole groups of what belongs together."""

from collections.abc import Sequence
from itertools import chain, groupby

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
        evenly: label of each item, anything that can be sorted: from each label that share is drawn, as near as whole
            groups come. A group counts by the label of its first item; the last one of a label is not drawn, so that
            there is something to learn the label from.

    Raises:
        ValueError: if there are fewer than two groups.
    """
    _, firsts, members = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(members)
    if len(sizes) < 2:
        raise ValueError(f"All {len(members)} clips belong together: none of them can be held out from the others.")
    labels = [evenly[first] if evenly is not None else 0 for first in firsts]
    order = sorted(np.random.default_rng(seed).permutation(len(sizes)), key=labels.__getitem__)
    drawn, seen, held = np.zeros(len(sizes), bool), 0, 0
    several = [own for _, same in groupby(order, key=labels.__getitem__) if len(own := list(same)) > 1]
    for own in several:
        # Groups are whole, so a label misses its share a little. The error is carried on only up to half of the next
        # label's smallest group.
        wanted, most = share * seen, sizes[own].min() / 2
        held = min(max(held, wanted - most), wanted + most)
        for group in own:
            seen += sizes[group]
            if share * seen + sizes[group] / 2 >= held + sizes[group]:  # nearer to the share with it than without
                drawn[group], held = True, held + sizes[group]
        if drawn[own].all():
            smallest = min(own, key=sizes.__getitem__)
            drawn[smallest], held = False, held - sizes[smallest]
    if not drawn.any():
        drawn[min(chain(*several), key=sizes.__getitem__, default=sizes.argmin())] = True
    return drawn[members]
