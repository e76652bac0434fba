"""Results of SUPERB: JSON lines, one for each subject, seed and fold; from them scores, a table and layer weights."""

import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from filelock import FileLock

from sjepa_hf.durations import audio_amount
from sjepa_hf.saving import files_written_aside
from sjepa_hf.scores import (
    MFCC,
    Score,
    data_names,
    grouped,
    json_text,
    markdown_table,
    null_as_nan,
    short_names,
    write_scores,
)
from training.common.figures import caption, save
from training.evaluation.superb.tasks import HEAD_UNITS, TASKS, slot_classification


# What every result has.
FIELDS = ("task", "title", "encoder", "encoder_digest", "seed", "metrics", "dev_metrics", "layer_weights")
FIELDS += ("protocol", "clips", "hours", "hyperparameters")


def earlier_results(directory: Path, task: str, settings: dict) -> list[dict]:
    """
    Results of a task that a directory holds already.

    Raises:
        ValueError: if they were made with other settings, so that they cannot stand in one table with new ones, or a
            line is damaged.
    """
    path = directory / f"{task}.jsonl"
    if not path.is_file():
        return []
    results = [read_line(line, path, number) for number, line in enumerate(path.read_bytes().splitlines(), 1)]
    settings = json.loads(json.dumps(settings))
    for result in results:
        theirs = result["hyperparameters"]
        for name in sorted((settings.keys() | theirs.keys()) - {"untrained_seed"}):
            if theirs.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} holds results with `{name}` {theirs.get(name)!r}, not {settings.get(name)!r}: choose"
                    " another `output_dir`, or delete it."
                )
    return results


def check_data(results: list[dict], data_digest: str, directory: Path) -> None:
    """Raise a ValueError if one of a task's earlier results is of other clips or labels than those of this digest."""
    for result in results:
        if result.get("data_digest") != data_digest:
            raise ValueError(
                f"{directory / result['task']}.jsonl holds results of other clips or labels than the data sources have"
                " now: choose another `output_dir`, or delete it."
            )


def read_line(line: bytes, path: Path, number: int) -> dict:
    """A result of a line of a file. Raises a ValueError that names both if it is none."""
    try:
        result = json.loads(line)
        if missing := [name for name in FIELDS if name not in result]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return with_nan(result)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"Line {number} of {path} is no result ({error}): delete that line, and what it held is scored again."
        ) from None


def with_nan(result: dict) -> dict:
    """A result as it was before it became JSON: figures that are not finite are null there."""
    metrics = {
        part: {name: null_as_nan(value) for name, value in result[part].items()} for part in ("metrics", "dev_metrics")
    }
    return result | metrics | {"layer_weights": list(map(null_as_nan, result["layer_weights"]))}


def add(result: dict, directory: Path) -> None:
    """
    Add a result to those of its task that a directory holds, in the place of one of the same encoder, seed and fold.
    They are read under a lock just before: another run may have added to them.

    Raises:
        ValueError: if that run has other settings or data.
    """
    task = result["task"]
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / f".{task}.lock"):
        there = earlier_results(directory, task, result["hyperparameters"])
        check_data(there, result["data_digest"], directory)
        write([one for one in there if run_of(one) != run_of(result)] + [result], directory)


def current(results: list[dict]) -> list[dict]:
    """The results whose encoder is as it was for the last one of its name: the others are yet to be scored again."""
    latest = {result["encoder"]: result["encoder_digest"] for result in results}
    return [result for result in results if latest[result["encoder"]] == result["encoder_digest"]]


def run_of(result: dict) -> tuple:
    """The encoder, seed and fold, if any, that a result is of."""
    return result["encoder"], result["seed"], result.get("fold")


def over_folds(results: list[dict]) -> list[dict]:
    """
    A result for each subject and seed: of folds, once all are there, the mean of the metrics and of the layer weights,
    all test clips, and the mean size of training and dev set. It has learned if it has in all folds.
    """
    found = []
    for own in grouped(results, lambda result: (result["encoder"], result["seed"])).values():
        first = own[0]
        if "folds" not in first:
            found += own
        elif {result["fold"] for result in own} == set(first["folds"]):
            mean = {
                part: {name: float(np.mean([result[part][name] for result in own])) for name in first[part]}
                for part in ("metrics", "dev_metrics", "hours")
            }
            clips = {name: round(np.mean([result["clips"][name] for result in own])) for name in first["clips"]}
            clips["test"] = sum(result["clips"]["test"] for result in own)
            mean["hours"]["test"] = sum(result["hours"]["test"] for result in own)
            weights = np.mean([result["layer_weights"] for result in own], axis=0).tolist()
            whole = {name: value for name, value in first.items() if name not in ("fold", "best_step", "seconds")}
            found.append(whole | mean | {"clips": clips, "layer_weights": weights, "learned": learned(own)})
    return found


def learned(results: list[dict]) -> bool | None:
    """Whether all of several results are better than chance."""
    found = {result.get("learned") for result in results}
    return False if False in found else None if None in found else True


def write(results: list[dict], directory: Path) -> None:
    """Results of a task; scores and table of the current ones whose folds are all there. Written aside and renamed."""
    name, whole = results[0]["task"], over_folds(current(results))
    with files_written_aside(directory) as aside:
        (aside / f"{name}.jsonl").write_text("".join(json_text(result) + "\n" for result in results), encoding="utf-8")
        if whole:
            write_scores(aside / f"{name}.json", score_rows(whole))
            (aside / f"{name}.md").write_text(table(whole) + "\n", encoding="utf-8", errors="backslashreplace")


def is_trained(hyperparameters: dict) -> bool:
    """`SuperbTask.is_trained` of the task of a result."""
    return hyperparameters["head"] != "dtw"


def score_rows(results: list[dict]) -> list[Score]:
    """Rows of `TASK.json`: each subject's mean and standard deviation (of n - 1) of each metric over the seeds."""
    rows = []
    for subject, own in grouped(results, lambda result: result["encoder"]).items():
        first = own[0]
        used, clips = first["hyperparameters"], first["clips"]["test"]
        scored = first.get("scored", f"{clips} test clips")
        how = "learned layer sum" if is_trained(used) else "best layer"
        steps = f"{used['max_steps']} steps" if is_trained(used) else "nothing trained"
        apart = f" by {used['split_by']}" if "split_by" in used else ""
        held_out = "" if used["test_data"] else f", a share held out at random{apart}"
        if "folds" in used:
            held_out = f", mean of {len(first['folds'])} folds by {used['folds']}"
        for metric in first["metrics"]:
            values = [result["metrics"][metric] for result in own]
            rows.append(
                Score(
                    subject=subject,
                    task=f"{first['title']}, frozen encoder, {how}",
                    task_type=(
                        "automatic-speech-recognition" if used["head"].endswith("_ctc") else "audio-classification"
                    ),
                    data=data_names(used["test_data"] or used["train_data"]),
                    split="test",
                    metric=metric,
                    value=float(np.mean(values)),
                    deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    runs=f"{len(values)} seed{'s' * (len(values) > 1)}",
                    values=values,
                    protocol=f"{scored}{held_out}; {steps}; {first['protocol']}{changed(first['task'], used)}",
                    clips=clips,
                    learned=learned(own),
                )
            )
    return rows


def changed(name: str, used: dict) -> str:
    """The settings of a result that are not those of its task, in words; nothing where nothing is trained."""
    if not is_trained(used):
        return ""
    task = slot_classification() if used.get("labels") == "slots" else TASKS[name]
    known = {setting: getattr(task, setting) for setting in ("learning_rate", "batch_size", "max_steps", "eval_steps")}
    known |= {"head_units": HEAD_UNITS.get(task.head), "stacked_frames": 1, "stress": True}
    others = [
        f"{setting} {json_text(used[setting])} for {json_text(value)}"
        for setting, value in known.items()
        if used.get(setting) not in (None, value)
    ]
    return f", but {', '.join(others)}" if others else ""


def table(results: list[dict]) -> str:
    """One row a subject, in Markdown: mean and standard deviation (of n - 1) of each metric over the seeds."""
    metrics = list(results[0]["metrics"])
    seeds = Counter(result["encoder"] for result in results)
    subjects = list(seeds)
    rows = [["encoder", *metrics, "seeds", "heaviest layer"]]
    for subject in subjects:
        own = [result for result in results if result["encoder"] == subject]
        cells = [subject]
        for metric in metrics:
            values = [result["metrics"][metric] for result in own]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        weights = np.mean([result["layer_weights"] for result in own], axis=0)
        heaviest = f"{weights.argmax()} of 0 to {len(weights) - 1} ({weights.max():.2f})" if len(weights) > 1 else "-"
        rows.append([*cells, str(len(own)), heaviest])
    widths = [max(map(len, column)) for column in zip(*rows)]
    head, *rows = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
    first = results[0]
    clips, hours, used = first["clips"], first["hours"], first["hyperparameters"]
    train = f"train {clips['train']} clips ({audio_amount(hours['train'])}), " if is_trained(used) else ""
    how = f"{used['max_steps']} steps of {used['batch_size']} at {used['learning_rate']:g}"
    how = how if is_trained(used) else "nothing is trained"
    scored_on = f"mean of {len(first['folds'])} folds by {used['folds']}" if "folds" in used else "test set"
    sizes = {name: audio_amount(value) for name, value in hours.items()}
    title = (
        f"{first['task']} ({first['title']}), {scored_on}; {train}dev {clips['dev']} ({sizes['dev']}), test"
        f" {first.get('scored', clips['test'])} ({sizes['test']}); {how}"
    )
    title += "; shares of 1" + (", ± the standard deviation over seeds" if max(seeds.values()) > 1 else "")
    notes = chance_notes(results)
    if is_trained(used) and any(result["encoder"] == MFCC for result in results):
        notes.append("mfcc is normed over the training set; SUPERB's own baseline is `fbank`.")
    return "\n".join([title, "", markdown_table(head, rows), *([""] if notes else []), *notes])


def chance_notes(results: list[dict]) -> list[str]:
    """A sentence that names the results of a task that are no better than chance; none where all are better."""
    idle = [result for result in results if result.get("learned") is False]
    if not idle:
        return []
    somewhere = " in a fold or more" if "folds" in idle[0]["hyperparameters"] else ""
    named = "; ".join(f"{result['encoder']}, seed {result['seed']}" for result in idle)
    return [f"No better than chance{somewhere}: {named}."]


def draw_layer_weights(results: list[dict], directory: Path) -> None:
    """
    The learned layer weights, a panel for each subject that has several layers: bars from the uniform weight to the
    mean over the seeds, and a dot for each seed. Without such a subject, or where nothing is trained, no picture.
    """
    layers = {result["encoder"]: len(result["layer_weights"]) for result in results}
    subjects = {name: title for name, title in short_names(layers).items() if layers[name] > 1}
    if not subjects or not is_trained(results[0]["hyperparameters"]):
        return
    size = (max(6, 2 + 0.32 * max(layers.values())), 0.4 + 2.2 * len(subjects))
    figure, rows = plt.subplots(len(subjects), figsize=size, squeeze=False, layout="constrained")
    for axes, (subject, title) in zip(rows[:, 0], subjects.items()):
        weights = np.array([result["layer_weights"] for result in results if result["encoder"] == subject])
        places, uniform = np.arange(weights.shape[1]), 1 / weights.shape[1]
        axes.bar(places, weights.mean(0) - uniform, bottom=uniform, width=0.6, color="C0", alpha=0.55)
        axes.plot(places, weights.T, "o", color="C0", ms=3)
        axes.axhline(uniform, color="0.3", lw=1, ls="--")
        reach = max(1.15 * np.nan_to_num(np.abs(weights - uniform)).max(), 0.02 * uniform)
        axes.set(
            title=caption(title, 44),
            xlabel="layer (0: what enters the first Transformer layer)",
            ylabel=f"weight\n(dashed: all alike,\n{uniform:.3f})",
            xticks=places,
            ylim=(uniform - reach, uniform + reach),
        )
        axes.title.set_fontsize(10)
    with files_written_aside(directory) as aside:
        save(figure, aside / f"{results[0]['task']}_layer_weights.png")
