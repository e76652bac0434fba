"""Summary of several tasks of SUPERB: one table and one picture, a row and a bar for each encoder."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sjepa_hf.saving import files_written_aside
from sjepa_hf.scores import LOWER_IS_BETTER, grouped, markdown_table, short_names
from training.common.figures import save
from training.evaluation.superb.results import chance_notes


def write_summary(results: dict[str, list[dict]], directory: Path) -> str:
    """
    Write `all.md` and `all.png`.

    Args:
        results: of each task by its name, as in its JSON lines.
        directory: where the files go.

    Returns:
        the table, and below it, task by task, which results are no better than chance.
    """
    figures = means(results)
    notes = [f"{task}: {note}" for task, rows in results.items() for note in chance_notes(rows)]
    text = "\n\n".join([summary_table(figures), *notes])
    with files_written_aside(directory) as aside:
        (aside / "all.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        draw(figures, aside / "all.png")
    return text


def means(results: dict[str, list[dict]]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean over the seeds of each subject, by task and metric."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for task, rows in results.items():
        for subject, own in grouped(rows, lambda row: row["encoder"]).items():
            for metric in own[0]["metrics"]:
                value = float(np.mean([row["metrics"][metric] for row in own]))
                found.setdefault((task, metric), {})[subject] = value
    return found


def arrow(metric: str) -> str:
    """Which way is better."""
    return "↓" if metric in LOWER_IS_BETTER else "↑"


def summary_table(figures: dict[tuple[str, str], dict[str, float]]) -> str:
    """One row a subject, one column a metric of a task, in Markdown; shares of 1, means over the seeds."""
    subjects = list(dict.fromkeys(subject for own in figures.values() for subject in own))
    head = ["encoder", *(f"{task} {metric} {arrow(metric)}" for task, metric in figures)]
    rows = [
        [subject, *(f"{own[subject]:.4f}" if subject in own else "" for own in figures.values())]
        for subject in subjects
    ]
    return markdown_table(head, rows)


def draw(figures: dict[tuple[str, str], dict[str, float]], path: Path) -> None:
    """A panel for each metric of a task, a bar for each subject."""
    columns = min(4, len(figures))
    rows = -(-len(figures) // columns)
    names = short_names(dict.fromkeys(subject for own in figures.values() for subject in own))
    size = (3.2 * columns, (0.9 + 0.3 * len(names)) * rows + 0.3)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat[len(figures) :]:
        axes.set_axis_off()
    for axes, ((task, metric), own) in zip(panels.flat, figures.items()):
        axes.barh([names[subject] for subject in own], list(own.values()), color="C0", alpha=0.7)
        axes.invert_yaxis()
        axes.set_title(f"{task}: {metric} {arrow(metric)}", fontsize=10)
        axes.tick_params(labelsize=8)
    save(figure, path)
