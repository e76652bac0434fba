"""Tasks of the probes: a label to probe for, the rows that carry it, and the random splits into fit and score."""

import logging
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import ShuffleSplit

from training.data.labelled import LabelledClips
from training.evaluation.alignment import phones_at_frames, read_alignment
from training.evaluation.layer_features_of_clips import WHOLE_CLIP, Rows


logger = logging.getLogger(__name__)

TEST_SHARE = 0.2
MOST_DRAWS = 200_000  # to find distinct splits; of owners alone, they take some seconds


class ProbeTask(NamedTuple):
    """
    One label to probe for: `classes` (strings `(num_rows,)`) of the rows, the splits as `(fit, score)` pairs of row
    numbers, the classifiers to fit, what stays on one side of a split ("recordings", a column, or None where all clips
    are pieces of one recording), and what was left out.
    """

    rows: Rows
    classes: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]
    classifiers: tuple[str, ...]
    apart: str | None
    left_out: dict[str, int]

    def describe(self) -> dict:
        """
        Numbers of rows, clips, classes and splits, the accuracy of always answering with the commonest class, and the
        share of the rows that is scored in a split (their mean).
        """
        counts = Counter(self.classes.tolist())
        return {
            "level": "frame" if "mlp" in self.classifiers else "utterance",
            "rows": len(self.classes),
            "clips": len(np.unique(self.rows.clips)),
            "classes": len(counts),
            "commonest_class_share": max(counts.values()) / len(self.classes),
            "splits": len(self.splits),
            "scored_share": float(np.mean([len(score) for _, score in self.splits])) / len(self.classes),
            "apart": self.apart,
            **self.left_out,
        }


def utterance_task(
    clips: LabelledClips, label: str, num_splits: int, seed: int, split_by: str | None = None
) -> ProbeTask:
    """The probe for a label of whole clips. Clips without it are left out, and counted."""
    classes = np.array(clips.labels[label])
    rows = Rows(np.arange(len(classes)), np.full(len(classes), WHOLE_CLIP))
    labelled = classes != ""
    task = _task(label, rows, classes, labelled, clips, split_by, ("linear",), num_splits, seed)
    return task._replace(left_out={"clips_without_label": int((~labelled).sum()), **task.left_out})


def phone_task(
    clips: LabelledClips,
    frame_counts: np.ndarray,
    num_splits: int,
    max_frames: int | None,
    seed: int,
    split_by: str | None = None,
) -> ProbeTask:
    """The probe for the phone at each frame's centre. Frames behind the last phone are left out."""
    owners, frames, classes = [], [], []
    for clip, count in enumerate(frame_counts.tolist()):
        phones = phones_at_frames(*read_alignment(clips, clip), count)
        owners.append(np.full(len(phones), clip))
        frames.append(np.arange(len(phones)))
        classes.append(phones)
    rows, classes = Rows(np.concatenate(owners), np.concatenate(frames)), np.concatenate(classes).astype(str)
    if not len(classes):
        raise ValueError("`phones`: none of the clips has any; fill the columns phones and phone_ends.")
    drawn = np.zeros(len(classes), bool)
    drawn[np.random.default_rng(seed).permutation(len(classes))[:max_frames]] = True
    return _task("phones", rows, classes, drawn, clips, split_by, ("linear", "mlp"), num_splits, seed)


def _task(
    label: str,
    rows: Rows,
    classes: np.ndarray,
    wanted: np.ndarray,
    clips: LabelledClips,
    split_by: str | None,
    classifiers: tuple[str, ...],
    num_splits: int,
    seed: int,
) -> ProbeTask:
    """
    A task over the `wanted` rows, without the classes that a single group has (a recording, or all clips that share a
    value of `split_by`): no split could both fit and score.
    """
    apart = split_by if split_by != label else None  # a class is not kept apart from itself
    kind = apart or (None if clips.one_recording else "recordings")
    several = {None: "clips", "recordings": "recordings"}.get(kind, f"values of `{apart}`")
    owners = clips.groups(apart)[rows.clips]
    groups_of = Counter(name for _, name in set(zip(owners[wanted].tolist(), classes[wanted].tolist())))
    alone = [name for name, count in groups_of.items() if count < 2]
    kept = wanted & ~np.isin(classes, alone)
    rows, classes, owners = Rows(rows.clips[kept], rows.frames[kept]), classes[kept], owners[kept]
    if len(set(classes.tolist())) < 2:
        raise ValueError(
            f"`{label}` has {len(set(classes.tolist()))} class(es) with at least two {several} ({len(alone)} with a"
            f" single one): a probe needs two; give more of them or leave the label out."
        )
    splits = distinct_splits(owners, classes, num_splits, seed)
    if len(splits) < num_splits:
        logger.warning(
            "%s: %d %s can be split in %d ways that leave two classes to fit, each of which is taken once, in place of"
            " %d splits.",
            label,
            len(np.unique(owners)),
            several,
            len(splits),
            num_splits,
        )
    left_out = {"classes_left_out": len(alone)}
    return ProbeTask(rows, classes, splits, classifiers, kind, left_out)


def distinct_splits(
    owners: np.ndarray, classes: np.ndarray, num_splits: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Distinct random splits of rows by their owners: a fifth of the owners, rounded up, is scored, the others are fitted
    and have at least two classes. There are fewer than `num_splits` where the owners can be split in fewer ways.

    Args:
        owners: integers `(num_rows,)`: rows of one owner stay on one side.
        classes: strings `(num_rows,)`, each of two owners and more.
    """
    owner_of, class_of = (np.unique(values, return_inverse=True)[1] for values in (owners, classes))
    has = np.zeros((owner_of.max() + 1, class_of.max() + 1), bool)  # which owner has rows of which class
    has[owner_of, class_of] = True
    num_fit = len(has) - math.ceil(TEST_SHARE * len(has))
    pure = has[has.sum(1) == 1].sum(0)  # owners of each class that have no other
    ways = math.comb(len(has), num_fit) - sum(math.comb(count, num_fit) for count in pure.tolist())
    found = {}
    for fit, score in ShuffleSplit(MOST_DRAWS, test_size=TEST_SHARE, random_state=seed).split(has):
        if len(found) >= min(num_splits, ways):
            break
        if has[fit].any(0).sum() > 1:
            found.setdefault(frozenset(score.tolist()), (fit, score))
    return [tuple(np.flatnonzero(np.isin(owner_of, part)) for part in split) for split in found.values()]
