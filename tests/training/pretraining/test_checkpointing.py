"""Checkpoints of a run: a disk that is full, a fit that took long."""

import errno
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from pretraining_runs import assert_equal_weights, in_one_thread

from sjepa_hf.opening import open_sjepa_config, open_with_ema
from training import pretrain
from training.common.output_directory import checkpoints
from training.pretraining import checkpoint_layout, checkpointing, phases
from training.pretraining.checkpoint_layout import damage


def fill_the_disk(monkeypatch, steps) -> None:
    save, write, written = checkpoint_layout.save_file, checkpoint_layout.written_aside, []

    def noted(directory):
        written.append(directory.name)
        return write(directory)

    def failing(tensors, path):
        if written[-1] in [f"checkpoint-{step}" for step in steps]:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint_layout, "written_aside", noted)
    monkeypatch.setattr(checkpoint_layout, "save_file", failing)


def test_a_full_disk_costs_one_checkpoint(command, tmp_path, monkeypatch, caplog):
    fill_the_disk(monkeypatch, [4])
    in_one_thread(command("--num_workers", "0", "--phase2_steps", "0"))
    said = (
        r"checkpoint-4 could not be written \(1 in a row, \d+ MiB free there\): \[Errno 28\] No space left on device"
    )
    assert re.search(said, caplog.text)
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-8", "checkpoint-12"]
    assert [path.name for path in (tmp_path / "out").glob(".incomplete*")] == []
    assert damage(tmp_path / "out" / "checkpoint-8") is None


def test_a_tracker_that_cannot_write_costs_no_step(command, tmp_path, monkeypatch, caplog):
    asked = []

    def failing(self, values, step=None, log_kwargs=None):
        asked.append(step)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "log", failing)
    in_one_thread(command("--num_workers", "0", "--phase2_steps", "0"))
    assert "`report_to` gets nothing from step 1 on: [Errno 28] No space left on device" in caplog.text
    assert (tmp_path / "out" / "final" / "training.json").is_file() and len(asked) > 1


def test_a_disk_that_stays_full_ends_the_run(command, tmp_path, monkeypatch, caplog):
    fill_the_disk(monkeypatch, [4, 8, 12, 16])
    with pytest.raises(SystemExit, match="error: stopped at step .*3 checkpoints in a row could not be written"):
        in_one_thread(command("--num_workers", "0"))


def test_storage_that_is_gone_costs_checkpoints_alone(tmp_path, caplog):
    (tmp_path / "file").touch()
    run = SimpleNamespace(failed_saves=0, model=None, optimizer=None, accelerator=SimpleNamespace(scaler=None))
    run.targets, run.arguments = SimpleNamespace(modules={}), SimpleNamespace(to_dict=dict)
    checkpointing.write(run, tmp_path / "file" / "out" / "checkpoint-4", [], None)
    assert run.failed_saves == 1
    assert "could not be written (1 in a row, its folder cannot be looked at: Not a directory)" in caplog.text


def test_a_checkpoint_says_what_its_mixture_is_over(command, tmp_path):
    options = [
        "--num_workers",
        "0",
        "--phase1_features",
        "mfcc_cmn",
        "--target_dims",
        "4",
        "--adaptive_layer",
        "false",
    ]
    in_one_thread(command(*options, "--target_instance_norm", "true", "--target_temperature", "2"))
    first, last = (tmp_path / "out" / name for name in ("checkpoint-4", "final"))
    config = open_sjepa_config(first)
    assert (config.mixture_features, config.mixture_layers, config.mixture_temperature) == ("mfcc_cmn", None, 1.0)
    model = open_with_ema(last)
    config = model.config
    assert (config.mixture_features, config.mixture_layers, config.mixture_temperature) == ("encoder", [2], 2.0)
    assert config.mixture_instance_norm and config.mixture_whitened and model.mixture_whitening.directions.any()
    assert model.units(torch.randn(1, 8000)).units.shape == (1, 24)


def test_a_long_fit_is_saved_at_once(command, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "LONG_FIT", 0.0)
    short = ["--num_workers", "0", "--phase1_steps", "2", "--phase2_steps", "2"]
    in_one_thread(command(*short))
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]
    monkeypatch.setattr(phases, "begin_phase_1", lambda run: pytest.fail("fitted already"))
    again = ["--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-0")]
    in_one_thread(command(*short, *again, out="again"))
    assert_equal_weights(tmp_path / "out" / "final", tmp_path / "again" / "final")
