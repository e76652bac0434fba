"""Scores: the rows that every evaluation writes into its results file under the key `scores`, read for a card.

results.json  beside a fine-tuned model, by `training.finetune_ctc` and `training.finetune_classification`
TASK.json     by `training.superb`, such as ks.json
probes.json   by `training.probe`
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .command import first_line
from .opening import is_path


LOWER_IS_BETTER = ("wer", "cer", "per", "eer", "der", "slot_value_cer")
SPLITS = ("train", "validation", "valid", "dev", "test")
THIS_MODEL = "this model"  # subject of a file that lies beside the model which it tells of
MFCC, UNTRAINED = "mfcc", "untrained:"  # subjects that are no checkpoint; UNTRAINED is followed by one
TEXTS = ("subject", "task", "task_type", "data", "split", "metric")
WRITERS = {
    "results.json": "`python -m training.finetune_ctc` or `training.finetune_classification`",
    "probes.json": "`python -m training.probe`",
}
ALL_WRITERS = "`python -m training.superb` (TASK.json), `training.probe` (probes.json) or a fine-tuning (results.json)"


@dataclass
class Score:
    """
    One figure of one subject: a row of a results file.

    Args:
        subject: what was scored, as it was named: a checkpoint, "untrained:CHECKPOINT", "mfcc" or "this model".
        task: what was measured, in words, and by what: "phones, linear probe".
        task_type: the Hub's name of the task, such as automatic-speech-recognition.
        data: name of the source that was scored, or of all of them with " + " between, without folders above it.
        split: the part of it: "test", "validation", or "held-out" for a share of the training clips.
        metric: its name.
        value: its mean over the runs; in a file null if it is not finite, and NaN when that is read.
        deviation: standard deviation over the runs; None for a single one.
        runs: how many, and of what: "3 seeds".
        values: of each run, where there can be several.
        protocol: how it was measured, in words.
        clips: how many were scored, or take part in the probe's splits.
        layer: of the encoder that was read off, as in `hidden_states`; None where there is no choice.
        learned: whether it is better than chance: in every seed, or in the mean of a probe's splits; None where that
            cannot be told.

    Raises:
        ValueError: if a field has another type.
    """

    subject: str
    task: str
    task_type: str
    data: str
    split: str
    metric: str
    value: float
    deviation: float | None = None
    runs: str = "1 seed"
    values: list[float] = field(default_factory=list)
    protocol: str = ""
    clips: int | None = None
    layer: int | None = None
    learned: bool | None = None

    def __post_init__(self):
        for name in (*TEXTS, "runs", "protocol"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, no text")
        if not is_number(self.value):
            raise ValueError(f"`value` is {self.value!r}, no number")
        if self.deviation is not None and not is_number(self.deviation):
            raise ValueError(f"`deviation` is {self.deviation!r}, no number")
        if not isinstance(self.values, list) or not all(map(is_number, self.values)):
            raise ValueError(f"`values` is {self.values!r}, no list of numbers")
        for name in ("clips", "layer"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
                raise ValueError(f"`{name}` is {number!r}, no number from 0")
        if self.learned is not None and not isinstance(self.learned, bool):
            raise ValueError(f"`learned` is {self.learned!r}, no truth value")

    @property
    def text(self) -> str:
        """The figure with its deviation, to three places."""
        return f"{self.value:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")

    @property
    def merit(self) -> float:
        """The value with the sign that makes larger better; -inf where it is not finite."""
        if not math.isfinite(self.value):
            return -math.inf
        return -self.value if self.metric in LOWER_IS_BETTER else self.value


@dataclass
class ComparedScore(Score):
    """
    A checkpoint's own score, of its best layer where several were scored.

    Args:
        baselines: the same figure of the other subjects, each by its short name.
    """

    baselines: dict[str, Score] = field(default_factory=dict)


def is_number(value: Any) -> bool:
    """Whether a value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_text(value: Any, indent: int | None = None) -> str:
    """
    A value as JSON that any file takes: numbers that are not finite are null, since JSON has none, and what UTF-8 does
    not have, the bytes of a file name that are none, is escaped, which JSON reads as the same value.
    """

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def null_as_nan(value: Any) -> Any:
    """NaN for null: `json_text` writes non-finite numbers as null. Any other value as it is."""
    return math.nan if value is None else value


def write_scores(path: Path, scores: Sequence[Score], **facts: Any) -> None:
    """Write a results file: what else is known of the evaluation, then the scores without fields that are unset."""
    rows = [
        {name: value for name, value in asdict(score).items() if value is not None and value != []} for score in scores
    ]
    path.write_text(json_text(facts | {"scores": rows}, indent=1) + "\n", encoding="utf-8")


def read_scores(path: str | Path) -> list[Score]:
    """
    All scores of a results file.

    Raises:
        ValueError: if it is none, in a sentence with the command that writes it.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document.get("scores") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise ValueError("no list under the key `scores`")
        return [read_row(row, number) for number, row in enumerate(rows, 1)]
    except (OSError, ValueError, RecursionError) as error:
        if path.suffix == ".jsonl":
            way_out = f"give {path.stem}.json beside it, which `python -m training.superb` writes anew"
        else:
            way_out = f"{WRITERS.get(path.name, ALL_WRITERS)} writes it anew"
        no_json = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        why = "not one JSON object" if no_json else first_line(error)
        raise ValueError(f"{path} is not a scores file ({why}): {way_out}.") from None


def read_row(row: Any, number: int) -> Score:
    """A score from its row. Raises a ValueError that names the row's number and the field that is wrong."""
    known = {f.name for f in fields(Score)}
    if not isinstance(row, dict):
        raise ValueError(f"score {number} is {row!r}, no object")
    for name in (*TEXTS, "value"):
        if name not in row:
            raise ValueError(f"score {number} has no `{name}`")
    for name in row:
        if name not in known:
            raise ValueError(f"score {number} has a field `{name}`, which is unknown")
    restored = row | {"value": null_as_nan(row["value"])}
    if isinstance(row.get("values"), list):
        restored["values"] = list(map(null_as_nan, row["values"]))
    try:
        return Score(**restored)
    except ValueError as error:
        raise ValueError(f"score {number}: {error}") from None


def scores_of(checkpoint: Path, path: Path) -> list[ComparedScore]:
    """
    A checkpoint's scores in a results file, one for each task, data and metric: of several layers the best, beside the
    best of the other subjects.

    Raises:
        ValueError: if the file is none, or has no score of the checkpoint.
    """
    path, rows = Path(path), read_scores(path)
    short = short_names(score.subject for score in rows)
    folders = {name: path.parent if name == THIS_MODEL else Path(name) for name in short}
    own = [name for name, folder in folders.items() if folder.expanduser().resolve() == Path(checkpoint).resolve()]
    if not own:
        names = [str(path.parent) if name == THIS_MODEL else name for name in short]
        raise ValueError(f"{path}: no score of {checkpoint}, only of {', '.join(names) or 'nothing'}.")
    compared = []
    for group in grouped(rows, lambda row: (row.task, row.data, row.split, row.metric)).values():
        best = {
            name: max(scores, key=lambda score: score.merit)
            for name, scores in grouped(group, lambda row: row.subject).items()
        }
        if own[0] in best:
            score = best[own[0]]
            task = score.task if score.layer is None else f"{score.task} of layer {score.layer} (the best)"
            baselines = {short[name]: other for name, other in best.items() if name not in own}
            shown = {"task": task, "data": data_names(score.data.split(" + "))}  # a row made by hand may hold a path
            compared.append(ComparedScore(**asdict(score) | shown, baselines=baselines))
    return compared


def data_name(source: str) -> str:
    """
    A source's name without the folders above it: the last part of a path, with its parent for a split. Of an address,
    neither the folders nor what stands behind a question mark, which may be a key. What is no path by its looks, nor
    there as a file or folder, is a name on the Hub.
    """
    if "::" in source:
        return "::".join(map(data_name, source.split("::")))
    if "://" in source:
        source = source.partition("?")[0]
    path = Path(source)
    local = is_path(source) or os.path.exists(path)
    if not local or path.name in ("", ".."):
        return source
    with_parent = path.name in SPLITS and path.parent.name not in ("", "..", "~") and path.parent != Path.home()
    return f"{path.parent.name}/{path.name}" if with_parent else path.name


def data_names(sources: list[str]) -> str:
    """Names of several sources."""
    return " + ".join(map(data_name, sources))


def grouped(rows: Iterable, key: Callable) -> dict:
    """Rows by what `key` says of them, in their order."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without an end of line behind it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def short_names(subjects: Iterable[str]) -> dict[str, str]:
    """
    Subjects as tables name them: MFCC, the last name of a checkpoint's path, "untrained"; where several are alike,
    more of the path, and last their number.
    """
    forms = {subject: forms_of(subject) for subject in subjects}
    short = {}
    for subject, own in forms.items():
        others = {form for other, theirs in forms.items() if other != subject for form in theirs}
        name = next((form for form in own if form not in others), own[-1])
        number = 1 + sum(other == name or other.startswith(f"{name} (") for other in short.values())
        short[subject] = name if number == 1 else f"{name} ({number})"
    return short


def forms_of(subject: str) -> list[str]:
    """Names that a subject may have in a table, from short to long; none shows the user's home folder."""
    if subject in (MFCC, THIS_MODEL):
        return [subject.upper() if subject == MFCC else subject]
    path = Path(subject.removeprefix(UNTRAINED))
    parents = [] if path.parent == Path.home() else [path.parent.name]
    names = [path.name or str(path), *(f"{parent}/{path.name}" for parent in parents if parent)]
    return ["untrained", *(f"untrained {name}" for name in names)] if subject.startswith(UNTRAINED) else names
