"""The launch files are what Accelerate and the shell can read."""

import shutil
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


LAUNCH = Path(__file__).parents[2] / "training" / "launch"


@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("eight_gpus", 8), ("nodes", None)])
def test_settings_are_accelerate_s(name, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.mixed_precision == "bf16" and (processes is None or config.num_processes == processes)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", ["slurm", "two_machines"])
def test_scripts_are_whole(name):
    subprocess.run(["bash", "-n", LAUNCH / f"{name}.sh"], check=True)
