"""SUPERB: what a frozen encoder is worth to the ten tasks, under a light head.

On the benchmark's data, from the Hub (settings and data sets: `training/evaluation/superb/tasks.py`):

    python -m training.superb --task ks --model demo-output/model/final facebook/hubert-base-ls960

On your own data, in small: any source of `training/data/labelled.py`, several subjects and seeds in one table. `mfcc`
and `untrained:CHECKPOINT` (the same network with fresh weights) say what the pretraining adds, `fbank` is SUPERB's own
baseline:

    python -m training.superb --task sid --label_column speaker_id --train_data librispeech/train \\
        --model mfcc untrained:demo-output/model/final demo-output/model/final \\
        --max_steps 2000 --learning_rate 1e-3 --seeds 0 1 2

Slot filling is SUPERB's where transcripts are annotated ("A B-size LARGE E-size COFFEE", CTC over characters and slot
tokens), and a classification of each slot's value with `--slot_columns size roast`: for data without transcripts, not
comparable with SUPERB's figures.

SUPERB's emotion recognition is the mean of five folds, one for each session that is the test set, the others being
trained on: `--task er --folds session`, of data with that column.

The best step is chosen on the dev set; the figures are the test set's. Written to `output_dir`: `TASK.jsonl`, one
object for each subject, seed and fold; made from it, `TASK.json`, the scores over the seeds as a model card takes
them, `TASK.md`, the printed table, and `TASK_layer_weights.png`.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sjepa_hf.command import command
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.data.labelled import LabelledClips
from training.evaluation.encoders import open_encoder
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures, clip_keys
from training.evaluation.superb.arguments import (
    SuperbArguments,
    arguments_of_tasks,
    choose_task,
    parse_arguments,
)
from training.evaluation.superb.diarization import ActivityLabels, Mixtures
from training.evaluation.superb.heads import CtcHead, DiarizationHead, LayerSum, PooledHead, XVectorHead
from training.evaluation.superb.labels import ClassLabels, TokenLabels, read_lexicon
from training.evaluation.superb.query_by_example import make_search, search_splits
from training.evaluation.superb.results import (
    draw_layer_weights,
    earlier_results,
    merge,
    over_folds,
    run_of,
    table,
    write,
)
from training.evaluation.superb.splits import open_folds, open_splits
from training.evaluation.superb.summary import write_summary
from training.evaluation.superb.tasks import Task
from training.evaluation.superb.training import Head, Labels, evaluate, statistics, train
from training.evaluation.superb.verification import SpeakerLabels, heard_in_training, made_trials, read_trials


logger = logging.getLogger(__name__)


@command
def main(argv: list[str] | None = None) -> None:
    """Run the evaluation that the command line asks for."""
    arguments = parse_arguments(argv)
    with Heartbeat("opening the data") as heartbeat:
        if arguments.task == "all":
            text = run_all(arguments, heartbeat)
        else:
            results = run(arguments, heartbeat, resume=arguments.folds is not None)
            text = table(results) if results else ""
    if text:
        print(text)


# Data


def open_data(task: Task, arguments: SuperbArguments) -> dict[str | None, dict[str, LabelledClips | Mixtures]]:
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


def make_labels(
    task: Task, splits: dict[str, LabelledClips], lexicon: dict[str, str] | None, arguments: SuperbArguments
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
        return ClassLabels(train, slots=task.labels == "slots")
    return TokenLabels(train, task.labels, lexicon, arguments.stress)


def fresh_head(
    task: Task, features: FrozenFeatures, labels: Labels, seed: int, subject: str, arguments: SuperbArguments
) -> Head:
    """The task's head on such features as those of the training clips, with fresh weights."""
    example = next((x for i in range(len(features)) for x in features[[i]] if x is not None), None)
    if example is None:
        raise ValueError("None of the training clips can be decoded; the log names them.")
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


# The run


def run(arguments: SuperbArguments, heartbeat: Heartbeat | None = None, *, resume: bool = False) -> list[dict]:
    """
    Evaluate all subjects with all seeds; results are written after each, beside those of other subjects and seeds that
    `output_dir` holds already.

    Args:
        arguments: what to evaluate.
        heartbeat: says what is being done.
        resume: what `output_dir` holds is not evaluated again, unless encoder or folds have changed.

    Returns:
        all results of the task there, as in the JSON lines, but the mean over folds: task, split, metrics and so on;
        none with `dry_run`.

    Raises:
        ValueError: settings, data or a checkpoint at fault.
        BadAudioError: too much of the audio cannot be used.
    """
    heartbeat = heartbeat or Heartbeat("evaluating")
    task = choose_task(arguments)
    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else None
    settings = hyperparameters(task, arguments, lexicon)
    merged = earlier = earlier_results(Path(arguments.output_dir), task.name, settings)
    device = arguments.device if arguments.device != "auto" else default_device()
    folds = open_data(task, arguments)
    among = {fold: "" if fold is None else f", {arguments.folds} {fold}" for fold in folds}
    for fold, splits in folds.items():
        sizes = (f"{name} {len(clips)} clips, {clips.hours:.2f} hours" for name, clips in splits.items())
        logger.info("%s: %s.", f"{arguments.folds} {fold}" if arguments.folds else "data", "; ".join(sizes))
    if task.head == "dtw":
        (splits,) = folds.values()
        folds = {None: {name: splits[name] for name in ("dev", "test")}}
        searches = {name: make_search(clips.labels[task.columns[0]], name) for name, clips in folds[None].items()}
        labels, seeds = {None: None}, arguments.seeds[:1]
        what = "nothing is trained"
    else:
        labels = {fold: make_labels(task, splits, lexicon, arguments) for fold, splits in folds.items()}
        seeds = arguments.seeds
        for fold, splits in folds.items():
            for name, clips in splits.items():
                warn_of_unseen(name + among[fold], clips, labels[fold])
        what = (
            f"heads of {' + '.join(map(str, next(iter(labels.values())).sizes))} outputs are trained for"
            f" {task.max_steps} steps of {task.batch_size} clips at {task.learning_rate:g} on {device} and scored"
            f" every {task.eval_steps} steps"
        )
    in_folds = f" in {len(folds)} folds by {arguments.folds}" if arguments.folds else ""
    logger.info(
        "%s (%s): %d subjects with %d seeds%s; %s; results go to %s, features to %s.",
        *(task.name, task.title, len(arguments.model), len(seeds), in_folds, what),
        *(arguments.output_dir, arguments.cache_dir),
    )
    if arguments.dry_run:
        return []
    keys = {
        (fold, name): clips.keys() if task.head == "diarization" else clip_keys(clips)
        for fold, splits in folds.items()
        for name, clips in splits.items()
    }
    store = FeatureStore(arguments.cache_dir, arguments.cache_gb)
    results = []
    for subject in arguments.model:
        heartbeat.doing = f"encoding the clips with {subject}"
        encoder = open_encoder(subject, device, arguments.untrained_seed)
        of_folds = {"folds": list(folds)} if arguments.folds else {}
        same = [result for result in earlier if result["encoder_digest"] == encoder.digest] if resume else []
        there = {run_of(result) for result in same if result.get("folds") == of_folds.get("folds")}
        if done := sum((subject, seed, fold) in there for seed in seeds for fold in folds):
            logger.info("%s: %d of %d results are in output_dir already.", subject, done, len(seeds) * len(folds))
        untrained = {"untrained_seed": arguments.untrained_seed} if subject.startswith("untrained:") else {}
        for fold, splits in folds.items():
            missing = [seed for seed in seeds if (subject, seed, fold) not in there]
            if not missing:
                continue
            features = {
                name: FrozenFeatures(encoder, clips, store, task.head == "pooled", keys[fold, name], task.gain)
                for name, clips in splits.items()
            }
            for seed in missing:
                start = time.perf_counter()
                if task.head == "dtw":
                    weights, dev_metrics, outcome = search_splits(features, searches, heartbeat)
                    step = 0
                else:
                    head = fresh_head(task, features["train"], labels[fold], seed, subject, arguments).to(device)
                    step, dev_metrics = train(head, task, features, labels[fold], seed, heartbeat)
                    weights = head.layer_sum.weights.tolist()
                    outcome = evaluate(head, task, features["test"], labels[fold], "test")
                metrics, num_clips, judged, scored = outcome
                result = {
                    "task": task.name,
                    "title": task.title,
                    "encoder": subject,
                    "encoder_digest": encoder.digest,
                    "seed": seed,
                    "split": "test",
                    "metrics": metrics,
                    "dev_metrics": dev_metrics,
                    "best_step": step,
                    "learned": None if judged is None else judged.learned,
                    "layer_weights": weights,
                    "clips": {name: len(clips) for name, clips in splits.items()} | {"test": num_clips},
                    "hours": {name: round(clips.hours, 4) for name, clips in splits.items()},
                    "hyperparameters": settings | untrained,
                    "protocol": task.source,
                    "seconds": round(time.perf_counter() - start, 1),
                }
                result |= {"scored": scored} if scored else {}
                result |= {"fold": fold} | of_folds if of_folds else {}
                logger.info(
                    "%s, seed %d%s: %s on %d test clips with the head of step %d of %d (dev: %s on %d clips).",
                    *(subject, seed, among[fold], in_words(metrics), num_clips),
                    *(step, task.max_steps, in_words(dev_metrics), len(splits["dev"])),
                )
                if judged is not None and judged.learned is False:
                    logger.warning(
                        "%s, seed %d%s: THE HEAD HAS LEARNED NOTHING: %s.",
                        *(subject, seed, among[fold], judged.reason),
                    )
                results.append(result)
                merged = merge(earlier, results)
                write(merged, Path(arguments.output_dir))
    merged = over_folds(merged)
    draw_layer_weights(merged, Path(arguments.output_dir))
    return merged


def run_all(arguments: SuperbArguments, heartbeat: Heartbeat) -> str:
    """
    Evaluate all subjects on all tasks of the file `tasks`, less what `output_dir` holds already, with a table and a
    picture of all results there, `all.md` and `all.png`.

    Returns:
        the table.

    Raises:
        ValueError: as `arguments_of_tasks` and `run` do. All tasks are looked at before the first one is run.
    """
    results = {}
    for one in arguments_of_tasks(arguments):
        task = choose_task(one)
        lexicon = read_lexicon(one.lexicon) if one.lexicon else None
        there = over_folds(earlier_results(Path(one.output_dir), task.name, hyperparameters(task, one, lexicon)))
        known = {(result["encoder"], result["seed"]) for result in there}
        seeds = one.seeds[:1] if task.head == "dtw" else one.seeds
        missing = [name for name in one.model if not known.issuperset((name, seed) for seed in seeds)]
        if missing:
            logger.info("%s: %d of %d subjects are to be evaluated.", task.name, len(missing), len(one.model))
            there = run(replace(one, model=missing), heartbeat, resume=True)
        results[task.name] = [result for result in there if result["encoder"] in one.model]
    if arguments.dry_run:
        return ""
    return write_summary(results, Path(arguments.output_dir), arguments.published)


def in_words(metrics: dict[str, float]) -> str:
    """Metrics as shares of 1, with four digits."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def hyperparameters(task: Task, arguments: SuperbArguments, lexicon: dict[str, str] | None) -> dict:
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
                    ", ".join(list(unseen)[:5]),
                )


if __name__ == "__main__":
    main()
