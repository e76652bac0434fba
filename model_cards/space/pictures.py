"""The pictures of the page, as WebP; their palettes are perceptually uniform maps and the colours of Okabe & Ito."""

import io
from functools import cache
from typing import NamedTuple

import numpy as np
from listening import MEL_BANDS, MEL_HOP, Clip, Heard, log_mel
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import MaxNLocator

from sjepa_hf.cluster_pictures import draw_clusters
from sjepa_hf.frames import FRAME_SECONDS, SAMPLING_RATE, frame_centres


BLUE, SKY, VERMILLION, INK = "#0072B2", "#56B4E9", "#D55E00", "#22303c"
STYLE = {"loc": "left", "fontsize": 10.5, "color": INK, "fontweight": "bold", "pad": 5}
USUAL_FONT = "DejaVu Sans"  # comes with matplotlib
INCHES_A_SECOND = 0.9  # at least; a longer clip gets a wider picture
DPI, MOST_PIXELS = 140, 16_000  # WebP ends at 16,383


class Picture(NamedTuple):
    """
    Attributes:
        webp: the file.
        inches: its width; the page shows it at 75 to 110 pixels an inch.
        box: left, top, width and height, as shares of the picture, of the axes that time runs along.
        units: top and height of the strip of units, as shares of the picture; None where there is none.
    """

    webp: bytes
    inches: float
    box: tuple[float, float, float, float]
    units: tuple[float, float] | None = None


def draw_clip(
    clip: Clip, heard: Heard, cluster_places: np.ndarray | None, zoom: int = 1, clusters: str = "prediction"
) -> Picture:
    """
    Log-mel, words, units, three largest posteriors and entropy of a clip, each over the same seconds, `zoom` times as
    wide as a screen shows at once. The units are of `clusters`.
    """
    rows = [("mel", 2.5)]
    if heard.words:
        rows.append(("words", 0.42))
    if heard.posteriors is not None:
        rows += [("units", 0.55), ("posteriors", 1.25), ("entropy", 1.35)]
    heights, gap, top, bottom = [height for _, height in rows], 0.38, 0.35, 0.5
    width = zoom * max(12.4, INCHES_A_SECOND * clip.seconds)
    height = top + sum(heights) + gap * (len(rows) - 1) + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    left, inner = 0.72 / width, (width - 0.72 - 0.2) / width
    panels, upper, strip = {}, height - top, None
    for name, rise in rows:
        if name == "units":
            strip = (1 - upper / height, rise / height)
        share = (left, (upper - rise) / height, inner, rise / height)
        panels[name] = figure.add_axes(share, sharex=panels.get("mel"))
        upper -= rise + gap

    _draw_mel(panels["mel"], clip.samples)
    panels["mel"].set_title("Log-mel spectrogram (kHz)", **STYLE)
    if heard.words:
        _draw_words(panels["words"], heard)
    if heard.posteriors is not None:
        scale = inner * width / clip.seconds
        draw_clusters(panels["units"], heard.units, cluster_places, scale)
        panels["units"].set_title(
            f"Units: most likely cluster of the {clusters} (like colours, like clusters)", **STYLE
        )
        _draw_posteriors(panels["posteriors"], heard.posteriors)
        _draw_entropy(panels["entropy"], heard)
    for name, panel in panels.items():
        _tidy(panel)
        last = name == rows[-1][0]
        panel.tick_params(axis="x", labelbottom=last)
        panel.xaxis.set_major_locator(MaxNLocator(zoom * max(8, int(clip.seconds) + 1), steps=[1, 2, 5, 10]))
        panel.set_xlim(0, clip.seconds)
    panel.set_xlabel("seconds", color=INK, labelpad=2)
    box = (left, top / height, inner, 1 - (top + bottom) / height)
    return Picture(_webp(figure), width, box, strip)


def draw_ranks(ranks: list[float], most: int) -> Picture:
    """Effective rank of each layer, lowest layer at the bottom; at most `most`."""
    height = 0.95 + 0.3 * len(ranks)
    figure = Figure(figsize=(5.6, height), facecolor="white")
    panel = figure.add_axes((0.9 / 5.6, 0.45 / height, 4.4 / 5.6, 1 - 0.8 / height))
    places = np.arange(len(ranks))
    panel.barh(places, ranks, color=BLUE, height=0.68)
    for place, rank in zip(places, ranks):
        panel.text(rank, place, f" {rank:.0f}", va="center", color=INK, fontsize=9.5)
    panel.set(xlim=(0, 1.13 * max(ranks)), yticks=places, yticklabels=["input", *places[1:]])
    panel.set_title("Effective rank of each layer", **STYLE)
    panel.set_xlabel(f"directions in use, of at most {most}", color=INK, labelpad=2)
    panel.set_ylabel("layer", color=INK, labelpad=2)
    _tidy(panel)
    return Picture(_webp(figure), 5.6, (0, 0, 1, 1))


def draw_similarity(first: Clip, second: Clip, matrix: np.ndarray, layer: int) -> Picture:
    """
    Similarity of two clips, `(frames of the first, frames of the second)`, with the log-mel of the first on its left
    and of the second above it; a second is as long on both axes.
    """
    scale = min(8.2 / second.seconds, 5.4 / first.seconds)  # inches a second
    wide, high = (max(scale * clip.seconds, 1.2) for clip in (second, first))
    strip, gap, left, right, top, bottom = 1.0, 0.12, 0.75, 1.15, 0.4, 0.55
    width, height = left + strip + gap + wide + right, top + strip + gap + high + bottom
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(x: float, y: float, w: float, h: float):
        return figure.add_axes((x / width, y / height, w / width, h / height))

    centre = axes(left + strip + gap, bottom, wide, high)
    extent = (0, matrix.shape[1] * FRAME_SECONDS, matrix.shape[0] * FRAME_SECONDS, 0)
    drawn = centre.imshow(matrix, aspect="auto", extent=extent, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    centre.set(xlim=(0, second.seconds), ylim=(first.seconds, 0), facecolor="0.95")
    centre.set_xlabel("clip B, seconds", color=INK, labelpad=2)
    centre.tick_params(axis="y", labelleft=False)
    _tidy(centre)

    beside = axes(left, bottom, strip, high)
    _draw_mel(beside, first.samples, upright=True)
    beside.set(ylim=(first.seconds, 0), xticks=[])
    beside.set_ylabel("clip A, seconds", color=INK)
    above = axes(left + strip + gap, bottom + high + gap, wide, strip)
    _draw_mel(above, second.samples)
    above.set(xlim=(0, second.seconds), yticks=[])
    above.tick_params(axis="x", labelbottom=False)
    place = "Transformer input" if layer == 0 else f"layer {layer}"
    above.set_title(f"Frame similarity, {place}", **STYLE)
    for panel in (beside, above):
        _tidy(panel)
    bar = axes(left + strip + gap + wide + 0.2, bottom, 0.16, min(high, 2.6))
    figure.colorbar(drawn, cax=bar)
    bar.set_title("cosine", fontsize=9, color=INK)
    _tidy(bar)
    box = ((left + strip + gap) / width, (top + strip + gap) / height, wide / width, high / height)
    return Picture(_webp(figure), width, box)


def _draw_mel(panel, samples: np.ndarray, upright: bool = False) -> None:
    """Log-mel with time to the right, or downwards."""
    decibels = log_mel(samples)
    loudest = decibels.max()
    start, stop = -MEL_HOP / 2 / SAMPLING_RATE, (decibels.shape[1] - 0.5) * MEL_HOP / SAMPLING_RATE
    shown = {"aspect": "auto", "vmin": loudest - 70, "vmax": loudest, "cmap": "magma"}
    if upright:
        panel.imshow(decibels.T, extent=(0, MEL_BANDS, stop, start), **shown)
        return
    panel.imshow(decibels, origin="lower", extent=(start, stop, 0, MEL_BANDS), **shown)
    kilohertz = np.array([0.5, 1, 2, 4, 8])
    bands = MEL_BANDS * np.log1p(kilohertz / 0.7) / np.log1p(8 / 0.7)  # the HTK mel scale of the bands
    panel.set(yticks=bands, yticklabels=[f"{k:g}" for k in kilohertz])


def _draw_words(panel, heard: Heard) -> None:
    """Each word at its place, on two lines in turn so that short ones do not touch; none that no font can write."""
    for number, word in enumerate(heard.words):
        panel.axvspan(word.start, word.end, color="#dbe9f3", lw=0)
        centre, height = (word.start + word.end) / 2, (0.72, 0.24)[number % 2]
        place = {"ha": "center", "va": "center", "clip_on": True}
        if families := _families(word.text):
            panel.text(centre, height, word.text, family=families, fontsize=8.5, color=INK, **place)
    panel.set(ylim=(0, 1), yticks=[])
    panel.set_title("Transcript", **STYLE)


def _families(text: str) -> list[str] | None:
    """Installed fonts that together can write a text, the usual one first; None where they cannot."""
    found = dict.fromkeys([USUAL_FONT, *map(_family, text)])
    return None if None in found else list(found)


@cache
def _family(character: str) -> str | None:
    """The usual font, or the first installed one, that has a character."""
    regular = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    for name in (USUAL_FONT, *sorted(regular)):
        font = get_font(regular[name])
        drawn = font.scalable and not name.startswith("Last Resort")  # which draws the same box for all
        if drawn and font.get_char_index(ord(character)):
            return name
    return None


def _draw_posteriors(panel, posteriors: np.ndarray) -> None:
    largest = -np.sort(-posteriors, axis=1)[:, :3]
    labels = ("largest", "second", "third")[: largest.shape[1]]
    colours = (BLUE, SKY, "#cfe8f7")[: largest.shape[1]]
    panel.stackplot(frame_centres(len(largest)), largest.T, labels=labels, colors=colours, lw=0)
    panel.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    panel.set_title("Three largest posteriors", **STYLE)
    _legend(panel)


def _draw_entropy(panel, heard: Heard) -> None:
    bits, most = heard.entropy, np.log2(heard.posteriors.shape[1])
    times = frame_centres(len(bits))
    panel.fill_between(times, bits, color=VERMILLION, alpha=0.18, lw=0)
    panel.plot(times, bits, color=VERMILLION, lw=1.3)
    panel.axhline(bits.mean(), color="0.35", ls="--", lw=0.9, label=f"mean {bits.mean():.2f}")
    panel.set(ylim=(0, max(1.08 * bits.max(), 1)))
    panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel.set_title(f"Entropy of the prediction (bits, at most {most:.1f})", **STYLE)
    _legend(panel)


def _legend(panel) -> None:
    """Above the right end of the panel, beside its title."""
    panel.legend(
        loc="lower right", bbox_to_anchor=(1, 0.97), ncols=3, frameon=False, fontsize=9, labelcolor=INK, borderpad=0.2
    )


def _tidy(panel) -> None:
    panel.tick_params(labelsize=9, colors="0.25", length=3)
    for side, spine in panel.spines.items():
        spine.set(color="0.7", visible=side in ("left", "bottom"))


def _webp(figure: Figure) -> bytes:
    file = io.BytesIO()
    dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
    figure.savefig(file, format="webp", dpi=dpi, pil_kwargs={"quality": 88, "method": 1})
    return file.getvalue()
