"""Figures of a run: losses, what is known at hidden frames, effective ranks, predictor entropy."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from training.common.figures import draw_entropy, save
from training.data.masking import FARTHEST
from training.pretraining.monitoring import HISTORY, read_history


FEW = 12  # points of a curve up to which each is marked: a line through one or two would not be seen


def draw_losses(history: list[dict], phase1_steps: int, path: Path) -> None:
    """
    The parts of the loss over hours of audio seen, and their mean that is minimised; beside them the guesses that know
    nothing of what is said (the clip's mean, the mixture's weights), and the phase boundary; below, the entropy of the
    targets.
    """
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 5.5), height_ratios=(3, 1), layout="constrained")
    lines = (
        (above, "masked_kl", "masked frames", "C0", "-"),
        (above, "visible_kl", "visible frames", "C2", "-"),
        (above, "frozen_kl", "frozen targets", "C4", "-"),
        (above, "loss", "loss that is minimised", "C5", ":"),
        (above, "clip_mean_kl", "clip's mean guess", "C3", "--"),
        (above, "baseline_kl", "constant guess (mixture weights)", "0.5", "--"),
        (below, "target_entropy_bits", None, "C1", "-"),
    )
    for axes, name, label, colour, style in lines:
        # A phase's values are joined among themselves only: the two phases predict different clusters.
        for phase in (1, 2):
            points = [(m["hours_seen"], m[name]) for m in history if m["phase"] == phase and name in m]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=_marker(points), color=colour, label=label, lw=1.5)
                label = None
    for axes in (above, below):
        _mark_boundary(axes, history, phase1_steps)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    above.set(ylabel="KL(target || prediction), nats", title="Pretraining loss")
    below.set(xlabel="audio seen, hours", ylabel="target\nentropy, bits")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_hidden_frames(history: list[dict], phase1_steps: int, path: Path) -> None:
    """
    How far the KL at hidden frames lies below that of the clip's mean guess, over hours of audio seen: a curve for
    each distance to the nearest visible frame.
    """
    measured = [m for m in history if "masked_kl_by_distance" in m]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for index in range(FARTHEST):
        label = f"{index + 1}{' or more' if index == FARTHEST - 1 else ''}"
        for phase in (1, 2):
            points = [
                (m["hours_seen"], guess - masked)
                for m in measured
                for masked, guess in [(m["masked_kl_by_distance"][index], m["clip_mean_kl_by_distance"][index])]
                if m["phase"] == phase and masked is not None and guess is not None
            ]
            if points:
                colour = plt.cm.viridis(index / FARTHEST)
                axes.plot(*zip(*points, strict=True), marker=_marker(points), color=colour, label=label, lw=1.2)
                label = None
    axes.axhline(0, color="C3", ls="--", lw=1.5)
    axes.annotate("clip's mean guess", (1, 0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    _mark_boundary(axes, history, phase1_steps)
    axes.set(
        xlabel="audio seen, hours",
        ylabel="KL below the clip's mean guess, nats",
        title="What the prediction knows at hidden frames beyond voice and channel",
    )
    axes.set_xlim(left=0)
    figure.legend(title="frames to the\nnearest visible", loc="outside right center", frameon=False)
    save(figure, path)


def draw_ranks(history: list[dict], phase1_steps: int, path: Path) -> None:
    """
    Effective rank of each layer over hours of audio seen, layer 0 being the input of the first; in phase 2, the active
    layer as dots.
    """
    measured = [m for m in history if m.get("effective_ranks")]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    hours = [m["hours_seen"] for m in measured]
    ranks = np.array([m["effective_ranks"] for m in measured])  # [measures, layers]
    for layer, values in enumerate(ranks.T):
        label = f"layer {layer}" if layer else "layer 0 (input)"
        colour = plt.cm.viridis(layer / max(ranks.shape[1] - 1, 1))
        axes.plot(hours, values, marker=_marker(hours), label=label, color=colour, ls="-" if layer else "--")
    active = [(m["hours_seen"], m["effective_ranks"][m["active_layer"]]) for m in measured if "active_layer" in m]
    if active:
        axes.plot(*zip(*active, strict=True), "o", color="C3", ms=5, label="active layer")
    _mark_boundary(axes, history, phase1_steps)
    axes.set(
        xlabel="audio seen, hours",
        ylabel="effective rank, dimensions",
        title="Effective rank of each layer's features",
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    figure.legend(loc="outside right center", frameon=False)
    save(figure, path)


def draw_run(
    output_dir: Path, directory: Path, phase1_steps: int, entropy: np.ndarray, num_components: int
) -> list[str]:
    """The pictures of a run into `directory`, but for those that would be empty. Returns their names."""
    history = read_history(output_dir / HISTORY)
    drawn = ["loss.png"]
    draw_losses(history, phase1_steps, directory / "loss.png")
    if len(entropy):
        draw_entropy(entropy, num_components, directory / "predictor_entropy.png")
        drawn.append("predictor_entropy.png")
    if any("masked_kl_by_distance" in m for m in history):
        draw_hidden_frames(history, phase1_steps, directory / "hidden_frames.png")
        drawn.append("hidden_frames.png")
    if any(m.get("effective_ranks") for m in history):
        draw_ranks(history, phase1_steps, directory / "effective_rank.png")
        drawn.append("effective_rank.png")
    return drawn


def _mark_boundary(axes, history: list[dict], phase1_steps: int) -> None:
    before = [m["hours_seen"] for m in history if m["step"] <= phase1_steps]
    if before and any(m["phase"] == 2 for m in history):
        axes.axvline(before[-1], color="0.7", lw=1)
        axes.annotate("phase 2", (before[-1], 0.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=90)


def _marker(points: list) -> str | None:
    return "." if len(points) <= FEW else None
