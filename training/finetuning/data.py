"""Data of a fine-tuning: sources, their column of labels, and the clips to train on, to choose by and to test on."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sjepa_hf.command import once
from sjepa_hf.durations import audio_amount
from sjepa_hf.frames import SAMPLING_RATE
from training.common.naming import several
from training.data.labelled import TEXT_COLUMNS, LabelledClips, choose_column, open_labelled
from training.data.metadata import decoded
from training.data.sources import open_source
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.text import TextNormalizer


logger = logging.getLogger(__name__)

HELD_OUT = "held out"  # name of the clips for evaluation where they are a share of the training clips


def open_splits(
    arguments: FineTuningArguments, column: str, classes: bool = False
) -> tuple[LabelledClips, dict[str, LabelledClips], dict[str, LabelledClips]]:
    """
    Training clips, and clips for evaluation and for the final test by the name of their source. Those for scoring are
    never left out for being long; they are all decoded once, and those that cannot be used are left out. `classes` as
    in `open_labelled`, so that silence has a class too; of each class the same share is held out, and drawn for
    `train_hours`.

    Raises:
        ValueError: if a source cannot be opened, no clip can be held out, or `train_hours` is too little for a clip of
            each class.
    """

    def opened(specs: Sequence[str], max_seconds: float) -> LabelledClips:
        return open_labelled(
            specs,
            [column],
            audio_column=arguments.audio_column,
            min_seconds=arguments.min_seconds,
            max_seconds=max_seconds,
            max_bad_fraction=arguments.max_bad_fraction,
            classes=classes,
        )

    train = opened(arguments.train_data, arguments.max_seconds)
    if arguments.eval_data:
        evaluation = {spec: opened([spec], float("inf")) for spec in arguments.eval_data}
    else:
        if len(train) < 2:
            raise ValueError("`train_data` has a single usable clip: none can be held out. Give `eval_data`.")
        train, held_out = train.hold_out(arguments.eval_fraction, evenly=[column] if classes else ())
        evaluation = {HELD_OUT: held_out}
        logger.log(
            once(logging.WARNING),
            "No eval_data: %d of %d clips are held out at random, so their speakers may be heard in training too.",
            len(held_out),
            len(held_out) + len(train),
        )
    if arguments.train_hours is not None:
        train = drawn(train, arguments.train_hours, evenly=column if classes else None)
    test = {spec: opened([spec], float("inf")) for spec in arguments.test_data or ()}
    for part in (evaluation, test):
        part |= {name: clips.readable()[0] for name, clips in part.items()}
    for name, clips in (evaluation | test).items():
        if name != HELD_OUT and (shared := clips.also_in(train)):
            said = "%d of %d clips of %s are of recordings that are trained on: their scores tell nothing of others."
            logger.log(once(logging.WARNING), said, shared, len(clips), name)
    hours = {"train": train.hours} | {name: clips.hours for name, clips in (evaluation | test).items()}
    logger.info("Audio: %s.", ", ".join(f"{name} {audio_amount(value)}" for name, value in hours.items()))
    return train, evaluation, test


def drawn(clips: LabelledClips, hours: float, evenly: str | None = None) -> LabelledClips:
    """
    Clips drawn at random, always the same, until they last that long; fewer hours are a subset of more.

    Args:
        evenly: label of which each value has the same share of its clips drawn, rounded up.

    Raises:
        ValueError: if a value of it is left without a clip.
    """
    order = np.random.default_rng(0).permutation(len(clips)).tolist()
    labels = clips.labels[evenly] if evenly else [""] * len(clips)
    sizes, before, shares = Counter(labels), Counter(), {}
    for i in order:
        shares[i] = before[labels[i]] / sizes[labels[i]]
        before[labels[i]] += 1
    order.sort(key=shares.__getitem__)
    ends = np.cumsum([clips.num_samples[i] for i in order]) / SAMPLING_RATE / 3600
    chosen = sorted(order[: int(np.searchsorted(ends, hours)) + 1])
    if without := sorted(set(labels) - {labels[i] for i in chosen}):
        raise ValueError(
            f"`train_hours` {hours:g} leaves {len(without)} of {len(sizes)} classes without a training clip:"
            f" {several(without)}. Give more, or leave it out."
        )
    return clips.select(chosen)


def by_length(parts: Sequence[LabelledClips]) -> torch.utils.data.Dataset:
    """All parts one after another, each with its longest clips first: little padding, and memory runs out at once."""
    orders = [sorted(range(len(part)), key=part.num_samples.__getitem__, reverse=True) for part in parts]
    return torch.utils.data.ConcatDataset([part.select(order).filled() for part, order in zip(parts, orders)])


def read_sentences(text: str, column: str | None, normalizer: TextNormalizer) -> list[str]:
    """Normalised sentences of a text file, or of a source's transcripts. Raises ValueError if there are none."""
    path = Path(text)
    if path.is_file() and path.suffix.lower() in (".txt", ".text", ""):
        lines = decoded(path).splitlines()
    else:
        column = choose_column([text], column, TEXT_COLUMNS, "text_column", "transcripts")
        lines = [labels[column] or "" for _, labels in open_source(text, labels=[column]).samples()]
    return [sentence for sentence in map(normalizer, lines) if sentence]
