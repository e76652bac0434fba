"""The three pictures of a run: losses, effective ranks, predictor entropy."""

from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from training.monitoring import HISTORY, read_history


def draw_losses(history: list[dict], phase1_steps: int, path: Path) -> None:
    """Masked and visible KL over hours of audio seen, the constant guess beside them, and the phase boundary."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    lines = (
        ("masked_kl", "masked frames", "C0", "-"),
        ("visible_kl", "visible frames", "C2", "-"),
        ("baseline_kl", "constant guess (mixture weights)", "0.5", "--"),
        ("target_entropy_bits", "target entropy (bits)", "C1", ":"),
    )
    for name, label, colour, style in lines:
        # A phase's values are joined among themselves only: the two phases predict different clusters.
        for number, phase in enumerate((1, 2)):
            points = [(m["hours_seen"], m[name]) for m in history if m["phase"] == phase and name in m]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=None if number else label, lw=1.5)
    _mark_boundary(axes, history, phase1_steps)
    axes.set(xlabel="hours of audio seen", ylabel="KL(target || prediction) in nats", title="Pretraining loss")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def draw_ranks(history: list[dict], phase1_steps: int, path: Path) -> None:
    """Effective rank of each layer over hours of audio seen; in phase 2, the active layer as dots."""
    measured = [m for m in history if m.get("effective_ranks")]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if measured:
        hours = [m["hours_seen"] for m in measured]
        ranks = np.array([m["effective_ranks"] for m in measured])  # [measures, layers]
        for layer, values in enumerate(ranks.T):
            axes.plot(hours, values, label=f"layer {layer}", color=plt.cm.viridis(layer / max(ranks.shape[1] - 1, 1)))
        active = [(m["hours_seen"], m["effective_ranks"][m["active_layer"]]) for m in measured if "active_layer" in m]
        if active:
            axes.plot(*zip(*active, strict=True), "o", color="C3", ms=4, label="active layer")
        axes.legend(frameon=False, ncols=2)
    _mark_boundary(axes, history, phase1_steps)
    axes.set(xlabel="hours of audio seen", ylabel="effective rank", title="Effective rank of each layer's features")
    axes.set_ylim(bottom=0)
    _save(figure, path)


def draw_entropy(entropy: np.ndarray, num_components: int, path: Path) -> None:
    """Histogram of the predictor's entropy in bits per frame, without masking, with marks at 0.5, 1 and 2 bits."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    most = np.log2(num_components)
    axes.hist(entropy, bins=np.linspace(0, most, 80), density=True, color="C0", alpha=0.8)
    for mark in (0.5, 1, 2):
        axes.axvline(mark, color="C3", ls="--", lw=1)
        share = 100 * float((entropy > mark).mean())
        axes.annotate(
            f"{share:.0f} % above {mark:g}",
            (mark, 0.97),
            xycoords=("data", "axes fraction"),
            rotation=90,
            va="top",
            ha="right",
            fontsize=8,
        )
    axes.set(
        xlabel=f"entropy of the prediction in bits (at most {most:.1f})",
        ylabel="density",
        title=f"Predictor entropy over {len(entropy):,} frames, mean {entropy.mean():.2f} bits",
    )
    _save(figure, path)


def draw_run(output_dir: Path, directory: Path, phase1_steps: int, entropy: np.ndarray, num_components: int) -> None:
    """All three pictures of a run into `directory`."""
    history = read_history(output_dir / HISTORY)
    draw_losses(history, phase1_steps, directory / "loss.png")
    draw_ranks(history, phase1_steps, directory / "effective_rank.png")
    draw_entropy(entropy, num_components, directory / "predictor_entropy.png")


def _mark_boundary(axes, history: list[dict], phase1_steps: int) -> None:
    before = [m["hours_seen"] for m in history if m["step"] <= phase1_steps]
    if before and any(m["phase"] == 2 for m in history):
        axes.axvline(before[-1], color="0.7", lw=1)
        axes.annotate("phase 2", (before[-1], 0.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=90)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
