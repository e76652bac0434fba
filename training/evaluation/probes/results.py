"""Results of the probes: a table and a panel for each label and classifier."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from training.common.figures import caption, save


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """The last two parts of each path, where that tells them apart."""
    short = ["/".join(Path(checkpoint).parts[-2:]) for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else list(checkpoints)


def panels(results: dict) -> list[tuple[str, str]]:
    """Label and classifier of each table and each panel of the picture."""
    return list(dict.fromkeys((score["label"], score["classifier"]) for score in results["scores"]))


def report(results: dict) -> str:
    """
    One table for each label and classifier: a row per layer, a column per encoder, accuracy in percent; below it, the
    best layer of each.
    """
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
            f" {100 * task['commonest_class_share']:.1f}, {task['apart']} kept apart"
        )
        if ("MFCC", None) in cells:
            head += f"; MFCC {cells['MFCC', None]}"
        width = max(len("layer"), *map(len, names), 12)
        lines = [head, "  ".join(["layer", *(name.rjust(width) for name in names)])]
        for layer in layers:
            lines.append("  ".join([f"{layer:5d}", *(cells.get((name, layer), "").rjust(width) for name in names)]))
        best = {}
        for score in scores:
            if score["subject"] not in best or score["mean"] > best[score["subject"]]["mean"]:
                best[score["subject"]] = score
        lines.append(
            "Best layer: "
            + "; ".join(
                f"{name} {percent(score['mean'], score['deviation'])}"
                + ("" if score["layer"] is None else f" (layer {score['layer']})")
                for name, score in best.items()
            )
            + "."
        )
        idle = [name for name in names if best[name]["mean"] <= task["commonest_class_share"]]
        if idle:
            lines.append(f"No layer does better than always answering the commonest class: {', '.join(idle)}.")
        if task["classes_left_out"]:
            single = "recording" if task["apart"] == "recordings" else f"value of {task['apart']}"
            lines.append(f"{task['classes_left_out']} classes with a single {single} were left out.")
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
    save(figure, path)
