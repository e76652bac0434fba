"""The run that tests of stopping and resuming start again and again."""

import pytest
from pretraining_runs import RECIPE, write_noise


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise"), count=40, shortest=0.3)


@pytest.fixture
def command(noise, tmp_path):
    """Arguments of a run in the folder `out`: small, two phases of 12 steps, a checkpoint every fourth."""

    def arguments(*options, out="out"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(front_end="log_mel"))
        fixed = ["--config", str(recipe), "--train_data", str(noise), "--output_dir", str(tmp_path / out)]
        fixed += ["--report_to", "none", "--phase1_steps", "12", "--phase2_steps", "12", "--num_workers", "2"]
        return [*fixed, "--save_total_limit", "20", *options]

    return arguments
