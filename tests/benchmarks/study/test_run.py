"""A small grid on noise from end to end."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from pretraining_runs import RECIPE, in_one_thread, write_noise

from benchmarks.study import report, run
from benchmarks.study.grid import Grid


ROOT = Path(__file__).parents[3]
YARDSTICK = """
import argparse, json
from safetensors.numpy import load_file
p = argparse.ArgumentParser(); p.add_argument("checkpoint"); p.add_argument("--speech"); p.add_argument("--json")
a = p.parse_args()
weight = float(sum(abs(w).mean() for w in load_file(f"{a.checkpoint}/model.safetensors").values()))
flat = {"digits": [0.5, 0.6], "phones": [0.2]}
json.dump({"mfcc": flat, a.checkpoint: {"digits": [0.1, weight % 1], "phones": [0.3]}}, open(a.json, "w"))
"""


class HereAndNow:
    """In place of the pool of threads: signals of a run in this process come to its main thread."""

    def __init__(self, jobs: int):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def train_here(command, log, environment):
    """In place of `run_logged`, for pretraining alone; its settings come last."""
    assert command[1].endswith("training/pretrain.py") and environment["OMP_NUM_THREADS"]
    in_one_thread(command[2:])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished grid and its command; the runs were made in this process."""
    here = tmp_path_factory.mktemp("study")
    (here / "noise").mkdir()
    write_noise(here / "noise", count=12, shortest=0.5)
    (here / "recipe.yaml").write_text(RECIPE.format(front_end="log_mel"))
    (here / "probe.py").write_text(YARDSTICK)
    grid = {
        "recipe": str(here / "recipe.yaml"),
        "baseline": "control",
        "seeds": [0, 1],
        "shared": {"phase1_steps": 4, "phase2_steps": 4, "phase1_schedule": "constant", "save_steps": 2},
        "trunk": {"phase2_steps": 0},
        "variants": {
            "control": {"phase1_steps": 8, "phase2_steps": 0, "phase1_schedule": "linear", "phase1_decay_steps": 4},
            "online": {"frozen_weight": 0.5, "target_layers": [1, 3], "target_instance_norm": True, "target_dims": 8},
            "early": {"phase1_steps": 2, "phase2_steps": 6, "from_step": 2, "start_layer": 1, "adaptive_layer": False},
            "afresh": {"from_step": 0},
        },
    }
    (here / "tiny.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [str(here / "tiny.yaml"), "--train_data", str(here / "noise"), "--speech", str(here)]
    command += ["--quick_probe", str(here / "probe.py"), "--output_dir", str(here / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with patch.context() as here_and_now:
            here_and_now.setattr(run, "run_logged", train_here)
            here_and_now.setattr(run, "ThreadPoolExecutor", HereAndNow)
            run.main([*command, "--seeds", "0"])
        yield here, command


def results(here):
    return [json.loads(line) for line in (here / "out" / "tiny" / "tiny.jsonl").read_text().splitlines()]


def test_every_variant_hears_as_much_from_its_own_part_of_the_trunk(study):
    found = {r["variant"]: r for r in results(study[0])}
    assert list(found) == ["control", "online", "early", "afresh"]
    assert {name: (r["steps"], r["from_step"]) for name, r in found.items()} == {
        "control": (8, 4), "online": (8, 4), "early": (8, 2), "afresh": (8, 0)
    }  # fmt: skip
    assert len({round(r["hours_heard"], 6) for r in found.values()}) == 1, "the same batches"
    assert len({r["scores"]["digits"] for r in found.values()}) == 4, "but other weights"
    assert found["early"]["last"]["active_layer"] == 1, "its own first layer, not that of the trunk"
    online = found["online"]
    assert online["settings"]["target_layers"] == [1, 3] and online["settings"]["seed"] == 0
    assert online["last"]["frozen_kl"] > 0 and online["last"]["phase"] == 2
    assert all(r["commit"] and r["hours_taken"] > 0 and r["scores"]["mfcc_digits"] == 0.6 for r in found.values())


def test_what_is_done_is_not_done_again_and_more_seeds_join(study, monkeypatch):
    here, command = study
    monkeypatch.setattr(run, "run_logged", train_here)
    monkeypatch.setattr(run, "ThreadPoolExecutor", HereAndNow)
    before = {path: path.stat().st_mtime_ns for path in here.glob("out/tiny/*-s0/run/final/model.safetensors")}
    assert len(before) == 5, "four variants and the trunk"
    run.main([*command, "--seeds", "0"])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    run.main([*command, "--seeds", "1", "--variants", "control"])
    assert [(r["variant"], r["seed"]) for r in results(here)][:2] == [("control", 0), ("control", 1)]
    command = [str(here / "out" / "tiny" / "tiny.jsonl"), "--output", str(here / "report" / "README.md")]
    report.main(command)
    text = (here / "report" / "README.md").read_text()
    assert "\n| control | 2 | 0." in text and "| MFCC |  | 0.600 |" in text
    report.main(command)
    assert text == (here / "report" / "README.md").read_text(), "the table takes its own place again"
    assert (here / "report" / "tiny.png").is_file()


def test_a_failing_run_is_reported_and_the_others_go_on(study, tmp_path, caplog):
    """In processes of their own; what is trained already is only scored."""
    here, command = study
    unscored = shutil.ignore_patterns("result.json", "quick_probe*")
    for name in ("trunk-s0", "control-s0"):
        shutil.copytree(here / "out" / "tiny" / name, tmp_path / "out" / "bad" / name, ignore=unscored)
    grid = yaml.safe_load((here / "tiny.yaml").read_text())
    grid["variants"] = {"bad": {"target_dims": 1000}, "control": grid["variants"]["control"]}
    grid["seeds"] = [0]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [str(tmp_path / "bad.yaml"), *command[1:-1], str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="1 of 2 runs failed: bad-s0"):
        run.main(command)
    assert [json.loads(r)["variant"] for r in (tmp_path / "out" / "bad" / "bad.jsonl").read_text().splitlines()] == [
        "control"
    ]
    grid["variants"] = {"control": grid["variants"]["control"] | {"phase2_steps": 1}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    with pytest.raises(SystemExit, match="1 of 1 runs failed: control-s0"):
        run.main(command)
    assert "control-s0 was run with `phase2_steps` 0, the grid now says 1" in caplog.text


def test_unequal_audio_is_reported_within_a_seed(tmp_path, caplog):
    grid = Grid("g", "r", "a", [0, 1], {"a": {}, "b": {}})
    for name, hours in {"a-s0": 1.0, "b-s0": 1.005, "a-s1": 1.1, "b-s1": 1.1}.items():
        (tmp_path / name).mkdir()
        result = {"variant": name[0], "seed": int(name[-1]), "hours_heard": hours}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    study = run.Study(grid, tmp_path, [], [], None)
    assert len(study.collect()) == 4 and not caplog.records, "other seeds draw other clips"
    (tmp_path / "b-s1" / "result.json").write_text(json.dumps({"variant": "b", "seed": 1, "hours_heard": 1.2}))
    study.collect()
    assert caplog.messages == ["The audio heard with seed 1 is not equal: a 1.10 hours, b 1.20 hours."]


def test_runs_get_this_code_what_the_path_held_and_a_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    found = run.environment(jobs=3)
    assert found["PYTHONPATH"] == f"{ROOT}{os.pathsep}/elsewhere"
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"]) == ("2", "7"), "what is set stays"
