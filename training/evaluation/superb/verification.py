"""Speaker verification: speakers to train on, trials of two clips, and the equal error rate over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor

from training.common.naming import printable, several
from training.data.labelled import LabelledClips
from training.data.metadata import decoded
from training.evaluation.superb.labels import ClassLabels, check_finite


MOST_TRIALS = 20_000  # that are made where none are given; VoxCeleb1's list has 37,720
TRIAL_SEED = 0


class Trial(NamedTuple):
    """Two clips by their numbers; a target is a pair of the same speaker."""

    target: bool
    one: int
    other: int


class SpeakerLabels:
    """
    The speakers of the training clips, and the trials of the other splits.

    Args:
        speakers: the label column of the training clips, by its name.
        trials: of "dev" and "test".
    """

    def __init__(self, speakers: dict[str, list[str]], trials: dict[str, list[Trial]]):
        self._classes = ClassLabels(speakers)
        self.trials = trials

    @property
    def sizes(self) -> list[int]:
        return self._classes.sizes

    def encode(self, labels: dict[str, list[str]]) -> list[Tensor]:
        """Class numbers `(1,)` of each clip."""
        return self._classes.encode(labels)

    def equal_error_rate(self, embeddings: dict[int, Tensor], split: str) -> tuple[float, int]:
        """
        Equal error rate of a split by the cosine of two clips' embeddings, and the number of its trials: those of
        which both clips could be used.

        Args:
            embeddings: of each clip that could be used, by its number, `(size,)` with a norm of 1.

        Raises:
            ValueError: if no target, or no non-target, is left, or a score is not finite.
        """
        scored = [trial for trial in self.trials[split] if trial.one in embeddings and trial.other in embeddings]
        check(scored, f"of the {split} set whose clips can be used")
        one, other = (torch.stack([embeddings[trial[place]] for trial in scored]) for place in (1, 2))
        targets = np.array([trial.target for trial in scored])
        return equal_error_rate((one * other).sum(-1).numpy(), targets), len(scored)


def check(trials: Sequence[Trial], which: str) -> None:
    """Raise a ValueError unless there are both targets and non-targets."""
    for target, kind, of in (
        (True, "target", "two clips of one speaker"),
        (False, "non-target", "clips of two speakers"),
    ):
        if not any(trial.target == target for trial in trials):
            raise ValueError(f"The {len(trials)} trials {which} have no {kind}, a pair of {of}: add such clips.")


def made_trials(speakers: Sequence[str], which: str) -> list[Trial]:
    """
    Trials of clips with these speakers, the same for the same clips: all pairs of one speaker, at most half of
    `MOST_TRIALS`, drawn at random where there are more; and as many of two speakers, as far as there are.

    Args:
        speakers: of each clip.
        which: the clips in words, for messages.

    Raises:
        ValueError: if no two clips have one speaker, or all have.
    """
    rng = np.random.default_rng(TRIAL_SEED)
    numbers = np.unique(speakers, return_inverse=True)[1]
    count, sizes = len(numbers), np.bincount(numbers)
    own = [np.flatnonzero(numbers == speaker) for speaker in range(len(sizes))]
    targets = [(int(a), int(b)) for clips in own for n, a in enumerate(clips) for b in clips[n + 1 :]]
    if len(targets) > MOST_TRIALS // 2:
        targets = [targets[n] for n in sorted(rng.choice(len(targets), MOST_TRIALS // 2, replace=False))]
    of_two_speakers = (count**2 - int((sizes.astype(int) ** 2).sum())) // 2
    others: dict[tuple[int, int], None] = {}
    while len(others) < min(len(targets), of_two_speakers):
        pairs = rng.integers(count, size=(max(100, len(targets)), 2))
        for a, b in pairs[numbers[pairs[:, 0]] != numbers[pairs[:, 1]]].tolist():
            if len(others) < len(targets):
                others[min(a, b), max(a, b)] = None
    trials = [Trial(True, *pair) for pair in targets] + [Trial(False, *pair) for pair in sorted(others)]
    if not targets or not others:
        what = "no two of the same speaker" if not targets else "all of one speaker"
        kind = "target" if not targets else "non-target"
        raise ValueError(
            f"The {count} {which} clips are {what}, so that no trial is a {kind}: give clips of two speakers and more,"
            " two each."
        )
    return trials


def read_trials(path: str, clips: LabelledClips) -> list[Trial]:
    """
    Trials from a file of lines `label a b` as VoxCeleb has them: 1 for the same speaker, else 0, and the ends of two
    clips' paths, such as `id10270/x6uYqmx31kE/00001.wav`.

    Raises:
        ValueError: if there is no such file, it is not UTF-8, a line has another form, a clip is not there or not the
            only one, or no trial is a target, or a non-target.
    """
    if not Path(path).is_file():
        raise ValueError(f"--trials {printable(path)}: there is no such file.")
    rows = [line.split() for line in decoded(Path(path)).splitlines()]
    for number, row in enumerate(rows, 1):
        if row and (len(row) != 3 or row[0] not in ("0", "1")):
            raise ValueError(f"{printable(path)}, line {number} is not `label a b` with the label 1 or 0.")
    rows = [row for row in rows if row]
    paths = [Path(clips.clip(i).name).parts for i in range(len(clips))]
    found: dict[tuple[str, ...], list[int]] = {}
    for length in {len(Path(name).parts) for row in rows for name in row[1:]}:
        for i, parts in enumerate(paths):
            found.setdefault(parts[-length:], []).append(i)

    def number_of(name: str) -> int:
        matching = found.get(Path(name).parts, [])
        if len(matching) != 1:
            what = "no clip" if not matching else f"{len(matching)} clips"
            raise ValueError(f"{printable(path)} names {printable(name)}, which is the end of {what} of the test set.")
        return matching[0]

    trials = [Trial(row[0] == "1", number_of(row[1]), number_of(row[2])) for row in rows]
    check(trials, f"of {printable(path)}")
    return trials


def equal_error_rate(scores: np.ndarray, targets: np.ndarray) -> float:
    """
    The rate at which as many targets are missed as others are accepted. Exact: every score is a threshold, trials of
    the same score go together, and between the two thresholds where the rates change places both are taken as linear.

    Args:
        scores: higher for the same speaker, `(num_trials,)`.
        targets: which trials are of the same speaker, `(num_trials,)` bool.

    Raises:
        ValueError: if a score is not finite, or all trials are of one kind.
    """
    check_finite(scores, "trials")
    if targets.all() or not targets.any():
        raise ValueError(f"All {len(targets)} trials are of one kind: an equal error rate needs targets and others.")
    accepted, hits, _ = roc_curve(targets, scores, drop_intermediate=False)  # by threshold, from the highest
    gap = 1 - hits - accepted  # from 1 down to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def heard_in_training(train: Sequence[str], test: Sequence[str], split: str) -> str | None:
    """A sentence on speakers of a split that the head is trained on, as no speaker of a trial should be."""
    heard = sorted(set(train) & set(test))
    return f"{split}: {len(heard)} speakers are in the training clips too: {several(heard, 5)}." if heard else None
