"""One task of SUPERB with its data and labels, ready to score encoders: `Evaluation`."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property

import torch

from sjepa_hf.durations import audio_amount
from sjepa_hf.scores import UNTRAINED
from training.common.device import default_device
from training.common.naming import several
from training.common.progress import Heartbeat
from training.data.bad_audio import BadAudioError
from training.data.labelled import TEXT_COLUMNS, LabelledClips, choose_column
from training.data.manifest import MissingColumn
from training.evaluation.encoders import Encoder, content_hash
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures, clip_keys
from training.evaluation.superb.arguments import SuperbArguments, choose_task
from training.evaluation.superb.diarization import ActivityLabels, Mixtures
from training.evaluation.superb.heads import CtcHead, DiarizationHead, LayerSum, PooledHead, XVectorHead
from training.evaluation.superb.labels import ClassLabels, TokenLabels, check_references, read_lexicon
from training.evaluation.superb.query_by_example import Search, make_search, search_splits
from training.evaluation.superb.splits import open_folds, open_splits
from training.evaluation.superb.tasks import SuperbTask
from training.evaluation.superb.training import Head, Labels, SplitResult, evaluate, statistics, train
from training.evaluation.superb.verification import SpeakerLabels, heard_in_training, made_trials, read_trials


logger = logging.getLogger(__name__)


class Evaluation:
    """
    A task with its settings and, once opened, its data and labels.

    Args:
        arguments (`SuperbArguments`): what to evaluate.

    Attributes:
        settings (`dict`): what a result depends on besides the encoder, the seed and the clips.
        folds (`dict`): the splits of each fold by its name; without `folds` those of the one None.
        labels (`dict`): what the labels of each fold's training clips become; None in qbe, where nothing is trained.

    Raises:
        ValueError: settings at fault.
    """

    def __init__(self, arguments: SuperbArguments):
        self.arguments = arguments
        self.task = choose_task(arguments)
        with self._named_errors():
            self.task = with_text_column(self.task, arguments)
        self.lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else None
        self.settings = hyperparameters(self.task, arguments, self.lexicon)
        self.device = arguments.device if arguments.device != "auto" else default_device()
        self.folds: dict[str | None, dict[str, LabelledClips | Mixtures]] = {}
        self.labels: dict[str | None, Labels | None] = {}
        self._searches: dict[str, Search] = {}
        self._digests: dict[tuple[str | None, str], list[str | None]] = {}

    def open(self) -> None:
        """
        Open and check data and labels, and log what is about to be done with them.

        Raises:
            ValueError: data at fault.
            BadAudioError: too much of the audio cannot be used.
        """
        task, arguments = self.task, self.arguments
        with self._named_errors():
            self.folds = open_data(task, arguments)
            for fold, splits in self.folds.items():
                sizes = (f"{name} {len(clips)} clips, {audio_amount(clips.hours)}" for name, clips in splits.items())
                logger.info("%s%s: %s.", task.name, self._among(fold), "; ".join(sizes))
            if not task.is_trained:
                (splits,) = self.folds.values()
                splits = {name: splits[name] for name in ("dev", "test")}
                self.folds, self.labels = {None: splits}, {None: None}
                self._searches = {
                    name: make_search(clips.labels[task.columns[0]], name) for name, clips in splits.items()
                }
                what = "nothing is trained"
            else:
                self.labels = {
                    f: make_labels(task, splits, self.lexicon, arguments) for f, splits in self.folds.items()
                }
                for fold, splits in self.folds.items():
                    for name, clips in splits.items():
                        warn_of_unseen(name + self._among(fold), clips, self.labels[fold])
                sizes = next(iter(self.labels.values())).sizes
                what = (
                    f"heads of {' + '.join(map(str, sizes))} outputs are trained for {task.max_steps} steps of"
                    f" {task.batch_size} clips at {task.learning_rate:g} on {self.device} and scored every"
                    f" {task.eval_steps} steps"
                )
            in_folds = f" in {len(self.folds)} folds by {arguments.folds}" if arguments.folds else ""
            logger.info(
                "%s (%s): %d subjects with %d seeds%s; %s; results go to %s, features to %s.",
                task.name,
                task.title,
                len(arguments.model),
                len(self.seeds),
                in_folds,
                what,
                arguments.output_dir,
                arguments.cache_dir,
            )

    @property
    def seeds(self) -> list[int]:
        """Seeds of the heads; one where nothing is trained."""
        return self.arguments.seeds if self.task.is_trained else self.arguments.seeds[:1]

    @cached_property
    def data_digest(self) -> str:
        """Of the audio and the labels of all clips and of how they are split."""
        fold, splits = next(iter(self.folds.items()))  # all clips are in each fold
        parts = [(name, self._keys(fold, name), clips.labels) for name, clips in splits.items()]
        if self.arguments.trials:
            parts.append(self.labels[fold].trials)
        return content_hash(repr(parts))

    def warn_of_shared(self) -> None:
        """Warn of test clips, by their audio, that are in another split as well."""
        for fold, splits in self.folds.items():
            test = set(self._keys(fold, "test")) - {None}
            for name in splits.keys() - {"test"}:
                if shared := len(test.intersection(self._keys(fold, name))):
                    logger.warning(
                        "%s%s: %d of the test clips are in the %s split too: the figures are not of unheard clips.",
                        self.task.name,
                        self._among(fold),
                        shared,
                        name,
                    )

    def features(self, fold: str | None, encoder: Encoder, store: FeatureStore) -> dict[str, FrozenFeatures]:
        """The encoder's features of each split of a fold, made when they are read."""
        pooled = self.task.head == "pooled"
        return {
            name: FrozenFeatures(encoder, clips, store, pooled, self._keys(fold, name), self.task.gain)
            for name, clips in self.folds[fold].items()
        }

    def score(
        self,
        subject: str,
        encoder: Encoder,
        fold: str | None,
        features: dict[str, FrozenFeatures],
        seed: int,
        heartbeat: Heartbeat,
    ) -> dict:
        """
        Train a head, take the step that the dev set chooses, and score the test set: one result, as in the JSON lines.

        Raises:
            ValueError: if none of the training clips can be used.
        """
        start = time.perf_counter()
        task = self.task
        if not task.is_trained:
            weights, dev_metrics, outcome = search_splits(features, self._searches, heartbeat)
            step, chosen = 0, "best layer"
        else:
            labels = self.labels[fold]
            head = fresh_head(task, features["train"], labels, seed, subject, self.arguments).to(self.device)
            step, dev_metrics = train(head, task, features, labels, seed, heartbeat)
            weights = head.layer_sum.weights.tolist()
            outcome = evaluate(head, task, features["test"], labels, "test")
            chosen = f"head of step {step} of {task.max_steps}"
        result = self._record(subject, encoder, fold, seed, outcome) | {
            "dev_metrics": dev_metrics,
            "best_step": step,
            "layer_weights": weights,
            "seconds": round(time.perf_counter() - start, 1),
        }
        whose = f"{task.name}, {subject}, seed {seed}{self._among(fold)}"
        logger.info(
            "%s: %s on %d test clips with the %s (dev: %s on %d clips).",
            whose,
            metrics_in_words(outcome.metrics),
            outcome.clips,
            chosen,
            metrics_in_words(dev_metrics),
            len(self.folds[fold]["dev"]),
        )
        if outcome.verdict is not None and outcome.verdict.learned is False:
            logger.warning("%s: THE HEAD HAS LEARNED NOTHING: %s.", whose, outcome.verdict.reason)
        return result

    def _record(self, subject: str, encoder: Encoder, fold: str | None, seed: int, outcome: SplitResult) -> dict:
        """What a result tells of the subject, the test set and how both were taken."""
        task, arguments, splits = self.task, self.arguments, self.folds[fold]
        metrics, num_clips, judged, scored = outcome
        untrained = {"untrained_seed": arguments.untrained_seed} if subject.startswith(UNTRAINED) else {}
        result = {
            "task": task.name,
            "title": task.title,
            "encoder": subject,
            "encoder_digest": encoder.digest,
            "data_digest": self.data_digest,
            "seed": seed,
            "split": "test",
            "metrics": metrics,
            "learned": None if judged is None else judged.learned,
            "clips": {name: len(clips) for name, clips in splits.items()} | {"test": num_clips},
            "hours": {name: round(clips.hours, 4) for name, clips in splits.items()},
            "hyperparameters": self.settings | untrained,
            "protocol": task.source,
        }
        result |= {"scored": scored} if scored else {}
        result |= {"fold": fold, "folds": list(self.folds)} if arguments.folds else {}
        return result

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Errors of data begin with the task; that of a missing column ends with the option that names another."""
        arguments = self.arguments
        options = {arguments.split_by: "split_by", arguments.folds: "folds"}
        options |= dict.fromkeys(self.task.columns, "slot_columns" if arguments.slot_columns else "label_column")
        try:
            yield
        except (ValueError, BadAudioError) as error:
            option = options.get(error.column) if isinstance(error, MissingColumn) else None
            way = f" Name another with --{option}." if option else ""
            error.args = (f"--task {self.task.name}: {error}{way}",)
            raise

    def _among(self, fold: str | None) -> str:
        return "" if fold is None else f", {self.arguments.folds} {fold}"

    def _keys(self, fold: str | None, name: str) -> list[str | None]:
        """Digests of a split's clips, formed once: subjects share them."""
        if (fold, name) not in self._digests:
            clips = self.folds[fold][name]
            self._digests[fold, name] = clips.keys() if self.task.head == "diarization" else clip_keys(clips)
        return self._digests[fold, name]


def open_data(task: SuperbTask, arguments: SuperbArguments) -> dict[str | None, dict[str, LabelledClips | Mixtures]]:
    """The splits of each fold by its name; without `folds` those of the one None."""
    if arguments.folds:
        return open_folds(task, arguments.eval_fraction, arguments.folds, arguments.audio_column)
    splits = open_splits(
        task,
        arguments.eval_fraction,
        split_by=arguments.split_by,
        audio_column=arguments.audio_column,
        unlabelled_test=bool(arguments.trials),
    )
    return {None: splits}


def with_text_column(task: SuperbTask, arguments: SuperbArguments) -> SuperbTask:
    """The task with the column of transcripts that the user's data have, where none is named."""
    if not arguments.train_data or arguments.label_column or arguments.slot_columns or task.columns != ("text",):
        return task
    audio = arguments.audio_column
    column = choose_column(task.train_data, None, TEXT_COLUMNS, "--label_column", "transcripts", audio)
    return replace(task, columns=(column,))


def make_labels(
    task: SuperbTask, splits: dict[str, LabelledClips], lexicon: dict[str, str] | None, arguments: SuperbArguments
) -> Labels:
    """What the labels of the training clips become; of speakers, also the trials of the other splits."""
    if task.head == "diarization":
        return ActivityLabels(splits)
    train = {column: splits["train"].labels[column] for column in task.columns}
    if task.labels == "speakers":
        (column,) = task.columns
        trials = {}
        for name in ("dev", "test"):
            if name == "test" and arguments.trials:
                trials[name] = read_trials(arguments.trials, splits[name])
            else:
                trials[name] = made_trials(splits[name].labels[column], name)
                if heard := heard_in_training(train[column], splits[name].labels[column], name):
                    logger.warning(heard)
        return SpeakerLabels(train, trials)
    if task.labels in ("classes", "slots"):
        labels = ClassLabels(train, slots=task.labels == "slots")
    else:
        labels = TokenLabels(train, task.labels, lexicon, arguments.stress)
    for name, clips in splits.items():  # of "pr": all words are in the lexicon
        references = labels.references({column: clips.labels[column] for column in task.columns})
        check_references(task.labels, references, name)
    return labels


def fresh_head(
    task: SuperbTask, features: FrozenFeatures, labels: Labels, seed: int, subject: str, arguments: SuperbArguments
) -> Head:
    """The task's head on such features as those of the training clips, with fresh weights."""
    example = next((x for i in range(len(features)) for x in features[[i]] if x is not None), None)
    if example is None:
        raise ValueError("None of the training clips can be used; the log names them.")
    norm = statistics(features) if subject == "mfcc" else None
    torch.manual_seed(seed)
    layers, hidden_size = LayerSum(example.shape[0], norm), example.shape[-1]
    if task.head == "pooled":
        return PooledHead(layers, hidden_size, labels.sizes)
    units = {} if arguments.head_units is None else {"units": arguments.head_units}
    (size,) = labels.sizes
    if task.head == "diarization":
        return DiarizationHead(layers, hidden_size, **units)
    if task.head == "xvector":
        return XVectorHead(layers, hidden_size, size, **units)
    recurrent = task.head == "recurrent_ctc"
    return CtcHead(
        layers, hidden_size, size, recurrent, task.spec_augment, stacked_frames=arguments.stacked_frames, **units
    )


def hyperparameters(task: SuperbTask, arguments: SuperbArguments, lexicon: dict[str, str] | None) -> dict:
    """What a result depends on besides the encoder, the seed and the clips."""
    names = ("head", "labels", "columns", "learning_rate", "batch_size", "max_steps", "eval_steps", "balanced")
    chosen = {name: value for name, value in asdict(task).items() if name in (*names, "spec_augment")}
    chosen |= {name: getattr(task, name) for name in ("train_data", "eval_data", "test_data")}
    if not (task.eval_data and task.test_data):
        chosen["eval_fraction"] = arguments.eval_fraction
    if arguments.split_by:
        chosen["split_by"] = arguments.split_by
    if arguments.folds:
        chosen["folds"] = arguments.folds
    if not arguments.stress:
        chosen["stress"] = False
    if arguments.stacked_frames > 1:
        chosen["stacked_frames"] = arguments.stacked_frames
    if lexicon is not None:
        chosen["lexicon_digest"] = hashlib.sha256(json.dumps(lexicon).encode()).hexdigest()[:12]
    if task.silence is not None:
        chosen["silence"] = "seconds, one every 0.1 s"
    if task.head in ("recurrent_ctc", "xvector", "diarization"):
        chosen["head_units"] = arguments.head_units
    if task.gain:
        chosen["gain"] = task.gain
    if arguments.trials:
        chosen["trials"] = arguments.trials
    return chosen


def warn_of_unseen(split: str, clips: LabelledClips, labels: Labels) -> None:
    """Labels that no training clip has can only be answered wrongly: say so."""
    if isinstance(labels, ClassLabels):
        for column, values in labels.values.items():
            unseen = Counter(clips.labels[column]) - Counter({value: len(clips) for value in values})
            if unseen:
                logger.warning(
                    "%s: %d clips have a %s that no training clip has, so that no answer is right: %s.",
                    split,
                    unseen.total(),
                    column,
                    several(unseen, 5),
                )


def metrics_in_words(metrics: dict[str, float]) -> str:
    """Metrics as shares of 1, with four digits."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
