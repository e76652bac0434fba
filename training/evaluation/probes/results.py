"""Results of the probes: a table and a panel for each label and classifier."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sjepa_hf.scores import MFCC, UNTRAINED, Score, grouped, short_names
from training.common.figures import caption, save


def report(results: dict) -> str:
    """
    One table for each label and classifier: a row per layer, a column per encoder, accuracy in percent; below it, the
    best layer of each.

    Args:
        results: what `training.probe.run` returns.
    """
    blocks = []
    short = short_names(score.subject for score in results["scores"])
    for title, scores in grouped(results["scores"], lambda score: score.task).items():
        task = results["tasks"][title]
        apart = task["apart"]
        cells = {(s.subject, s.layer): percent(s) for s in scores}
        subjects = list(dict.fromkeys(s.subject for s in scores if s.subject != MFCC))
        layers = sorted({s.layer for s in scores if s.subject != MFCC})
        head = (
            f"{title}: accuracy in % over {task['splits']} split{'s' * (task['splits'] > 1)};"
            f" {task['classes']} classes, {task['clips']} clips, {task['rows']} rows of which a split scores"
            f" {100 * task['scored_share']:.0f} %, commonest class {100 * task['commonest_class_share']:.1f}, "
            + ("pieces of one recording, nothing kept apart" if apart is None else f"{apart} kept apart")
        )
        if (MFCC, None) in cells:
            head += f"; MFCC {cells[MFCC, None]}"
        width = max([12, *(len(short[subject]) for subject in subjects)])
        lines = [head, "  ".join(["layer", *(short[subject].rjust(width) for subject in subjects)])]
        for layer in layers:
            row = (cells.get((subject, layer), "").rjust(width) for subject in subjects)
            lines.append("  ".join([f"{layer:5d}", *row]))
        best = {
            subject: max(own, key=lambda score: score.merit)
            for subject, own in grouped(scores, lambda score: score.subject).items()
        }
        told = (
            f"{short[subject]} {percent(score)}" + ("" if score.layer is None else f" (layer {score.layer})")
            for subject, score in best.items()
        )
        lines.append(f"Best layer: {'; '.join(told)}.")
        if len(layers) > 1:
            no_choice = "; MFCC has one layer" if MFCC in best else ""
            lines.append(f"The best layer is chosen on the splits that are reported{no_choice}.")
        idle = [short[subject] for subject in subjects if best[subject].value <= task["commonest_class_share"]]
        if idle:
            lines.append(f"No layer does better than always answering the commonest class: {', '.join(idle)}.")
        if task["classes_left_out"]:
            single = {None: "clip", "recordings": "recording"}.get(apart, f"value of {apart}")
            lines.append(f"{task['classes_left_out']} classes with a single {single} were left out.")
        if task.get("clips_without_label"):
            lines.append(f"{task['clips_without_label']} clips without the label were left out.")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def percent(score: Score) -> str:
    """A share in percent, with its deviation where there are several values."""
    return f"{100 * score.value:.1f}" + ("" if score.deviation is None else f" ± {100 * score.deviation:.1f}")


def draw(scores: Sequence[Score], path: Path) -> None:
    """
    Accuracy over layers, one panel for each label and classifier; baselines as broken lines. Without a score, no
    picture.
    """
    shown = grouped(scores, lambda score: score.task)
    if not shown:
        return
    short = short_names(score.subject for score in scores)
    columns, rows = min(len(shown), 4), -(-len(shown) // 4)
    size = (1 + 3.6 * columns, 0.6 + 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, (title, of_task) in zip(axes.flat, shown.items()):
        colours = iter(f"C{n}" for n in range(len(of_task)))
        greys = iter(("0.45", "0.6", "0.7", "0.8") * len(of_task))
        by_subject = grouped(of_task, lambda score: score.subject)
        for number, (subject, points) in enumerate(by_subject.items()):
            name = caption(short[subject], 40)
            means = 100 * np.array([score.value for score in points])
            if subject == MFCC:
                panel.axhline(means[0], color="k", ls=":", label=name)
                continue
            fresh = subject.startswith(UNTRAINED)
            style = dict(color=next(greys), ls="--") if fresh else dict(color=next(colours), ls="-")
            deviations = 100 * np.array([score.deviation or 0.0 for score in points])
            layers = [score.layer + 0.04 * number for score in points]  # bars beside one another
            panel.errorbar(layers, means, deviations, marker="o", ms=4, capsize=2, label=name, **style)
        panel.set(xlabel="layer (0: Transformer input)", title=caption(title, 40))
        lowest, highest = panel.get_ylim()
        panel.set_ylim(min(lowest, 95), min(highest, 100.5))  # where all is perfect, flat lines at the top
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel("accuracy (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)
