"""Splits of a task's clips: training, dev and test set, what is not given being held out of the training clips.

Or folds, each with splits of its own.
"""

import numpy as np

from training.data.labelled import LabelledClips, open_labelled
from training.evaluation.superb.diarization import Mixtures
from training.evaluation.superb.tasks import SuperbTask


CROP_SECONDS, CROP_EVERY = 1.0, 0.1  # of background noise that stands for silence
SPLIT_SEED = 0  # what is held out is the same for all seeds of a run


def open_splits(
    task: SuperbTask,
    fraction: float,
    *,
    split_by: str | None = None,
    audio_column: str | None = None,
    unlabelled_test: bool = False,
) -> dict[str, LabelledClips | Mixtures]:
    """
    "train", "dev" and "test". What has no source of its own is held out from the training clips, `fraction` of them
    each, whole recordings and values of `split_by`, drawn evenly from all labels. Speakers are always kept apart where
    they are the labels. Without training data, where nothing is trained, "dev" and "test" alone.
    For diarization, mixtures of each.

    Args:
        task: with its sources and columns.
        fraction: of the training clips.
        split_by, audio_column: as in `SuperbArguments`.
        unlabelled_test: the test set needs no labels.

    Raises:
        ValueError: if a source cannot be opened, lacks a column, or cannot be parted.
        BadAudioError: too much of the audio cannot be used.
    """
    apart = task.columns[0] if task.labels == "speakers" else split_by
    splits = {}
    if task.train_data:
        splits["train"] = open_clips(task, task.train_data, apart, audio_column=audio_column)
    if task.labels == "speakers" and len(set(splits["train"].labels[task.columns[0]])) < 2:
        speakers = set(splits["train"].labels[task.columns[0]])
        raise ValueError(
            f"two speakers and more are needed: column '{task.columns[0]}' of the training clips has the one value"
            f" '{speakers.pop()}'."
        )
    dev_share = fraction if task.test_data else fraction / (1 - fraction)  # of what the test set leaves: as many clips
    for name, sources, share in (("test", task.test_data, fraction), ("dev", task.eval_data, dev_share)):
        if sources:
            labelled = not (unlabelled_test and name == "test")
            splits[name] = open_clips(task, sources, labelled=labelled, audio_column=audio_column)
        else:
            evenly = task.columns if task.labels == "classes" else ()
            splits["train"], splits[name] = splits["train"].hold_out(share, SPLIT_SEED, apart=apart, evenly=evenly)
    splits = cut_silence(task, splits)
    if task.head == "diarization":
        return {name: Mixtures(clips, task.columns[0], name) for name, clips in splits.items()}
    return splits


def open_folds(
    task: SuperbTask, fraction: float, column: str, audio_column: str | None = None
) -> dict[str, dict[str, LabelledClips]]:
    """
    "train", "dev" and "test" of each fold, by the value of `column` that its test clips have: of all others, a
    `fraction` is the dev set, drawn as in `open_splits`.

    Raises:
        ValueError: as `open_splits` does, and if the column has a single value.
        BadAudioError: too much of the audio cannot be used.
    """
    clips = open_clips(task, task.train_data, column, audio_column=audio_column)
    values = np.array(clips.labels[column])
    names = np.unique(values).tolist()
    if len(names) < 2:
        raise ValueError(f"--folds {column} needs two values and more: the training clips have the one '{names[0]}'.")
    folds = {}
    for name in names:
        evenly = task.columns if task.labels == "classes" else ()
        train, dev = clips.select(np.flatnonzero(values != name)).hold_out(fraction, SPLIT_SEED, evenly=evenly)
        test = clips.select(np.flatnonzero(values == name))
        folds[name] = cut_silence(task, {"train": train, "dev": dev, "test": test})
    return folds


def open_clips(
    task: SuperbTask,
    sources: list[str],
    more: str | None = None,
    *,
    labelled: bool = True,
    audio_column: str | None = None,
) -> LabelledClips:
    """Clips with the labels of the task, if `labelled`, and with the column `more`."""
    optional = task.columns if task.labels == "slots" else ()
    required = () if optional else task.columns
    return open_labelled(
        sources,
        dict.fromkeys((*required, *filter(None, [more]))) if labelled else (),
        optional=optional,
        audio_column=audio_column,
        classes=task.labels in ("classes", "speakers"),
        silence=task.labels in ("classes", "slots"),
    )


def cut_silence(task: SuperbTask, splits: dict[str, LabelledClips]) -> dict[str, LabelledClips]:
    """The splits, with single seconds of background noise in training and dev set where it stands for silence."""
    if task.silence is None:
        return splits
    cut = {}
    for name in ("train", "dev"):
        silent = [task.silence in values for values in zip(*splits[name].labels.values())]
        cut[name] = splits[name].cut(silent, CROP_SECONDS, CROP_EVERY)
    return splits | cut
