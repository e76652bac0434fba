"""Scores of a checkpoint, read from the files that the evaluation commands wrote."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


LOWER_IS_BETTER = ("wer", "cer", "per", "eer", "slot_value_cer")
KINDS = {"mfcc": "MFCC", "fbank": "FBANK", "untrained": "untrained"}  # subjects of training.superb without a path
SPLITS = ("train", "validation", "valid", "dev", "test")


@dataclass
class Score:
    """
    One measured figure.

    Args:
        task: what was measured, in words.
        task_type: the Hub's name of the task, such as automatic-speech-recognition.
        data: name of the source that was scored, or of all of them with " + " between.
        metric: its name.
        value: its mean over the runs.
        deviation: standard deviation over the runs; None for a single one.
        runs: how many, and of what: "3 seeds".
        protocol: how it was measured.
        baselines: the same figure of other subjects in the same evaluation.
    """

    task: str
    task_type: str
    data: str
    metric: str
    value: float
    deviation: float | None = None
    runs: str = "1 seed"
    protocol: str = ""
    baselines: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.value, int | float):
            raise TypeError(f"{self.metric} is {self.value!r}, no number")

    @property
    def text(self) -> str:
        """The figure with its deviation."""
        return figure(self.value, self.deviation)


def figure(value: float, deviation: float | None) -> str:
    """A figure with its deviation, to three places."""
    return f"{value:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def data_name(source: str) -> str:
    """
    A source's name without the folders above it: the last part of a path, with its parent for a split. Of an address,
    neither the folders nor what stands behind a question mark, which may be a key.
    """
    if "::" in source:
        return "::".join(map(data_name, source.split("::")))
    if "://" in source:
        source = source.partition("?")[0]
    path = Path(source)
    if not path.is_absolute() and source.count("/") <= 1 or not path.name:
        return source
    with_parent = path.name in SPLITS and path.parent.name and path.parent != Path.home()
    return f"{path.parent.name}/{path.name}" if with_parent else path.name


def data_names(sources: list[str]) -> str:
    """Names of several sources."""
    return " + ".join(map(data_name, sources))


def read_scores(path: Path, checkpoint: Path) -> list[Score]:
    """
    All scores of a checkpoint in a file: results.json of a fine-tuning, a task's JSON lines of `training.superb`, or
    probes.json of `training.probe`.

    Raises:
        ValueError: if the file is none of these, or has no score of the checkpoint.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            return superb_scores(rows, checkpoint)
        found = json.loads(text)
        return probe_scores(found, checkpoint) if "protocol" in found else finetuning_scores(found)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} holds no results: give results.json of a fine-tuning, a .jsonl of training.superb or probes.json"
            f" of training.probe ({type(error).__name__}: {error})."
        ) from None
    except LookupError as error:
        raise ValueError(f"{path}: {error}") from None


def finetuning_scores(found: dict) -> list[Score]:
    """Scores of a fine-tuning on every source that it was given to score."""
    scores = []
    for source, values in found["scores"].items():
        best = found["best_step"]
        chosen = "last checkpoint" if best is None else f"best checkpoint by held-out clips (step {best})"
        protocol = f"{values['clips']} clips, {chosen}"
        if "greedy" in values:
            task, task_type = "speech recognition", "automatic-speech-recognition"
            decodings = {"greedy": "greedy decoding", "lm": "beam search with an n-gram"}
            parts = [(f"{how}; {protocol}", values[name]) for name, how in decodings.items() if name in values]
        else:
            task, task_type = "classification", "audio-classification"
            parts = [(protocol, {name: value for name, value in values.items() if name != "clips"})]
        scores += [
            Score(task, task_type, data_name(source), metric, value, protocol=how)
            for how, metrics in parts
            for metric, value in metrics.items()
        ]
    return scores


def superb_scores(rows: list[dict], checkpoint: Path) -> list[Score]:
    """Scores of a frozen encoder on a SUPERB task, over the seeds, beside the other subjects."""
    own = grouped(rows, lambda row: row["encoder"])
    name = own_name(own, checkpoint)
    short = short_names(own)
    first = own[name][0]
    used, clips = first["hyperparameters"], first["clips"]
    sources = used["test_data"] or used["train_data"]
    held_out = "" if used["test_data"] else ", a share held out at random"
    kind = "automatic-speech-recognition" if used["head"] == "recurrent_ctc" else "audio-classification"
    scores = []
    for metric in first["metrics"]:
        values = {subject: [row["metrics"][metric] for row in found] for subject, found in own.items()}
        deviations = {subject: np.std(v, ddof=1) if len(v) > 1 else None for subject, v in values.items()}
        scores.append(
            Score(
                task=f"{first['title']}, frozen encoder, learned layer sum",
                task_type=kind,
                data=data_names(sources),
                metric=metric,
                value=float(np.mean(values[name])),
                deviation=deviations[name],
                runs=f"{len(values[name])} seed{'s' * (len(values[name]) > 1)}",
                protocol=f"{clips['test']} test clips{held_out}; {used['max_steps']} steps; {first['protocol']}",
                baselines={
                    short[subject]: figure(float(np.mean(v)), deviations[subject])
                    for subject, v in values.items()
                    if subject != name
                },
            )
        )
    return scores


def probe_scores(found: dict, checkpoint: Path) -> list[Score]:
    """The best layer's score of every probe, beside the baselines' best."""
    subjects = {name: path for name, path in found["checkpoints"].items() if same(path, checkpoint)}
    if not subjects:
        raise LookupError(f"no score of {checkpoint}, only of {', '.join(found['checkpoints'])}")
    name = next(iter(subjects))
    short = short_names(found["checkpoints"])
    scores = []
    for (label, classifier), rows in grouped(found["scores"], lambda row: (row["label"], row["classifier"])).items():
        best = {s: max(r, key=lambda row: row["mean"]) for s, r in grouped(rows, lambda row: row["subject"]).items()}
        task, own = found["tasks"][label], best.pop(name)
        unit = "frames" if task["level"] == "frame" else "clips"
        scores.append(
            Score(
                task=f"{label}, {classifier} probe of layer {own['layer']} (the best)",
                task_type="audio-classification",
                data=data_names(found["data"]),
                metric="accuracy",
                value=own["mean"],
                deviation=own["deviation"] if task["splits"] > 1 else None,
                runs=f"{task['splits']} split{'s' * (task['splits'] > 1)}",
                protocol=f"{task['classes']} classes, {task['rows']} {unit}, random 80/20 splits of the recordings",
                baselines={
                    short[s] if Path(s).is_absolute() else s: figure(
                        row["mean"], row["deviation"] if task["splits"] > 1 else None
                    )
                    for s, row in best.items()
                },
            )
        )
    return scores


def grouped(rows: list[dict], key: Callable) -> dict:
    """Rows by what `key` says of them, in their order."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def own_name(groups: dict, checkpoint: Path) -> str:
    """The subject that is the checkpoint."""
    for name in groups:
        if same(name, checkpoint):
            return name
    raise LookupError(f"no score of {checkpoint}, only of {', '.join(groups)}")


def same(name: str, checkpoint: Path) -> bool:
    """Whether a name in a results file is that directory."""
    return Path(name).expanduser().resolve() == Path(checkpoint).resolve()


def short_names(subjects: Iterable[str]) -> dict[str, str]:
    """Subjects of `training.superb` without their paths; those of one name are told apart by number."""
    short = {}
    for subject in subjects:
        kind, _, _ = subject.partition(":")
        name = KINDS[kind] if kind in KINDS else Path(subject).name
        same_name = sum(other == name or other.startswith(f"{name} (") for other in short.values())
        short[subject] = f"{name} ({same_name + 1})" if same_name else name
    return short
