"""Checkpoint layout: damage is found before anything is read."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path, PureWindowsPath

import pytest

from benchmarks.fuzz_checkpoints import agree
from training import pretrain
from training.pretraining.checkpoint_layout import LoopState, damage, fingerprints, load_loop_state
from training.pretraining.resuming import find_checkpoint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "has `version` 1, not 2"),
        ({"new": 0}, "holds `new`"),
    ],
)
def test_a_run_of_another_version_is_not_resumed(tmp_path, change, said):
    path = tmp_path / "training_state" / "loop.json"
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(LoopState()) | change))
    with pytest.raises(ValueError, match=f"{said}: it was written by another version, with which to go on"):
        load_loop_state(tmp_path)


def test_the_optimizer_goes_on_with_the_settings_of_this_start(finished, tmp_path):
    out, fixed, _ = finished
    changed = ["--weight_decay", "0.5", "--adam_beta1", "0.8", "--adam_beta2", "0.95"]
    at = ["--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", str(out / "checkpoint-6")]
    run = pretrain.prepare(pretrain.parse_arguments([*fixed, *at, *changed]))
    run.lock.release()
    (group,) = run.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.95))
    assert all("exp_avg" in run.optimizer.state[parameter] for parameter in group["params"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("files.json", b"\xff", "files.json is torn"),
        ("files.json", b"[" * 100_000, "files.json is torn"),
        ("files.json", b"[1]", "files.json is torn"),
        ("files.json", b'{"config.json": 3}', "files.json is torn"),
        ("files.json", b'{"../../etc/passwd": [1, "a"]}', "which lies elsewhere"),
        ("files.json", b'{"/etc/passwd": [1, "a"]}', "which lies elsewhere"),
        ("files.json", b"{}", "does not name config.json"),
        ("loop.json", b'{"step": 9, "version": 2}', "`accumulation`"),
        ("loop.json", b"null", "holds NoneType where a JSON object should be"),
        ("loop.json", b'{"step', "is no JSON"),
        ("arguments.json", b"{}", "KeyError"),
        ("arguments.json", b"{" * 100_000, "is no JSON"),
        ("optimizer.pt", b"PK", "The optimizer of .* cannot be restored"),
        ("random_states.safetensors", b"0" * 64, "The random state of .* cannot be restored"),
        ("teacher.safetensors", b"0" * 64, "The teacher of .* cannot be restored"),
    ],
)
def test_damage_is_found_before_anything_is_read(resume, tmp_path, name, content, said, caplog):
    """Nothing of a damaged checkpoint is trusted, and what only looks whole ends with a sentence too."""
    damaged = tmp_path / "out" / "checkpoint-9"
    (damaged / "training_state" / name).write_bytes(content)
    assert damage(damaged) is not None and (name != "files.json" or re.search(said, damage(damaged)))
    shutil.rmtree(tmp_path / "out" / "final")
    assert find_checkpoint(tmp_path / "out", "auto").name == "checkpoint-6"
    assert "checkpoint-9 is damaged and passed over" in caplog.text
    with pytest.raises(ValueError, match="checkpoint-9 is damaged: .*Take an earlier one"):
        find_checkpoint(tmp_path / "out", str(damaged))
    if name != "files.json":
        agree(damaged)
        assert damage(damaged) is None
        assert re.search(f"error: .*{said}", str(resume(at="checkpoint-9")))


def test_files_go_by_the_same_names_on_every_system(tmp_path, monkeypatch):
    (tmp_path / "training_state").mkdir()
    (tmp_path / "training_state" / "loop.json").write_text("{}")
    relative_to = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda *paths: PureWindowsPath(relative_to(*paths)))
    assert list(fingerprints(tmp_path)) == ["training_state/loop.json"]
