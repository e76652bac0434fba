"""Tables and pictures of finished grids.

    python -m training.study.report training/study/results/*.jsonl --output_dir training/study

Writes for each GRID.jsonl a table `GRID.md` and a picture `GRID.png`. A score is the mean over seeds; behind ± stands
half the width of its 95 % interval (Student's t; no interval from one seed). "errors gone" compares with the grid's
baseline seed by seed: how many per cent of its errors are gone (negative: more errors), bold where that is clear of 0.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from scipy import stats


matplotlib.use("Agg")
import matplotlib.pyplot as plt


HIGHER_IS_BETTER = {"digits": True, "phones": True, "speakers": True, "cer": False, "wer": False}
CONFIDENCE = 0.95


@dataclass
class Interval:
    """Mean of some values and half the width of its confidence interval (NaN from one value)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        count = len(values)
        if count < 2:
            return cls(values[0], math.nan)
        quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)
        return cls(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(count)))

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


def errors_gone(results: list[dict], variant: str, baseline: str, score: str) -> Interval | None:
    """
    Per cent of the baseline's errors that a variant does not make, over the seeds that both have. None where there is
    no such seed, or the baseline makes no errors.
    """
    own, other = (
        {r["seed"]: error(score, r["scores"][score]) for r in results if r["variant"] == name and score in r["scores"]}
        for name in (variant, baseline)
    )
    shared = sorted(set(own) & set(other))
    if not shared or not all(other[seed] for seed in shared):
        return None
    return Interval.of([100 * (1 - own[seed] / other[seed]) for seed in shared])


def scores_of(results: list[dict]) -> list[str]:
    """The scores that any run has, in a fixed order."""
    return [score for score in HIGHER_IS_BETTER if any(score in r["scores"] for r in results)]


def table(results: list[dict]) -> str:
    """Markdown: a row for each variant, the baseline first."""
    baseline, scores = results[0]["baseline"], scores_of(results)
    head = ["variant", "seeds"]
    for score in scores:
        head += [score, "errors gone, %"]
    head += ["target entropy, bits", "live components", "layer", "hours heard", "hours taken"]
    rows = [head, ["---"] * len(head)]
    for variant in ordered(results):
        runs = [r for r in results if r["variant"] == variant]
        row = [variant, str(len(runs))]
        for score in scores:
            values = [r["scores"][score] for r in runs if score in r["scores"]]
            gone = errors_gone(results, variant, baseline, score)
            row.append(Interval.of(values).show(3) if values else "")
            bold = "**" if gone and gone.clear and gone.mean > 0 else ""
            row.append(f"{bold}{gone.show(1, '+')}{bold}" if gone and variant != baseline else "")
        last = [r["last"] for r in runs]
        row.append(f"{np.mean([m['target_entropy_bits'] for m in last]):.2f}")
        row.append(f"{np.mean([m['live_components'] for m in last]):.0f}")
        row.append(", ".join(str(m["active_layer"]) for m in last if "active_layer" in m))
        row += [f"{np.mean([r[name] for r in runs]):.2f}" for name in ("hours_heard", "hours_taken")]
        rows.append(row)
    mfcc = {score: results[0]["scores"].get(f"mfcc_{score}") for score in scores}
    if any(mfcc.values()):
        rows.append(["MFCC", "", *(cell for s in scores for cell in (f"{mfcc[s]:.3f}" if mfcc[s] else "", ""))])
        rows[-1] += [""] * (len(head) - len(rows[-1]))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def ordered(results: list[dict]) -> list[str]:
    """The variants, the baseline first, else as they stand."""
    names = list(dict.fromkeys(r["variant"] for r in results))
    return sorted(names, key=lambda name: name != results[0]["baseline"])


def draw(results: list[dict], path: Path) -> None:
    """One panel for each score: a dot for each seed, a bar at the mean, a line at the baseline's."""
    scores, names = scores_of(results), ordered(results)[::-1]
    size = (2 + 3.2 * len(scores), 1.2 + 0.28 * len(names))
    figure, panels = plt.subplots(1, len(scores), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, score in zip(panels[0], scores):
        for height, name in enumerate(names):
            values = [r["scores"][score] for r in results if r["variant"] == name and score in r["scores"]]
            colour = "0.3" if name == results[0]["baseline"] else "C0"
            axes.plot(values, [height] * len(values), "o", ms=4, color=colour, alpha=0.6)
            if values:
                axes.plot(np.mean(values), height, "|", ms=14, mew=2, color=colour)
            if name == results[0]["baseline"] and values:
                axes.axvline(np.mean(values), color="0.7", lw=1, zorder=0)
        axes.set(title=score + ("" if HIGHER_IS_BETTER[score] else " (lower is better)"))
        axes.grid(axis="x", color="0.92")
    panels[0, 0].set_yticks(range(len(names)), names)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="GRID.jsonl files of training.study.run")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for path in arguments.results:
        results = [json.loads(line) for line in path.read_text().splitlines()]
        text = table(results)
        (arguments.output_dir / f"{path.stem}.md").write_text(text)
        draw(results, arguments.output_dir / f"{path.stem}.png")
        print(f"{path.stem}\n\n{text}")


if __name__ == "__main__":
    main()
