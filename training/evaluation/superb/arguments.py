"""Arguments of `training/superb.py`: what can be asked for, what cannot work, and what they make of a task."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_type_hints

from training.common.command_line import as_typed, load_fields, parse_dataclasses
from training.common.naming import unknown
from training.common.ranges import check_ranges
from training.evaluation.superb.tasks import HEAD_UNITS, TASKS, SuperbTask, slot_classification


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
            "label_column."
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
    folds: str | None = field(
        default=None,
        metadata={
            "help": "A column, e.g. session: each value of it is the test set once, and the score is the mean. So "
            "SUPERB's er; possible in ks, ic, sid and with slot_columns, too."
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
    output_dir: str = field(
        default="runs/superb", metadata={"help": "Where results go; what is there is not run again."}
    )
    cache_dir: str = field(default="runs/features", metadata={"help": "Where features are kept."})
    cache_gb: float = field(default=20.0, metadata={"help": "Size that cache_dir may reach; beyond: on the fly."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, ..."})
    dry_run: bool = field(default=False, metadata={"help": "Say what would be done, and stop before it is done."})


def parse_arguments(argv: list[str] | None = None) -> SuperbArguments:
    """
    Arguments from `--config RECIPE.yaml` (optional) and `--field value` for each field to override.

    Raises:
        ValueError: for a recipe that is absent or holds an unknown field, and for settings that cannot work.
    """
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
    check_ranges(
        arguments,
        at_least_1="max_steps eval_steps batch_size head_units stacked_frames",
        positive="learning_rate",
        not_negative="cache_gb",
        seed="seeds untrained_seed",
    )
    for name in ("model", "seeds"):
        if not getattr(arguments, name):
            raise ValueError(f"`{name}` is empty: name one or more.")
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
    if arguments.head_units and (TASKS[arguments.task].head not in HEAD_UNITS or arguments.slot_columns):
        raise ValueError("`head_units` belongs to the tasks asr, asv and sd, and to sf without --slot_columns.")
    if arguments.trials and arguments.task != "asv":
        raise ValueError("`trials` belongs to --task asv.")
    if arguments.trials and not arguments.test_data:
        raise ValueError("`trials` names clips of `test_data`: give it, and `train_data`, too.")
    if arguments.split_by and arguments.eval_data and arguments.test_data:
        raise ValueError(
            "`split_by` splits train_data, of which nothing is held out: leave out `split_by`, or a source."
        )
    if arguments.folds and TASKS[arguments.task].head != "pooled" and not arguments.slot_columns:
        raise ValueError("`folds` belongs to the tasks ks, ic, sid and er, and to sf with --slot_columns.")
    for name in ("test_data", "eval_data", "split_by"):
        if arguments.folds and getattr(arguments, name):
            raise ValueError(f"`folds` makes the test sets and the dev sets of train_data: leave out `{name}`.")
    for name in ("split_by", "folds"):
        if getattr(arguments, name) and not arguments.train_data:
            raise ValueError(f"`{name}` needs `train_data` beside it.")
    return arguments


def choose_task(arguments: SuperbArguments) -> SuperbTask:
    """The task with the settings that the arguments change; columns and data sets are its own or the user's."""
    task = slot_classification() if arguments.slot_columns else TASKS[arguments.task]
    names = ("max_steps", "learning_rate", "batch_size", "eval_steps")
    task = replace(task, **{name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None})
    task = replace(task, eval_steps=min(task.eval_steps, max(1, task.max_steps // 10)))
    columns = arguments.slot_columns or arguments.label_column
    if task.labels not in ("classes", "slots") and len(columns) > 1:
        raise ValueError(f"`label_column` of --task {task.name} is a single column, got {', '.join(columns)}.")
    if task.labels == "phones" and not arguments.lexicon and not columns:
        if not arguments.train_data:
            raise ValueError("--task pr on LibriSpeech needs --lexicon, such as its own librispeech-lexicon.txt.")
        columns = ["phones"]
    task = replace(task, columns=tuple(columns) or task.columns)
    if task.labels == "speakers" and arguments.split_by not in (None, *task.columns):
        raise ValueError(f"`split_by` of --task {task.name} is the speakers' own column: leave it out.")
    if arguments.train_data or (not task.is_trained and arguments.eval_data and arguments.test_data):
        return replace(
            task,
            train_data=arguments.train_data,
            eval_data=arguments.eval_data,
            test_data=arguments.test_data,
            gain=0.0,
        )
    if arguments.eval_data or arguments.test_data:
        both = " or, for qbe, each other" if not task.is_trained else ""
        raise ValueError(f"`eval_data` and `test_data` need `train_data` beside them{both}.")
    if not task.train_data:
        raise ValueError(f"There is no data set on the Hub for --task {task.name}: name a source with --train_data.")
    return task


def arguments_of_tasks(arguments: SuperbArguments) -> list[SuperbArguments]:
    """
    The arguments of each task of the file `tasks`: those given, with the file's own in their place.

    Raises:
        ValueError: for a file that cannot be read or names what is unknown, and as `checked` does.
    """
    path = Path(arguments.tasks)
    if not path.is_file():
        raise ValueError(f"--tasks {arguments.tasks}: there is no such file.")
    found = load_fields(arguments.tasks, f"The file {path}")
    if not found or not all(isinstance(own, dict | None) for own in found.values()):
        raise ValueError(f"{path} does not name tasks with their options, such as `ks: {{train_data: [speech/]}}`.")
    each = []
    for name, own in found.items():
        try:
            each.append(checked(replace(arguments, task=name, tasks=None, **own_options(own or {}))))
        except ValueError as error:
            raise ValueError(f"{path}, task {name}: {error}") from None
    return each


def own_options(options: dict) -> dict:
    """The options of one task, as the file `tasks` has them. Raises a ValueError for one that it cannot have."""
    shared = {"task", "tasks", "model", "output_dir", "dry_run"}
    types = {name: kind for name, kind in get_type_hints(SuperbArguments).items() if name not in shared}
    for option in options:
        if option not in types:
            raise ValueError(f"a task of its own cannot have the option {unknown(option, types)}.")
    return as_typed(options, types)
