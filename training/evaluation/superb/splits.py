"""Splits of a task's clips: training, dev and test set, what is not given being held out of the training clips."""

from training.data.labelled import LabelledClips, open_labelled
from training.evaluation.superb.diarization import Mixtures
from training.evaluation.superb.tasks import Task


CROP_SECONDS, CROP_EVERY = 1.0, 0.1  # of background noise that stands for silence
SPLIT_SEED = 0  # what is held out is the same for all seeds of a run


def open_splits(
    task: Task,
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
    optional = task.columns if task.labels == "slots" else ()
    required = () if optional else task.columns
    apart = task.columns[0] if task.labels == "speakers" and split_by is None else split_by

    def opened(sources: list[str], *more: str, labelled: bool = True) -> LabelledClips:
        return open_labelled(
            sources,
            dict.fromkeys((*required, *more)) if labelled else (),
            optional=optional,
            audio_column=audio_column,
            classes=task.labels in ("classes", "speakers"),
        )

    splits = {"train": opened(task.train_data, *filter(None, [apart]))} if task.train_data else {}
    if task.labels == "speakers" and len(set(splits["train"].labels[task.columns[0]])) < 2:
        speakers = set(splits["train"].labels[task.columns[0]])
        raise ValueError(
            f"--task {task.name} needs two speakers and more: column '{task.columns[0]}' of the training clips has the"
            f" one value '{speakers.pop()}'."
        )
    for name, sources in (("test", task.test_data), ("dev", task.eval_data)):
        if sources:
            splits[name] = opened(sources, labelled=not (unlabelled_test and name == "test"))
        else:
            evenly = task.columns if task.labels == "classes" else ()
            splits["train"], splits[name] = splits["train"].hold_out(fraction, SPLIT_SEED, apart=apart, evenly=evenly)
            fraction /= 1 - fraction  # the next share is of what is left, and as large
    if task.silence is not None:
        for name in ("train", "dev"):
            silent = [task.silence in values for values in zip(*splits[name].labels.values())]
            splits[name] = splits[name].cut(silent, CROP_SECONDS, CROP_EVERY)
    if task.head == "diarization":
        return {name: Mixtures(clips, task.columns[0], name) for name, clips in splits.items()}
    return splits
