"""The launch files are what Accelerate and the shell can read."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "training" / "launch"


@pytest.mark.parametrize(("name", "processes"), [("eight_gpus", 8), ("nodes", None)])
def test_settings_are_accelerate_s(name, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.mixed_precision == "bf16" and (processes is None or config.num_processes == processes)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", [LAUNCH / "slurm.sh", ROOT / "benchmarks" / "two_machines.sh"], ids=str)
def test_scripts_are_whole(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("job", "requeued"), [("touch $OUTPUT_DIR/interrupted", True), ("exit 1", False)])
def test_only_a_job_that_a_signal_has_ended_is_queued_again(tmp_path, job, requeued):
    """A later start that cannot even read its settings finds the word of an earlier stop, and must not go on it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "interrupted").write_text("SIGTERM came\n")
    for name, does in (("srun", f'echo "$@" $TORCH_ELASTIC_SHUTDOWN_TIMEOUT; {job}'), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"OUTPUT_DIR": str(tmp_path / "out"), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COMMAND": "training/finetune_ctc.py"}
    script = [shutil.which("bash"), LAUNCH / "slurm.sh", "--train_data", "my clips"]
    said = subprocess.run(script, env=os.environ | variables, capture_output=True, text=True).stdout
    assert r"training/finetune_ctc.py --train_data my\ clips  --output_dir" in said and " 110\n" in said
    assert ("requeue 7" in said) == requeued
