"""Grids: what a file may say, and what each variant gets from it."""

import json
from pathlib import Path

import pytest

from benchmarks.study.grid import Grid, as_flags, read_grid
from training.pretraining.arguments import parse_arguments


ROOT = Path(__file__).parents[3]
STUDY = ROOT / "benchmarks" / "study"
GRIDS = sorted(path.stem for path in (STUDY / "grids").glob("*.yaml"))


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


def resolved(grid: Grid, variant: str, seed: int = 0) -> dict:
    """All settings of a run of a variant, as its record has them."""
    flags = as_flags({**grid.settings(variant), "seed": seed})
    arguments = parse_arguments(["--config", str(ROOT / grid.recipe), "--train_data", "x", *flags])
    return arguments.to_dict() | {"model_config": arguments.chosen_model()}


@pytest.mark.parametrize("name", GRIDS)
def test_no_two_variants_of_a_grid_are_the_same_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = read_grid(STUDY / "grids" / f"{name}.yaml")
    seen = {}
    for variant in grid.variants:
        settings, start = resolved(grid, variant), grid.from_step(variant)
        assert start <= settings["phase1_steps"]
        run = json.dumps([settings, start], sort_keys=True)
        assert run not in seen, f"{variant} and {seen[run]}"
        seen[run] = variant


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_still_gives_its_variants_the_settings_that_they_were_run_with(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = read_grid(STUDY / "grids" / f"{name}.yaml")
    for line in (STUDY / "results" / f"{name}.jsonl").read_text().splitlines():
        run = json.loads(line)
        recorded = run["settings"] | {"model_config": json.loads(run["settings"]["model_config"])}
        if recorded.pop("frozen_weight_end") != recorded["frozen_weight"]:  # a setting that is no more
            assert run["variant"] == "mfcc_fading" and run["variant"] not in grid.variants
            continue
        now = resolved(grid, run["variant"], run["seed"])
        assert recorded == {field: now[field] for field in recorded}, run["variant"]
        assert grid.from_step(run["variant"]) == run["from_step"] and grid.baseline == run["baseline"]
        for field in ("mel_mask", "target_transitions"):  # of later: as if it were not there
            assert field not in recorded and not now[field]
