"""The runs of the benchmarks that resume and split: their settings are what pretraining takes."""

import pytest
import yaml

from benchmarks import kill_and_resume, splits
from training.pretraining.arguments import parse_arguments


@pytest.mark.parametrize(
    ("settings", "kept"), [(kill_and_resume.SETTINGS, 3), (kill_and_resume.WHOLE, 0), (splits.STILL, 0)]
)
def test_pretraining_takes_the_settings(settings, kept, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    taken = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), "--train_data", "a", "--output_dir", "b"])
    assert (taken.run.phase1_steps, taken.run.save_total_limit) == (kill_and_resume.STEPS, kept)
    assert taken.sjepa_config().hidden_size == 64
