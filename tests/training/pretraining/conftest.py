"""The run that tests of stopping and resuming start again and again."""

import json
import shutil

import pytest
from pretraining_runs import (
    RECIPE,
    in_one_thread,
    write_noise,
)


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise"), count=40, shortest=0.3)


@pytest.fixture
def command(noise, tmp_path):
    """Arguments of a run in the folder `out`: small, two phases of 12 steps, a checkpoint every fourth."""

    def arguments(*options, out="out"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(front_end="log_mel") + f"\ntrain_data: {noise}\n")
        fixed = ["--config", str(recipe), "--output_dir", str(tmp_path / out)]
        fixed += ["--report_to", "none", "--phase1_steps", "12", "--phase2_steps", "12", "--num_workers", "2"]
        return [*fixed, "--save_total_limit", "20", *options]

    return arguments


@pytest.fixture(scope="session")
def finished(noise, tmp_path_factory):
    """A finished run of two short phases, to be copied; and the command that made it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE.format(front_end="log_mel"))
    manifest = folder / "list.jsonl"
    manifest.write_text("".join(json.dumps({"wav_path": str(path)}) + "\n" for path in sorted(noise.glob("*.wav"))))
    fixed = ["--config", str(folder / "recipe.yaml"), "--train_data", str(manifest), "--report_to", "none"]
    fixed += ["--phase1_steps", "4", "--phase2_steps", "6", "--save_total_limit", "0", "--save_steps", "3"]
    in_one_thread([*fixed, "--output_dir", str(folder / "out")])
    return folder / "out", fixed, manifest


@pytest.fixture
def resume(finished, tmp_path):
    """Go on in a copy of that run; the answer is what the command ended with."""
    out, fixed, _ = finished
    shutil.copytree(out, tmp_path / "out")

    def again(*options, at="auto"):
        at = at if at == "auto" else str(tmp_path / "out" / at)
        try:
            in_one_thread([*fixed, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", at, *options])
        except SystemExit as ended:
            return ended.code

    return again
