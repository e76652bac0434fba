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

The best step is chosen on the dev set; the figures are the test set's. Written to `output_dir`: `TASK.jsonl`, one
object for each subject and seed; made from it, `TASK.json`, the scores over the seeds as a model card takes them,
`TASK.md`, the printed table, and `TASK_layer_weights.png`.
"""

import hashlib
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
import yaml

from sjepa_hf.command import command, first_line
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.data.labelled import LabelledClips
from training.evaluation.encoders import open_encoder
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures, clip_keys
from training.evaluation.superb.diarization import ActivityLabels
from training.evaluation.superb.heads import CtcHead, DiarizationHead, LayerSum, PooledHead, XVectorHead
from training.evaluation.superb.labels import ClassLabels, TokenLabels, read_lexicon
from training.evaluation.superb.query_by_example import make_search, search_splits
from training.evaluation.superb.results import draw_layer_weights, earlier_results, merge, table, write
from training.evaluation.superb.splits import open_splits
from training.evaluation.superb.summary import write_summary
from training.evaluation.superb.tasks import TASKS, Task, slot_classification
from training.evaluation.superb.training import Head, Labels, evaluate, statistics, train
from training.evaluation.superb.verification import SpeakerLabels, heard_in_training, made_trials, read_trials


logger = logging.getLogger(__name__)


@dataclass
class SuperbArguments:
    """An evaluation. What is left out is the task's setting in `training/evaluation/superb/tasks.py`."""

    task: Literal["asr", "pr", "ks", "ic", "sid", "er", "sf", "asv", "sd", "qbe", "all"] = field(
        metadata={"help": "The task; all: those of the file tasks."}
    )
    model: list[str] = field(
        metadata={"help": "Subjects: checkpoints (directories or Hub names), untrained:CHECKPOINT, mfcc, fbank."}
    )
    tasks: str | None = field(
        default=None,
        metadata={
            "help": "YAML file for --task all: of each task the options that are its own, such as train_data and "
            "label_column. What is in output_dir already is not run again."
        },
    )
    train_data: list[str] = field(default_factory=list, metadata={"help": "Sources of training clips."})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Sources of the dev set."})
    test_data: list[str] = field(default_factory=list, metadata={"help": "Sources of the test set."})
    eval_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of train_data, drawn evenly from all labels, for each of dev and test not given."},
    )
    split_by: str | None = field(
        default=None,
        metadata={
            "help": "A column, e.g. speaker_id: no value of it is both in train_data and in what is held out of it."
        },
    )
    label_column: list[str] = field(default_factory=list, metadata={"help": "Columns of the labels."})
    slot_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of slot values, empty where a slot is absent: sf becomes classification."},
    )
    lexicon: list[str] = field(
        default_factory=list,
        metadata={"help": "Files of lines 'WORD PHONE PHONE ...': pr from transcripts in place of phones."},
    )
    stress: bool = field(
        default=True, metadata={"help": "false: pr without the digit of a phone's stress, so that AH0 and AH1 are AH."}
    )
    stacked_frames: int = field(
        default=1,
        metadata={
            "help": "pr: neighbouring frames that the head takes as one; with 2 and more it has a hidden layer, which "
            "is not SUPERB's, but tells small encoders apart."
        },
    )
    trials: str | None = field(
        default=None,
        metadata={
            "help": "asv: file of lines 'label a b', 1 for the same speaker, a and b the ends of paths in test_data; "
            "else trials are made of the test clips."
        },
    )
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Hub data and Parquet."})
    max_steps: int | None = field(default=None, metadata={"help": "Training steps of the head."})
    eval_steps: int | None = field(
        default=None, metadata={"help": "Steps between two looks at the dev set; at most a tenth of max_steps."}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the head."})
    batch_size: int | None = field(default=None, metadata={"help": "Clips in a batch."})
    head_units: int | None = field(
        default=None,
        metadata={"help": "Units of the hidden layers of the asr, sf (1024), asv and sd (512) heads; fewer on a CPU."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the head and of the batches."})
    untrained_seed: int = field(default=0, metadata={"help": "Seed of the weights of untrained:CHECKPOINT."})
    output_dir: str = field(default="runs/superb", metadata={"help": "Where results go."})
    cache_dir: str = field(default="runs/features", metadata={"help": "Where features are kept."})
    cache_gb: float = field(default=20.0, metadata={"help": "Size that cache_dir may reach; beyond: on the fly."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, ..."})
    dry_run: bool = field(default=False, metadata={"help": "Say what would be done, and stop before it is done."})


@command
def main(argv: list[str] | None = None) -> None:
    """Run the evaluation that the command line asks for."""
    arguments = parse_arguments(argv)
    with Heartbeat("opening the data") as heartbeat:
        if arguments.task == "all":
            text = run_all(arguments, heartbeat)
        else:
            results = run(arguments, heartbeat)
            text = table(results) if results else ""
    if text:
        print(text)


def parse_arguments(argv: list[str] | None = None) -> SuperbArguments:
    """
    Arguments from `--config RECIPE.yaml` (optional) and `--field value` for each field to override.

    Raises:
        ValueError: for a recipe that is absent or holds an unknown field, and for settings that cannot work.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_dataclasses((SuperbArguments,), argv, "SUPERB-style evaluation of frozen encoders.")[0]
    if (arguments.task == "all") != (arguments.tasks is not None):
        raise ValueError("`tasks` belongs to --task all, which needs it.")
    return arguments if arguments.task == "all" else checked(arguments)


def checked(arguments: SuperbArguments) -> SuperbArguments:
    """The arguments of a task. Raises a ValueError for settings that cannot work."""
    if arguments.task not in TASKS:
        raise ValueError(f"There is no task '{arguments.task}': choose {', '.join(TASKS)} or all.")
    if not 0 < arguments.eval_fraction < 0.5:
        raise ValueError(f"`eval_fraction` must lie between 0 and 0.5, got {arguments.eval_fraction:g}.")
    for name in ("max_steps", "eval_steps", "learning_rate", "batch_size", "head_units", "stacked_frames", "cache_gb"):
        value = getattr(arguments, name)
        if value is not None and (value < 0 if name == "cache_gb" else value <= 0):
            raise ValueError(f"`{name}` must be positive, got {value:g}.")
    if arguments.slot_columns and arguments.task != "sf":
        raise ValueError("`slot_columns` belongs to --task sf; other tasks take --label_column.")
    if arguments.slot_columns and arguments.label_column:
        raise ValueError("`slot_columns` are the labels: leave out `label_column`.")
    of_phones = {
        "lexicon": arguments.lexicon,
        "stress": not arguments.stress,
        "stacked_frames": arguments.stacked_frames > 1,
    }
    if arguments.task != "pr" and any(of_phones.values()):
        raise ValueError(f"`{next(filter(of_phones.get, of_phones))}` belongs to --task pr.")
    if arguments.trials and arguments.task != "asv":
        raise ValueError("`trials` belongs to --task asv.")
    if arguments.trials and not arguments.test_data:
        raise ValueError("`trials` names clips of `test_data`: give it, and `train_data`, too.")
    if arguments.split_by and arguments.eval_data and arguments.test_data:
        raise ValueError(
            "`split_by` splits train_data, of which nothing is held out: leave out `split_by`, or a source."
        )
    if arguments.split_by and not arguments.train_data:
        raise ValueError("`split_by` needs `train_data` beside it.")
    return arguments


def choose_task(arguments: SuperbArguments) -> Task:
    """The task with the settings that the arguments change; columns and data sets are its own or the user's."""
    task = slot_classification() if arguments.slot_columns else TASKS[arguments.task]
    names = ("max_steps", "learning_rate", "batch_size", "eval_steps")
    task = replace(task, **{name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None})
    task = replace(task, eval_steps=min(task.eval_steps, max(1, task.max_steps // 10)))
    columns = arguments.slot_columns or arguments.label_column
    if task.labels in ("characters", "phones", "slot_characters") and len(columns) > 1:
        raise ValueError(f"`label_column` of --task {task.name} is one column of texts, got {', '.join(columns)}.")
    if task.labels == "phones" and not arguments.lexicon and not columns:
        if not arguments.train_data:
            raise ValueError("--task pr on LibriSpeech needs --lexicon, such as its own librispeech-lexicon.txt.")
        columns = ["phones"]
    task = replace(task, columns=tuple(columns) or task.columns)
    if arguments.train_data or (task.head == "dtw" and arguments.eval_data and arguments.test_data):
        return replace(
            task,
            train_data=arguments.train_data,
            eval_data=arguments.eval_data,
            test_data=arguments.test_data,
            gain=0.0,
        )
    if arguments.eval_data or arguments.test_data:
        both = " or, for qbe, each other" if task.head == "dtw" else ""
        raise ValueError(f"`eval_data` and `test_data` need `train_data` beside them{both}.")
    if not task.train_data:
        raise ValueError(f"There is no data set on the Hub for --task {task.name}: name a source with --train_data.")
    return task


# Data


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


def run(arguments: SuperbArguments, heartbeat: Heartbeat | None = None) -> list[dict]:
    """
    Evaluate all subjects with all seeds; results are written after each, beside those of other subjects and seeds that
    `output_dir` holds already.

    Returns:
        all results of the task there, as in the JSON lines: task, split, metrics and so on; none with `dry_run`.

    Raises:
        ValueError: settings, data or a checkpoint at fault.
        BadAudioError: too much of the audio cannot be used.
    """
    heartbeat = heartbeat or Heartbeat("evaluating")
    task = choose_task(arguments)
    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else None
    settings = hyperparameters(task, arguments, lexicon)
    earlier = earlier_results(Path(arguments.output_dir), task.name, settings)
    device = arguments.device if arguments.device != "auto" else default_device()
    splits = open_splits(
        task,
        arguments.eval_fraction,
        split_by=arguments.split_by,
        audio_column=arguments.audio_column,
        unlabelled_test=bool(arguments.trials),
    )
    for name, clips in splits.items():
        logger.info("%s: %d clips, %.2f hours.", name, len(clips), clips.hours)
    if task.head == "dtw":
        splits = {name: splits[name] for name in ("dev", "test")}
        searches = {name: make_search(clips.labels[task.columns[0]], name) for name, clips in splits.items()}
        labels, seeds = None, arguments.seeds[:1]
        what = "nothing is trained"
    else:
        labels, seeds = make_labels(task, splits, lexicon, arguments), arguments.seeds
        for name, clips in splits.items():
            warn_of_unseen(name, clips, labels)
        what = (
            f"heads of {' + '.join(map(str, labels.sizes))} outputs are trained for {task.max_steps} steps of"
            f" {task.batch_size} clips at {task.learning_rate:g} on {device} and scored every {task.eval_steps} steps"
        )
    logger.info(
        "%s (%s): %d subjects with %d seeds; %s; results go to %s, features to %s.",
        *(task.name, task.title, len(arguments.model), len(seeds), what, arguments.output_dir, arguments.cache_dir),
    )
    if arguments.dry_run:
        return []
    keys = {name: clips.keys() if task.head == "diarization" else clip_keys(clips) for name, clips in splits.items()}
    store = FeatureStore(arguments.cache_dir, arguments.cache_gb)
    results = []
    for subject in arguments.model:
        heartbeat.doing = f"encoding the clips with {subject}"
        encoder = open_encoder(subject, device, arguments.untrained_seed)
        features = {
            name: FrozenFeatures(encoder, clips, store, task.head == "pooled", keys[name], task.gain)
            for name, clips in splits.items()
        }
        untrained = {"untrained_seed": arguments.untrained_seed} if subject.startswith("untrained:") else {}
        for seed in seeds:
            start = time.perf_counter()
            if task.head == "dtw":
                weights, dev_metrics, outcome = search_splits(features, searches, heartbeat)
                step = 0
            else:
                head = fresh_head(task, features["train"], labels, seed, subject, arguments).to(device)
                step, dev_metrics = train(head, task, features, labels, seed, heartbeat)
                weights = head.layer_sum.weights.tolist()
                outcome = evaluate(head, task, features["test"], labels, "test")
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
            } | ({"scored": scored} if scored else {})
            logger.info(
                "%s, seed %d: %s on %d test clips with the head of step %d of %d (dev: %s on %d clips).",
                *(subject, seed, in_words(metrics), num_clips),
                *(step, task.max_steps, in_words(dev_metrics), len(splits["dev"])),
            )
            if judged is not None and judged.learned is False:
                logger.warning("%s, seed %d: THE HEAD HAS LEARNED NOTHING: %s.", subject, seed, judged.reason)
            results.append(result)
            merged = merge(earlier, results)
            write(merged, Path(arguments.output_dir))
    draw_layer_weights(merged, Path(arguments.output_dir))
    return merged


def run_all(arguments: SuperbArguments, heartbeat: Heartbeat) -> str:
    """
    Evaluate all subjects on all tasks of the file `tasks`, less what `output_dir` holds already, with a table and a
    picture of all results there, `all.md` and `all.png`.

    Returns:
        the table.

    Raises:
        ValueError: for a file that cannot be read or names what is unknown, and as `run` does. All tasks are looked at
            before the first one is run.
    """
    each = [checked(one) for one in arguments_of_tasks(arguments)]
    results = {}
    for one in each:
        task = choose_task(one)
        lexicon = read_lexicon(one.lexicon) if one.lexicon else None
        there = earlier_results(Path(one.output_dir), task.name, hyperparameters(task, one, lexicon))
        known = {(result["encoder"], result["seed"]) for result in there}
        seeds = one.seeds[:1] if task.head == "dtw" else one.seeds
        missing = [name for name in one.model if not known.issuperset((name, seed) for seed in seeds)]
        if missing:
            logger.info("%s: %d of %d subjects are to be evaluated.", task.name, len(missing), len(one.model))
            there = run(replace(one, model=missing), heartbeat)
        results[task.name] = [result for result in there if result["encoder"] in one.model]
    if arguments.dry_run:
        return ""
    return write_summary(results, Path(arguments.output_dir))


def arguments_of_tasks(arguments: SuperbArguments) -> list[SuperbArguments]:
    """The arguments of each task of the file `tasks`: those given, with the file's own in their place."""
    path = Path(arguments.tasks)
    if not path.is_file():
        raise ValueError(f"--tasks {arguments.tasks}: there is no such file.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {first_line(error)}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(own, dict | None) for own in found.values()):
        raise ValueError(f"{path} does not name tasks with their options, such as `ks: {{train_data: [speech/]}}`.")
    kinds = {known.name: known for known in fields(SuperbArguments)}
    shared = {"task", "tasks", "model", "output_dir", "dry_run"}
    each = []
    for name, own in found.items():
        for option in own or {}:
            if option not in kinds or option in shared:
                raise ValueError(f"{path}: task {name} cannot have the option `{option}`.")
        own = {
            option: [value] if kinds[option].default_factory is not MISSING and not isinstance(value, list) else value
            for option, value in (own or {}).items()
        }
        each.append(replace(arguments, task=name, tasks=None, **own))
    return each


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
