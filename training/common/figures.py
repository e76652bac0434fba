"""Figures that several rooms share, drawn without a screen: the histogram of entropy, captions, saving."""

from pathlib import Path

import matplotlib
import numpy as np

from sjepa_hf.contents import shown


matplotlib.use("Agg")
import matplotlib.pyplot as plt


def caption(text: str, most: int = 60) -> str:
    """A name as a title or label: on one line, cut in its middle, never read as a formula or hidden from a legend."""
    text = shown(" ".join(text.split()), most).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + text if text.startswith("_") else text


def save(figure, path: Path) -> None:
    """Write a figure as PNG, and free it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
        xlabel=f"entropy of the prediction, bits (at most {most:.1f})",
        ylabel="frames, share per bit",
        title=f"Predictor entropy over {len(entropy):,} frames, mean {entropy.mean():.2f} bits",
    )
    save(figure, path)
