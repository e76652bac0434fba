"""Grids: what a file may say, and what each variant gets from it."""

from pathlib import Path

import pytest

from benchmarks.study.grid import Grid, as_flags, read_grid
from training.pretraining.arguments import parse_arguments


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("change, said", [
    ({"baseline": "nothing"}, "baseline"),
    ({"stages": ["taste"]}, "stages"),
    ({"variants": {"a": {"from_step": 3}}}, "trunk"),
])  # fmt: skip
def test_a_grid_that_cannot_be_run_is_refused(change, said):
    grid = {"name": "x", "recipe": "r", "baseline": "a", "seeds": [0], "variants": {"a": {}}}
    with pytest.raises(ValueError, match=said):
        Grid(**{**grid, **change})


def test_variants_go_on_from_the_end_of_the_trunk_wherever_its_length_stands(tmp_path):
    (tmp_path / "recipe.yaml").write_text("phase1_steps: 7\nphase2_steps: 5\n")
    grid = dict(name="x", recipe=str(tmp_path / "recipe.yaml"), baseline="a", seeds=[0], trunk={"phase2_steps": 0})
    assert Grid(**grid, variants={"a": {}}).from_step("a") == 7
    assert Grid(**grid, variants={"a": {"from_step": 3}}).from_step("a") == 3
    assert Grid(**grid | {"trunk": {}}, variants={"a": {}}).from_step("a") == 0


def test_the_grids_of_the_project_can_be_read():
    for path in (ROOT / "benchmarks" / "study" / "grids").glob("*.yaml"):
        grid = read_grid(path)
        for variant in grid.variants:
            flags = as_flags(grid.settings(variant))
            arguments = parse_arguments(["--config", str(ROOT / grid.recipe), "--train_data", "x", *flags])
            assert grid.from_step(variant) <= arguments.run.phase1_steps
