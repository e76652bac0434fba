"""Probe a frozen encoder layer by layer: what can a simple classifier read off it?

    python -m training.probe runs/mine/final --data test/ --utterance_labels speaker_id gender --output probes
    python -m training.probe runs/mine/final facebook/hubert-base-ls960 --data aligned/ --phones --output probes

Utterance labels (any columns): features averaged over the clip, logistic regression, 10 random 80/20 splits. Phones
(columns `phones` and `phone_ends`, space separated, ends in seconds): the phone at the centre of each frame, logistic
regression and a small MLP, 3 splits of 80/20 by utterance, so that no clip lends frames to both sides; where frames of
one clip are on both sides, as splits of single frames have it, scores come out higher. The paper does not say which
splits its 3 are. Phones count as they are written, stress and silences included.

Beside the checkpoints, always: MFCC, and the same encoder with fresh weights. Layer 0 is what enters the first
Transformer layer (layer k of the pretraining targets is layer k + 1 here). `probes.json`, `probes.png` and the table
that is printed give mean and standard deviation over the splits.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import joblib
import matplotlib
import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sjepa_hf.command import command
from sjepa_hf.saving import files_written_aside
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.drawing import caption
from training.common.heartbeat import Heartbeat
from training.common.ranges import check_ranges
from training.data.labelled import LabelledClips, open_labelled
from training.evaluation.frozen_features import open_encoder
from training.evaluation.probing import (
    WHOLE_CLIP,
    FeatureExtractor,
    Rows,
    features_at,
    features_of_layers,
    phones_at_frames,
    read_alignment,
    readable_clips,
    short_names,
)


matplotlib.use("Agg")
import matplotlib.pyplot as plt


logger = logging.getLogger(__name__)

TEST_SHARE = 0.2
PROTOCOL = {
    "features": "frozen; mean over the clip's frames for utterance labels, single frames for phones; standardised",
    "linear": "scikit-learn LogisticRegression, C=1, lbfgs, at most 2000 iterations",
    "mlp": "2 x 256, ReLU, dropout 0.1, Adam 1e-3, batches of 512, 20 epochs",
    "utterance_splits": "random 80/20 of the recordings, all clips of one on one side",
    "phone_splits": "random 80/20 of the recordings, all frames of one on one side; phone at the frame's centre",
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
    output: str = field(default="probes", metadata={"help": "Where probes.json and probes.png go."})
    layers: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "'all', or numbers of layers, from 0."}
    )
    baselines: bool = field(default=True, metadata={"help": "MFCC and the untrained encoder."})
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
        check_ranges(self, at_least_1="utterance_splits phone_splits max_clips max_frames")

    @property
    def layer_numbers(self) -> list[int] | None:
        return None if self.layers == ["all"] else [int(layer) for layer in self.layers]


class Task(NamedTuple):
    """
    One label to probe for: `classes` (strings `(num_rows,)`) of the rows, the splits as `(fit, score)` pairs of row
    numbers, the classifiers to fit, and what was left out.
    """

    rows: Rows
    classes: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]
    classifiers: tuple[str, ...]
    left_out: dict[str, int]

    def describe(self) -> dict:
        """Numbers of rows, clips and classes, and the accuracy of always answering with the commonest class."""
        counts = Counter(self.classes.tolist())
        return {
            "level": "frame" if "mlp" in self.classifiers else "utterance",
            "rows": len(self.classes),
            "clips": len(np.unique(self.rows.clips)),
            "classes": len(counts),
            "commonest_class_share": max(counts.values()) / len(self.classes),
            "splits": len(self.splits),
            **self.left_out,
        }


def utterance_task(clips: LabelledClips, label: str, num_splits: int, seed: int) -> Task:
    """The probe for a label of whole clips. Clips without it are left out, and counted."""
    classes = np.array(clips.labels[label])
    rows = Rows(np.arange(len(classes)), np.full(len(classes), WHOLE_CLIP))
    labelled = classes != ""
    task = _task(label, rows, classes, labelled, recording_numbers(clips), ("linear",), num_splits, seed)
    return task._replace(left_out={"clips_without_label": int((~labelled).sum()), **task.left_out})


def phone_task(
    clips: LabelledClips, frame_counts: np.ndarray, num_splits: int, max_frames: int | None, seed: int
) -> Task:
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
    return _task("phones", rows, classes, drawn, recording_numbers(clips), ("linear", "mlp"), num_splits, seed)


def recording_numbers(clips: LabelledClips) -> np.ndarray:
    """Number of each clip's recording, `(num_clips,)`: pieces of one file may not stand on both sides of a split."""
    return np.array([place.recording for place in clips.places])


def _task(
    label: str,
    rows: Rows,
    classes: np.ndarray,
    wanted: np.ndarray,
    recordings: np.ndarray,
    classifiers: tuple[str, ...],
    num_splits: int,
    seed: int,
) -> Task:
    """
    A task over the `wanted` rows, without the classes that a single recording has: no split could both fit and score.
    """
    owners = recordings[rows.clips]
    recordings_of = Counter(name for _, name in set(zip(owners[wanted].tolist(), classes[wanted].tolist())))
    alone = [name for name, count in recordings_of.items() if count < 2]
    kept = wanted & ~np.isin(classes, alone)
    rows, classes, owners = Rows(rows.clips[kept], rows.frames[kept]), classes[kept], owners[kept]
    if len(set(classes.tolist())) < 2:
        raise ValueError(
            f"`{label}` has {len(set(classes.tolist()))} class(es) with at least two recordings ({len(alone)} with a"
            " single one): a probe needs two; give more recordings or leave the label out."
        )
    splitter = GroupShuffleSplit(num_splits, test_size=TEST_SHARE, random_state=seed)
    splits = list(splitter.split(classes, groups=owners))
    if any(len(set(classes[fit].tolist())) < 2 for fit, _ in splits):
        raise ValueError(f"`{label}`: a split has a single class left to fit; give more recordings or leave it out.")
    return Task(rows, classes, splits, classifiers, {"classes_with_a_single_recording": len(alone)})


def score_linear(features: np.ndarray, classes: np.ndarray, fit: np.ndarray, score: np.ndarray) -> float:
    """Accuracy on rows `score` of a logistic regression fitted on rows `fit` of features `(num_rows, D)`."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, solver="lbfgs", max_iter=2000))
    classifier.fit(features[fit], classes[fit])
    return float(classifier.score(features[score], classes[score]))


def score_mlp(
    features: np.ndarray, classes: np.ndarray, fit: np.ndarray, score: np.ndarray, seed: int, epochs: int = 20
) -> float:
    """Accuracy on rows `score` of the paper's MLP, fitted on rows `fit` of features `(num_rows, D)`."""
    device = default_device()
    names, numbers = np.unique(classes, return_inverse=True)
    scaler = StandardScaler().fit(features[fit])
    inputs, targets = torch.from_numpy(scaler.transform(features)).to(device), torch.from_numpy(numbers).to(device)
    rows = torch.from_numpy(fit).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size, layers = inputs.shape[1], []
        for _ in range(2):
            layers += [nn.Linear(size, 256), nn.ReLU(), nn.Dropout(0.1)]
            size = 256
        model = nn.Sequential(*layers, nn.Linear(size, len(names))).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for batch in rows[torch.randperm(len(rows), device=device)].split(512):
                loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    held_out = torch.from_numpy(score).to(device)
    with torch.inference_mode():
        found = model.eval()(inputs[held_out]).argmax(-1)
    return (found == targets[held_out]).float().mean().item()


def accuracies(task: Task, classifier: str, features: np.ndarray, seed: int, n_jobs: int) -> np.ndarray:
    """Accuracy of a classifier on features `(num_layers, num_rows, D)`: `(num_layers, num_splits)`."""
    pairs = [(layer, *split) for layer in features for split in task.splits]
    if classifier == "linear":
        fits = (joblib.delayed(score_linear)(layer, task.classes, *split) for layer, *split in pairs)
        found = joblib.Parallel(n_jobs)(fits)
    else:
        found = [score_mlp(layer, task.classes, *split, seed) for layer, *split in pairs]
    return np.array(found).reshape(len(features), len(task.splits))


def subjects(
    checkpoints: list[str], layers: list[int] | None, baselines: bool, seed: int
) -> Iterator[tuple[str, str, FeatureExtractor]]:
    """Name, kind ("mfcc", "untrained" or "checkpoint") and features of all that is probed, opened one at a time."""
    device = default_device()
    if baselines:
        yield "MFCC", "mfcc", features_of_layers(open_encoder("mfcc", device))
    seen = []
    for checkpoint, name in zip(checkpoints, short_names(checkpoints)):
        encoder = open_encoder(checkpoint, device)
        shapes = [(key, tuple(tensor.shape)) for key, tensor in encoder.model.named_parameters()]
        if baselines and shapes not in seen:  # one untrained encoder serves all checkpoints of its shape
            seen.append(shapes)
            untrained = open_encoder(f"untrained:{checkpoint}", device, untrained_seed=seed)
            yield (
                "untrained" if len(seen) == 1 else f"untrained {name}",
                "untrained",
                features_of_layers(untrained, layers),
            )
        yield name, "checkpoint", features_of_layers(encoder, layers)


def run(checkpoints: list[str], arguments: ProbeArguments, heartbeat: Heartbeat | None = None) -> dict | None:
    """
    All probes of all subjects.

    Returns:
        What `probes.json` holds: `tasks` (numbers of clips, rows, classes), and `scores`, a list of label,
        classifier, subject, kind, layer (None for MFCC), mean, deviation (None for a single split), and the accuracy
        of every split. None with `dry_run`.

    Raises:
        ValueError: if a label cannot be probed for, or a checkpoint cannot be opened.
    """
    heartbeat = heartbeat or Heartbeat("probing")
    alignment = ("phones", "phone_ends") if arguments.phones else ()
    clips = open_labelled(
        arguments.data,
        (),
        optional=(*arguments.utterance_labels, *alignment),
        audio_column=arguments.audio_column,
        max_seconds=arguments.max_seconds,
        classes=not arguments.phones,
    )
    clips, frame_counts = readable_clips(clips, arguments.max_clips, arguments.seed)
    seed = arguments.seed
    tasks = {
        label: utterance_task(clips, label, arguments.utterance_splits, seed) for label in arguments.utterance_labels
    }
    if arguments.phones:
        tasks["phones"] = phone_task(clips, frame_counts, arguments.phone_splits, arguments.max_frames, seed)
    rows = {label: task.rows for label, task in tasks.items()}
    for label, task in tasks.items():
        logger.info(
            "%s: %d rows of %d clips (%.2f h), %d classes, %s on %d splits; results go to %s.",
            *(label, len(task.classes), len(clips), clips.hours, len(set(task.classes.tolist()))),
            *(" and ".join(task.classifiers), len(task.splits), arguments.output),
        )
    if arguments.dry_run:
        return None
    scores, numbers = [], arguments.layer_numbers
    for name, kind, extract in subjects(checkpoints, numbers, arguments.baselines, seed):
        heartbeat.doing = f"reading the features of {name}"
        features = features_at(extract, clips, rows, name)
        for label, task in tasks.items():
            for classifier in task.classifiers:
                heartbeat.doing = f"fitting {label}, {classifier}, {name}: {features[label].shape[0]} layers"
                found = accuracies(task, classifier, features[label], seed, arguments.n_jobs)
                logger.info("%s, %s, %s: %s", label, classifier, name, np.round(100 * found.mean(1), 1).tolist())
                for position, values in enumerate(found):
                    layer = position if numbers is None else numbers[position]
                    scores.append(
                        {
                            "label": label,
                            "classifier": classifier,
                            "subject": name,
                            "kind": kind,
                            "layer": None if kind == "mfcc" else layer,
                            "mean": values.mean(),
                            "deviation": values.std() if len(values) > 1 else None,
                            "accuracies": values.tolist(),
                        }
                    )
    return {
        "checkpoints": dict(zip(short_names(checkpoints), checkpoints)),
        "data": list(arguments.data),
        "clips": len(clips),
        "hours": round(clips.hours, 3),
        "seed": seed,
        "protocol": PROTOCOL,
        "tasks": {label: task.describe() for label, task in tasks.items()},
        "scores": scores,
    }


def panels(results: dict) -> list[tuple[str, str]]:
    """Label and classifier of each table and each panel of the picture."""
    return list(dict.fromkeys((score["label"], score["classifier"]) for score in results["scores"]))


def report(results: dict) -> str:
    """One table for each label and classifier: a row per layer, a column per encoder, accuracy in percent."""
    blocks = []
    for label, classifier in panels(results):
        task = results["tasks"][label]
        scores = [s for s in results["scores"] if (s["label"], s["classifier"]) == (label, classifier)]
        cells = {(s["subject"], s["layer"]): percent(s["mean"], s["deviation"]) for s in scores}
        names = list(dict.fromkeys(s["subject"] for s in scores if s["kind"] != "mfcc"))
        layers = sorted({s["layer"] for s in scores if s["kind"] != "mfcc"})
        head = (
            f"{label}, {classifier}: accuracy in % over {task['splits']} split{'s' * (task['splits'] > 1)};"
            f" {task['classes']} classes, {task['clips']} clips, {task['rows']} rows, commonest class"
            f" {100 * task['commonest_class_share']:.1f}"
        )
        if ("MFCC", None) in cells:
            head += f"; MFCC {cells['MFCC', None]}"
        width = max(len("layer"), *map(len, names), 12)
        lines = [head, "  ".join(["layer", *(name.rjust(width) for name in names)])]
        for layer in layers:
            lines.append("  ".join([f"{layer:5d}", *(cells.get((name, layer), "").rjust(width) for name in names)]))
        best = {name: max(s["mean"] for s in scores if s["subject"] == name) for name in names}
        idle = [name for name in names if best[name] <= task["commonest_class_share"]]
        if idle:
            lines.append(f"No layer does better than always answering the commonest class: {', '.join(idle)}.")
        if task["classes_with_a_single_recording"]:
            lines.append(f"{task['classes_with_a_single_recording']} classes with a single recording were left out.")
        if task.get("clips_without_label"):
            lines.append(f"{task['clips_without_label']} clips without the label were left out.")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def percent(mean: float, deviation: float | None) -> str:
    """A share in percent, with its deviation where there are several values."""
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def draw(results: dict, path: Path) -> None:
    """
    Accuracy over layers, one panel for each label and classifier; baselines as broken lines. Without a score, no
    picture.
    """
    shown = panels(results)
    if not shown:
        return
    columns, rows = min(len(shown), 4), -(-len(shown) // 4)
    size = (1 + 3.6 * columns, 0.6 + 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, (label, classifier) in zip(axes.flat, shown):
        scores = [s for s in results["scores"] if (s["label"], s["classifier"]) == (label, classifier)]
        colours = iter(f"C{n}" for n in range(len(scores)))
        greys = iter(("0.45", "0.6", "0.7", "0.8") * len(scores))
        for number, name in enumerate(dict.fromkeys(s["subject"] for s in scores)):
            points = [s for s in scores if s["subject"] == name]
            means, deviations = (100 * np.array([s[key] or 0.0 for s in points]) for key in ("mean", "deviation"))
            if points[0]["kind"] == "mfcc":
                panel.axhline(means[0], color="k", ls=":", label=caption(name, 40))
                continue
            trained = points[0]["kind"] == "checkpoint"
            style = dict(color=next(colours), ls="-") if trained else dict(color=next(greys), ls="--")
            layers = [s["layer"] + 0.04 * number for s in points]  # bars beside one another
            panel.errorbar(layers, means, deviations, marker="o", ms=4, capsize=2, label=caption(name, 40), **style)
        panel.set(xlabel="layer (0: Transformer input)", title=caption(f"{label}, {classifier}", 40))
        lowest, highest = panel.get_ylim()
        panel.set_ylim(min(lowest, 95), min(highest, 100.5))  # where all is perfect, flat lines at the top
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel("accuracy (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (ProbeArguments,),
        sys.argv[1:] if argv is None else argv,
        "The paper's probes of frozen encoders, layer by layer.",
        checkpoints=dict(nargs="+", help="What AutoModel opens: directories or Hub names."),
    )
    with Heartbeat("opening the data") as heartbeat:
        results = run(rest.checkpoints, arguments, heartbeat)
    if results is None:
        return
    with files_written_aside(arguments.output) as aside:
        (aside / "probes.json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, aside / "probes.png")
    print(report(results))
    print(f"\nwritten: {arguments.output}/probes.json, probes.png")


if __name__ == "__main__":
    main()
