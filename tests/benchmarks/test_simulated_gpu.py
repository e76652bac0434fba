"""benchmarks/simulated_gpu.py and what it is made of, benchmarks/gpu: commands as a GPU has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import building


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """The folder of tests/helpers/on_a_gpu.py, which has run: in a process of its own."""
    if reason := building.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("gpu")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.simulated_gpu", "on_a_gpu", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (folder / "said.txt").write_text(done.stderr)
    return folder


def test_commands_run_on_it(ran):
    assert "on 1 x simulated GPU" in (ran / "said.txt").read_text()
    assert (ran / "run" / "final" / "model.safetensors").is_file() and (ran / "recogniser" / "final").is_dir()
    assert list((ran / "units").glob("*.parquet")) and (ran / "superb" / "ks.json").is_file()


def test_a_step_of_pretraining_waits_for_it_nowhere(ran):
    places = json.loads((ran / "waits.json").read_text())
    within = [place for place in places if any(line.endswith(" train") for line in place)]
    between = (" after_step", " fit")  # now and then
    assert within and [place for place in within if not any(line.endswith(between) for line in place)] == []


def test_it_says_why_not(monkeypatch):
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"there is no g\+\+: install"):
        building.build()
