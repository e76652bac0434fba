"""Shortening: a phase that the command line makes shorter."""

from pathlib import Path

import pytest

from training.pretraining.arguments import parse_arguments


RECIPES = [
    Path(__file__).parents[3] / "training" / "recipes" / f"{name}.yaml" for name in ("demo", "tiny", "small", "base")
]


@pytest.mark.parametrize(
    ("options", "warmup", "decay"),
    [
        (["--phase1_steps", "60"], 2, 12),  # 40 and 200 of 1,000 steps
        (["--phase1_steps=239"], 9, 47),
        (["--phase1-steps", "239"], 9, 47),
        (["--phase1-steps=500", "--phase1-decay-steps=300"], 20, 300),
        (["--phase1_steps", "240"], 9, 48),
        (["--phase1_steps", "999"], 39, 199),
        (["--phase1_steps", "1000"], 40, 200),
        (["--phase1_steps", "2000"], 40, 200),
        (["--phase1_steps", "500", "--phase1_decay_steps", "300"], 20, 300),
        (["--phase1_steps", "500", "--phase1_warmup_steps", "40"], 40, 100),
        (["--phase1_decay_steps", "300"], 40, 300),
    ],
)
def test_a_phase_that_is_cut_short_takes_its_warm_up_and_decay_with_it(tmp_path, caplog, options, warmup, decay):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("phase1_steps: 1000\nphase1_warmup_steps: 40\nphase1_decay_steps: 200\n")
    run = parse_arguments(["--config", str(recipe), "--train_data", "speech", *options]).run
    assert (run.phase1_warmup_steps, run.phase1_decay_steps) == (warmup, decay)
    assert ("`phase1_warmup_steps` is" in caplog.text) == (warmup != 40), "and says so"


def test_a_warm_up_that_was_asked_for_is_never_replaced(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("phase1_steps: 1000\nphase1_warmup_steps: 40\n")
    command = ["--config", str(recipe), "--train_data", "speech", "--phase1_steps", "60"]
    with pytest.raises(ValueError, match="exceeds `phase1_steps` .60.: give a shorter .*--phase1_warmup_steps 6"):
        parse_arguments([*command, "--phase1_warmup_steps", "100"])
    recipe.write_text("phase1_steps: 30\nphase1_warmup_steps: 40\n")
    with pytest.raises(ValueError, match="exceeds `phase1_steps` .30."):
        parse_arguments(command[:4])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_tried_in_sixty_steps(recipe):
    command = ["--config", str(recipe), "--train_data", "speech", "--phase1_steps", "60", "--phase2_steps", "60"]
    run = parse_arguments(command).run
    assert run.phase1_warmup_steps < 60 and run.phase2_warmup_steps < 60
