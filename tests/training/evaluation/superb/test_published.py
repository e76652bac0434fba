"""Published figures: the same as in the documentation, where they stand in percent."""

from pathlib import Path

import pytest

from training.evaluation.superb.published import COLUMNS, FIGURES


def test_figures_are_those_of_the_page():
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = page.partition("| published, in percent |")[2].partition("\n\n")[0].splitlines()[2:]
    names, *columns = zip(*([cell.strip() for cell in row.strip("|").split("|")] for row in rows))
    assert names == tuple(FIGURES) and len(columns) == len(COLUMNS)
    for number, column in enumerate(columns):
        assert [100 * own[number] for own in FIGURES.values()] == pytest.approx([float(cell) for cell in column])
