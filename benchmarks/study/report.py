"""Tables and pictures of finished grids.

    python -m benchmarks.study.report benchmarks/study/results/*.jsonl --output benchmarks/study/phase2.md

The table of each GRID.jsonl goes between `<!-- GRID -->` and `<!-- /GRID -->` of that file (to its end where it has no
such marks), a picture GRID.png beside it. A score is the mean over seeds; behind ± stands half the width of its 95 %
interval. In brackets, how many per cent of the baseline's errors are gone, compared seed by seed (negative: more
errors), bold where that is clear of 0. The deviation between seeds is taken to be the same for all variants of a grid
and estimated from them together (Student's t with its degrees of freedom), so that a single seed has an interval too;
for the comparisons from what is left of the logarithms of all errors once variant and seed are taken off. Intervals
are of one comparison each: among twenty variants that make no difference one will stand clear of 0. Target bits are
the mean entropy of the targets at the end, clusters used the perplexity of the mixture's weights.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from sjepa_hf.command import CommandParser, command
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import markdown_table
from training.common.figures import caption, save


HIGHER_IS_BETTER = {
    "digits": True,
    "phones": True,
    "speakers": True,
    "cer": False,
    "wer": False,
    "phones_many": False,
    "keywords": True,
    "languages": True,
    "verification": False,
    "diarization": False,
    "queries": True,
}
TITLES = {name: name.upper() if name in ("cer", "wer") else name.replace("_", ", ") for name in HIGHER_IS_BETTER}
MEASURES = {name: "accuracy" if higher else "error rate" for name, higher in HIGHER_IS_BETTER.items()}
MEASURES["queries"] = "MTWV"
CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Standard deviation between seeds, and the degrees of freedom that it was estimated with (0: not at all)."""

    deviation: float
    freedom: int

    @classmethod
    def pooled(cls, groups: Iterable[list[float]]) -> "Spread":
        """From the values of several variants, each about its own mean."""
        groups = [np.asarray(group) for group in groups]
        freedom = sum(len(group) - 1 for group in groups if len(group))
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group))
        return cls(math.sqrt(squares / freedom) if freedom else math.nan, freedom)

    @classmethod
    def of_differences(cls, runs: list[tuple[str, int, float]]) -> "Spread":
        """
        Of the difference between two variants at one seed, from `(variant, seed, value)` of all runs: each value is
        the sum of its variant's part, its seed's part and noise.
        """
        variants, seeds = (sorted({run[part] for run in runs}) for part in (0, 1))
        design = np.zeros((len(runs), len(variants) + len(seeds)))
        for row, (variant, seed, _) in enumerate(runs):
            design[row, [variants.index(variant), len(variants) + seeds.index(seed)]] = 1
        values = np.array([value for _, _, value in runs])
        parts, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
        freedom, left = len(runs) - int(rank), values - design @ parts
        return cls(math.sqrt(2 * float(left @ left) / freedom) if freedom else math.nan, freedom)


@dataclass
class Interval:
    """Mean of some values and half the width of its confidence interval (NaN where the spread is unknown)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: list[float], spread: Spread) -> "Interval":
        quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, spread.freedom) if spread.freedom else math.nan
        return cls(float(np.mean(values)), float(quantile * spread.deviation / math.sqrt(len(values))))

    def show(self, digits: int, sign: str = "") -> str:
        shown = f"{self.mean:{sign}.{digits}f}"
        return shown if math.isnan(self.half_width) else f"{shown} ± {self.half_width:.{digits}f}"

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return abs(self.mean) > self.half_width


def error(score: str, value: float) -> float:
    """Error that belongs to a score: 1 - accuracy, or the error rate itself."""
    return 1 - value if HIGHER_IS_BETTER[score] else value


def errors_gone(results: list[dict], variant: str, baseline: str, score: str) -> list[float]:
    """
    Per cent of the baseline's errors that a variant does not make, one value for each seed that both have. Seeds in
    which the baseline makes no errors are left out.
    """
    own, other = (
        {r["seed"]: error(score, r["scores"][score]) for r in results if r["variant"] == name and score in r["scores"]}
        for name in (variant, baseline)
    )
    return [100 * (1 - own[seed] / other[seed]) for seed in sorted(set(own) & set(other)) if other[seed]]


def spread_of_gone(results: list[dict], score: str) -> Spread:
    """Of the per cent of errors gone at one seed; of a small difference of logarithms, that is a hundred times."""
    errors = [(r["variant"], r["seed"], error(score, r["scores"][score])) for r in results if score in r["scores"]]
    spread = Spread.of_differences([(variant, seed, math.log(value)) for variant, seed, value in errors if value > 0])
    return Spread(100 * spread.deviation, spread.freedom)


def values_of(results: list[dict], variant: str, score: str) -> list[float]:
    """A score of a variant's runs."""
    return [r["scores"][score] for r in results if r["variant"] == variant and score in r["scores"]]


def scores_of(results: list[dict]) -> list[str]:
    """The scores that any run has, in a fixed order."""
    return [score for score in HIGHER_IS_BETTER if any(score in r["scores"] for r in results)]


def table(results: list[dict]) -> str:
    """Markdown: a row for each variant, the baseline first."""
    baseline, scores = results[0]["baseline"], scores_of(results)
    head = ["variant", "seeds", *scores, "target bits", "clusters used", "layer", "hours heard", "minutes taken"]
    rows, names = [], ordered(results)
    values = {score: {name: values_of(results, name, score) for name in names} for score in scores}
    gone = {score: {n: errors_gone(results, n, baseline, score) for n in names if n != baseline} for score in scores}
    spread = {score: Spread.pooled(values[score].values()) for score in scores}
    spread_gone = {score: spread_of_gone(results, score) for score in scores}
    for variant in names:
        runs = [r for r in results if r["variant"] == variant]
        row = [variant, str(len(runs))]
        for score in scores:
            own, compared = values[score][variant], gone[score].get(variant)
            cell = Interval.of(own, spread[score]).show(3) if own else ""
            if compared:
                interval = Interval.of(compared, spread_gone[score])
                bold = "**" if interval.clear else ""
                cell += f" ({bold}{interval.show(0, '+')} %{bold})"
            row.append(cell)
        last = [r["last"] for r in runs]
        row.append(f"{np.mean([m['target_entropy_bits'] for m in last]):.2f}")
        row.append(f"{np.mean([m['mixture_perplexity'] for m in last]):.0f}")
        row.append(", ".join(str(m["active_layer"]) for m in last if "active_layer" in m))
        row.append(f"{np.mean([r['hours_heard'] for r in runs]):.1f}")
        row.append(f"{60 * np.mean([r['hours_taken'] for r in runs]):.1f}")
        rows.append(row)
    mfcc = {
        score: next((r["scores"][f"mfcc_{score}"] for r in results if f"mfcc_{score}" in r["scores"]), None)
        for score in scores
    }
    if any(mfcc.values()):
        cells = ["MFCC", "", *("" if mfcc[score] is None else f"{mfcc[score]:.3f}" for score in scores)]
        rows.append(cells + [""] * (len(head) - len(cells)))
    return markdown_table(head, rows) + "\n"


def ordered(results: list[dict]) -> list[str]:
    """The variants, the baseline first, else as they stand."""
    names = list(dict.fromkeys(r["variant"] for r in results))
    return sorted(names, key=lambda name: name != results[0]["baseline"])


def draw(results: list[dict], path: Path) -> None:
    """One panel for each score, three in a row: a dot for each seed, a bar at the mean, a line at the baseline's."""
    scores, names = scores_of(results), ordered(results)[::-1]
    columns = min(len(scores), 3)
    rows = math.ceil(len(scores) / columns)
    size = (2 + 3.2 * columns, 0.8 + rows * (1.2 + 0.28 * len(names)))
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, score in zip(panels.flat, scores):
        for height, name in enumerate(names):
            values = values_of(results, name, score)
            colour = "0.3" if name == results[0]["baseline"] else "C0"
            axes.plot(values, [height] * len(values), "o", ms=4, color=colour, alpha=0.6)
            if values:
                axes.plot(np.mean(values), height, "|", ms=14, mew=2, color=colour)
            if name == results[0]["baseline"] and values:
                axes.axvline(np.mean(values), color="0.7", lw=1, zorder=0)
        better = "higher" if HIGHER_IS_BETTER[score] else "lower"
        axes.set(title=TITLES[score], xlabel=f"{MEASURES[score]} ({better} is better)", ylim=(-0.6, len(names) - 0.4))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(axis="x", color="0.92")
    for axes in panels.flat[len(scores) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(names)), [caption(name, 32) for name in names])
        axes.set_ylabel("variant")
    marks = [
        Line2D([], [], color="C0", marker="o", ls="", ms=4, alpha=0.6, label="one seed"),
        Line2D([], [], color="C0", marker="|", ls="", ms=12, mew=2, label="mean over the seeds"),
        Line2D([], [], color="0.7", lw=1, label=f"mean of {caption(results[0]['baseline'], 32)}"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def placed(text: str, grid: str, table: str) -> str:
    """The text with the grid's table between its marks; both at the end where they are missing."""
    begin, end = f"<!-- {grid} -->\n", f"<!-- /{grid} -->\n"
    before, mark, rest = text.partition(begin)
    if not mark:
        return f"{text}\n## {grid}\n\n{begin}{table}{end}\n![{grid}]({grid}.png)\n"
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"The mark {begin.strip()} has no {end.strip()} behind it.")
    return before + begin + table + end + after


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="GRID.jsonl files of benchmarks.study.run")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file, new or with marks")
    arguments = parser.parse_args(argv)
    text = arguments.output.read_text() if arguments.output.is_file() else "# Results\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    tables = {}
    for path in arguments.results:
        results = [json.loads(line) for line in path.read_text().splitlines()]
        if not results:
            raise ValueError(f"{path} holds no results.")
        tables[path.stem] = table(results)
        text = placed(text, path.stem, tables[path.stem])
        draw(results, arguments.output.with_name(f"{path.stem}.png"))
    write_text_aside(arguments.output, text)
    for name, made in tables.items():
        print(f"{name}\n\n{made}")


if __name__ == "__main__":
    main()
