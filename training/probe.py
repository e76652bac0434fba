"""Probe a frozen encoder layer by layer: what can a simple classifier read off it?

    python -m training.probe runs/mine/final --data test/ --utterance_labels speaker_id gender --output probes
    python -m training.probe runs/mine/final facebook/hubert-base-ls960 --data aligned/ --phones --output probes

Utterance labels (any columns): features averaged over the clip, logistic regression, 10 random splits. Phones
(columns `phones` and `phone_ends`, space separated, ends in seconds): the phone at the centre of each frame, logistic
regression and a small MLP, 3 splits by utterance, so that no clip lends frames to both sides; where frames of
one clip are on both sides, as splits of single frames have it, scores come out higher. The paper does not say which
splits its 3 are. Phones count as they are written, stress and silences included. `--split_by speaker_id` keeps voices
apart too: scores are then those of voices that no classifier was fitted to. A fifth of what is kept apart, rounded up,
is scored in each split: of 6 voices 2. No two splits are alike; where fewer can be made than asked for, so many are.

Beside the checkpoints: MFCC, and the same encoder with fresh weights; with `--baselines false` only what is named, and
`mfcc` or `untrained:CHECKPOINT` may be. Layers are numbered as in `hidden_states`: 0 is what enters the first
Transformer layer. `probes.json`, `probes.png` and the table that is printed give mean and standard deviation over the
splits.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import transformers

from sjepa_hf.command import command
from sjepa_hf.durations import audio_amount
from sjepa_hf.saving import files_written_aside
from sjepa_hf.scores import MFCC, UNTRAINED, Score, data_names, short_names, write_scores
from sjepa_hf.writable import check_output_directory
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.common.ranges import check_ranges
from training.data.labelled import LabelledClips, open_labelled
from training.evaluation.encoders import check_encoders, open_encoder
from training.evaluation.layer_features_of_clips import ReadLayers, features_at, features_of_layers, readable_clips
from training.evaluation.probes.classifiers import accuracies
from training.evaluation.probes.results import draw, report
from training.evaluation.probes.tasks import ProbeTask, phone_task, utterance_task


logger = logging.getLogger(__name__)

PROTOCOL = {
    "features": "frozen; mean over the clip's frames for utterance labels, single frames for phones; standardised",
    "linear": "scikit-learn LogisticRegression, C=1, lbfgs, at most 2000 iterations",
    "mlp": "2 x 256, ReLU, dropout 0.1, Adam 1e-3, batches of 512, 20 epochs",
    "utterance_splits": "a fifth of the recordings (or values of --split_by), drawn at random, is scored, rounded up;"
    " all clips of one are on one side, no two splits are alike; `scored_share` of a task is what that comes to",
    "phone_splits": "likewise, all frames of one on one side; phone at the frame's centre",
    "deviation": "standard deviation over the splits (of the population)",
}


@dataclass
class ProbeArguments:
    """What is probed for, on which clips."""

    data: list[str] = field(
        metadata={"help": "Labelled sources: folders with metadata.csv, JSONL manifests, Parquet, Hub data sets."}
    )
    utterance_labels: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns with a label of the whole clip, e.g. speaker_id gender chapter_id."},
    )
    phones: bool = field(default=False, metadata={"help": "Probe for phones: columns phones and phone_ends."})
    split_by: str | None = field(
        default=None,
        metadata={
            "help": "A column, e.g. speaker_id: all clips with the same value of it stand on one side of a split. Not "
            "in the probe for that very column. Without it, each recording stands on one side."
        },
    )
    output: str = field(default="probes", metadata={"help": "Where probes.json and probes.png go."})
    layers: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "'all', or numbers of layers, from 0."}
    )
    baselines: bool = field(
        default=True, metadata={"help": "MFCC and the untrained encoder, beside every checkpoint."}
    )
    utterance_splits: int = field(default=10, metadata={"help": "Random splits of the utterance probes."})
    phone_splits: int = field(default=3, metadata={"help": "Random splits of the phone probes."})
    max_clips: int | None = field(default=None, metadata={"help": "Probe on so many clips, drawn at random."})
    max_frames: int | None = field(
        default=50_000, metadata={"help": "Frames of the phone probes, drawn at random from all labelled ones."}
    )
    max_seconds: float = field(default=40.0, metadata={"help": "Longer clips are left out."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    seed: int = field(default=0, metadata={"help": "Seed of clips, frames, splits, MLP and untrained weights."})
    dry_run: bool = field(default=False, metadata={"help": "Say what would be done, and stop before it is done."})
    n_jobs: int = field(default=1, metadata={"help": "Logistic regressions that are fitted side by side."})

    def __post_init__(self):
        if not self.utterance_labels and not self.phones:
            raise ValueError("There is nothing to probe for: name `utterance_labels`, or set `phones`.")
        if self.layers != ["all"] and not all(layer.isdigit() for layer in self.layers):
            raise ValueError(f"`layers` must be 'all' or numbers from 0, got {' '.join(self.layers)}.")
        check_ranges(self, at_least_1="utterance_splits phone_splits max_clips max_frames", seed="seed")

    @property
    def layer_numbers(self) -> list[int] | None:
        return None if self.layers == ["all"] else [int(layer) for layer in self.layers]


def subjects(
    checkpoints: list[str], layers: list[int] | None, baselines: bool, seed: int
) -> Iterator[tuple[str, ReadLayers]]:
    """Each subject ("mfcc", "untrained:CHECKPOINT", a checkpoint) with its features, opened one at a time."""
    device = default_device()
    if baselines:
        yield MFCC, features_of_layers(open_encoder(MFCC, device))
    seen = []
    for checkpoint in dict.fromkeys(checkpoints):
        encoder = open_encoder(checkpoint, device, untrained_seed=seed)
        if baselines:
            shapes = [(key, tuple(tensor.shape)) for key, tensor in encoder.model.named_parameters()]
            if shapes not in seen:  # one untrained encoder serves all checkpoints of its shape
                seen.append(shapes)
                untrained = f"{UNTRAINED}{checkpoint}"
                yield untrained, features_of_layers(open_encoder(untrained, device, untrained_seed=seed), layers)
        yield checkpoint, features_of_layers(encoder, None if checkpoint == MFCC else layers)


def open_tasks(arguments: ProbeArguments) -> tuple[LabelledClips, dict[str, ProbeTask]]:
    """The clips that can be read, and what is probed for, by label. Raises ValueError as [`run`]."""
    alignment = ("phones", "phone_ends") if arguments.phones else ()
    split_by = (arguments.split_by,) if arguments.split_by else ()
    clips = open_labelled(
        arguments.data,
        (),
        optional=tuple(dict.fromkeys((*arguments.utterance_labels, *alignment, *split_by))),
        audio_column=arguments.audio_column,
        max_seconds=arguments.max_seconds,
        classes=not arguments.phones,
    )
    clips, frame_counts = readable_clips(clips, arguments.max_clips, arguments.seed)
    seed, apart = arguments.seed, arguments.split_by
    tasks = {
        label: utterance_task(clips, label, arguments.utterance_splits, seed, apart)
        for label in arguments.utterance_labels
    }
    if arguments.phones:
        tasks["phones"] = phone_task(clips, frame_counts, arguments.phone_splits, arguments.max_frames, seed, apart)
    for label, task in tasks.items():
        logger.info(
            "%s: %d rows of %d clips (%s), %d classes, %s on %d splits; results go to %s.",
            label,
            len(task.classes),
            len(clips),
            audio_amount(clips.hours),
            len(set(task.classes.tolist())),
            " and ".join(task.classifiers),
            len(task.splits),
            arguments.output,
        )
    return clips, tasks


def scores_of(found: np.ndarray, subject: str, title: str, task: dict, arguments: ProbeArguments) -> list[Score]:
    """A score for each layer of `found`, accuracies `(num_layers, num_splits)` of a subject in a task."""
    numbers, num_splits = arguments.layer_numbers or range(len(found)), found.shape[1]
    return [
        Score(
            subject=subject,
            task=title,
            task_type="audio-classification",
            data=data_names(arguments.data),
            split="test",
            metric="accuracy",
            value=float(values.mean()),
            deviation=float(values.std()) if num_splits > 1 else None,
            runs=f"{num_splits} split{'s' * (num_splits > 1)}",
            values=values.tolist(),
            protocol=task_in_words(task),
            clips=task["clips"],
            layer=None if subject == MFCC else layer,
            learned=bool(values.mean() > task["commonest_class_share"]),
        )
        for layer, values in zip(numbers, found)
    ]


def run(checkpoints: list[str], arguments: ProbeArguments, heartbeat: Heartbeat) -> dict | None:
    """
    All probes of all subjects.

    Returns:
        What `probes.json` holds: data, protocol, `tasks` (label, classifier, numbers of clips, rows and classes, by
        the `task` of a score), and `scores`, a `Score` for each subject, task and layer (None for MFCC), with the
        accuracy of every split. None with `dry_run`.

    Raises:
        ValueError: if a label cannot be probed for, or a checkpoint is none or cannot be opened.
    """
    for name in checkpoints:
        if name == "fbank" or (arguments.baselines and (name == MFCC or name.startswith(UNTRAINED))):
            raise ValueError(
                f"{name} is no checkpoint: MFCC and the untrained encoder are probed beside every checkpoint, or where"
                " they are named with --baselines false; FBANK is in training.superb."
            )
    check_encoders(checkpoints)
    clips, tasks = open_tasks(arguments)
    if arguments.dry_run:
        return None
    scores: list[Score] = []
    rows = {label: task.rows for label, task in tasks.items()}
    described = {
        f"{label}, {classifier} probe": {"label": label, "classifier": classifier, **task.describe()}
        for label, task in tasks.items()
        for classifier in task.classifiers
    }
    for subject, extract in subjects(checkpoints, arguments.layer_numbers, arguments.baselines, arguments.seed):
        name = short_names([subject])[subject]
        heartbeat.doing = f"reading the features of {name}"
        features = features_at(extract, clips, rows, name)
        for title, known in described.items():
            label, classifier = known["label"], known["classifier"]
            heartbeat.doing = f"fitting {label}, {classifier}, {name}: {features[label].shape[0]} layers"
            found = accuracies(tasks[label], classifier, features[label], arguments.seed, arguments.n_jobs)
            logger.info("%s, %s, %s: %s", label, classifier, name, np.round(100 * found.mean(1), 1).tolist())
            scores += scores_of(found, subject, title, known, arguments)
    return {
        "data": list(arguments.data),
        "clips": len(clips),
        "hours": round(clips.hours, 3),
        "seed": arguments.seed,
        "protocol": PROTOCOL,
        "tasks": described,
        "scores": scores,
    }


def task_in_words(task: dict) -> str:
    """How a task was probed for."""
    unit, apart = "frames" if task["level"] == "frame" else "clips", task["apart"]
    known = {None: "of clips that are pieces of one recording", "recordings": "of the recordings"}
    splits, scored = known.get(apart, f"by {apart}"), round(100 * task["scored_share"])
    return f"{task['classes']} classes, {task['rows']} {unit}, random {100 - scored}/{scored} splits {splits}"


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (ProbeArguments,),
        argv,
        "The paper's probes of frozen encoders, layer by layer.",
        checkpoints=dict(nargs="+", help="What AutoModel opens: directories or Hub names."),
    )
    check_output_directory(arguments.output, "output")
    with Heartbeat("opening the data") as heartbeat:
        results = run(rest.checkpoints, arguments, heartbeat)
    if results is None:
        return
    with files_written_aside(arguments.output) as aside:
        write_scores(aside / "probes.json", **results)
        draw(results["scores"], aside / "probes.png")
    print(report(results))
    print(f"\nwritten: {arguments.output}/probes.json, probes.png")


if __name__ == "__main__":
    main()
