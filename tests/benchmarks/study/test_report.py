"""The arithmetic of the study's tables, and the tables that are published."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import report


STUDY = Path(__file__).parents[3] / "benchmarks" / "study"


def test_the_published_tables_are_those_of_the_results(tmp_path, monkeypatch):
    """By the command that the README gives; the pictures are drawn elsewhere."""
    shutil.copy(STUDY / "phase2.md", tmp_path)
    monkeypatch.setattr(report, "draw", lambda results, path: path.touch())
    results = sorted(map(str, (STUDY / "results").glob("*.jsonl")))
    report.main([*results, "--output", str(tmp_path / "phase2.md")])
    assert (tmp_path / "phase2.md").read_text() == (STUDY / "phase2.md").read_text()
    assert {path.stem for path in tmp_path.glob("*.png")} == {"long", "phase1", "targets"}


def test_a_table_goes_between_its_marks():
    text = "a\n<!-- g -->\nold\n<!-- /g -->\nb\n"
    assert report.placed(text, "g", "| new |\n") == "a\n<!-- g -->\n| new |\n<!-- /g -->\nb\n"
    assert report.placed(text, "h", "| h |\n").startswith(text) and "| h |" in report.placed(text, "h", "| h |\n")
    with pytest.raises(ValueError, match="<!-- g --> has no"):
        report.placed("<!-- g -->\n", "g", "")


def test_a_picture_says_which_way_is_better(monkeypatch):
    said = []
    monkeypatch.setattr(report, "save", lambda figure, path: said.extend(axes.get_xlabel() for axes in figure.axes))
    scores = {"digits": 0.5, "cer": 0.4, "queries": 0.1}
    report.draw([{"variant": "a", "baseline": "a", "seed": 0, "scores": scores}], Path("a.png"))
    assert said == [
        "accuracy (higher is better)", "error rate (lower is better)", "MTWV (higher is better)"
    ]  # fmt: skip


def test_errors_gone_are_paired_by_seed():
    def result(variant, seed, digits, cer):
        return {"variant": variant, "seed": seed, "scores": {"digits": digits, "cer": cer}}

    found = [result("a", 0, 0.5, 0.4), result("a", 1, 0.8, 0.4), result("b", 0, 0.55, 0.3), result("b", 1, 0.82, 0.3)]
    assert report.errors_gone(found, "b", "a", "digits") == pytest.approx([10, 10])
    assert report.errors_gone(found, "b", "a", "cer") == pytest.approx([25, 25])
    assert report.errors_gone(found[:2] + found[3:], "b", "a", "digits") == pytest.approx([10])
    assert report.errors_gone(found[:1] + found[3:], "b", "a", "digits") == []
    perfect = [result("a", 0, 1.0, 0.4), result("b", 0, 0.9, 0.3)]
    assert report.errors_gone(perfect, "b", "a", "digits") == [], "of no errors there is no share"
    assert report.spread_of_gone(perfect, "digits").freedom == 0


def test_the_spread_of_differences_is_that_of_the_noise():
    """Seeds and variants may differ as they like; a difference of two has twice the variance of the noise."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        seeds, variants = rng.normal(0, 5, 3), rng.normal(0, 5, 4)
        cells = [(v, s) for v in range(4) for s in range(3) if (v, s) != (3, 2)]
        runs = [(str(v), s, variants[v] + seeds[s] + rng.normal(0, 0.1)) for v, s in cells]
        found.append(report.Spread.of_differences(runs))
    assert {spread.freedom for spread in found} == {11 - (4 + 3 - 1)}
    assert np.mean([spread.deviation**2 for spread in found]) == pytest.approx(2 * 0.1**2, rel=0.15)
    assert report.Spread.of_differences([("a", 0, 1.0), ("b", 0, 2.0)]).freedom == 0


def test_intervals_take_their_spread_from_all_variants():
    spread = report.Spread.pooled([[1.0, 2.0, 3.0], [7.0, 9.0], [5.0], []])
    assert spread == (pytest.approx(((2 + 2) / 3) ** 0.5), 3)
    # t(0.975, 3 degrees of freedom) = 3.1824
    one = report.Interval.of([5.0], spread)
    assert one.half_width == pytest.approx(3.1824 * spread.deviation, rel=1e-4) and one.clear
    assert report.Interval.of([7.0, 9.0], spread).half_width == pytest.approx(one.half_width / 2**0.5)
    unknown = report.Interval.of([5.0], report.Spread.pooled([[5.0], [6.0]]))
    assert unknown.show(1) == "5.0" and not unknown.clear, "nothing is known from one seed each"
