"""What goes wrong in a month of training: the run survives it or ends with one sentence, and nothing is lost."""

import errno
import json
import math
import os
import re
import shutil
import signal
import time

import pytest
import torch
from datasets import Dataset
from test_resume import assert_equal_weights, command, in_one_thread, noise, start, wait_for_checkpoint, weights

from training import checkpointing, pretrain
from training.checkpointing import damage, load_loop_state
from training.monitoring import read_history
from training.reading import TrainingData
from training.resuming import checkpoints


__all__ = ["command", "noise"]  # fixtures


def break_gradients(monkeypatch, steps) -> None:
    divergence = pretrain.Pretraining.summed_divergence

    def broken(self, output):
        return divergence(self, output) * (math.nan if self.state.step in steps else 1.0)

    monkeypatch.setattr(pretrain.Pretraining, "summed_divergence", broken)


def test_a_broken_gradient_skips_the_step(command, tmp_path, monkeypatch):
    break_gradients(monkeypatch, {2, 3, 15})
    before = {}
    update = pretrain.Pretraining.update_weights

    def watched(self, norm):
        old = [p.detach().clone() for p in self.model.parameters()]
        update(self, norm)
        same = all(torch.equal(a, b) for a, b in zip(old, self.model.parameters()))
        before[self.state.step] = same
        return ~torch.isfinite(norm)

    monkeypatch.setattr(pretrain.Pretraining, "update_weights", watched)
    in_one_thread(command("--num_workers", "0"))
    assert {step for step, same in before.items() if same} == {2, 3, 15}
    history = read_history(tmp_path / "out" / "metrics.jsonl")
    assert history[-1]["skipped_steps"] == 3
    assert all(math.isfinite(value) for line in history for value in line.values() if isinstance(value, float))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "final").values())


def test_broken_gradients_in_a_row_end_the_run(command, tmp_path, monkeypatch, caplog):
    break_gradients(monkeypatch, range(6, 100))
    with pytest.raises(SystemExit) as ended:
        in_one_thread(command("--num_workers", "0", "--max_skipped_steps", "3", "--logging_steps", "1"))
    assert ended.value.code == 1
    assert "Stopped at step 9 of 24: 3 steps in a row had a NaN or infinite gradient" in caplog.text
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "checkpoint-9").values())


def fill_the_disk(monkeypatch, steps) -> None:
    save = checkpointing.save_file

    def failing(tensors, path):
        if any(f"checkpoint-{step}." in str(path) for step in steps):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpointing, "save_file", failing)


def test_a_full_disk_costs_one_checkpoint(command, tmp_path, monkeypatch, caplog):
    fill_the_disk(monkeypatch, [4])
    in_one_thread(command("--num_workers", "0", "--phase2_steps", "0"))
    said = (
        r"checkpoint-4 could not be written \(1 in a row, \d+ MiB free there\): \[Errno 28\] No space left on device"
    )
    assert re.search(said, caplog.text)
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-8", "checkpoint-12"]
    assert [path.name for path in (tmp_path / "out").glob("*.incomplete*")] == []
    assert damage(tmp_path / "out" / "checkpoint-8") is None


def test_a_disk_that_stays_full_ends_the_run(command, tmp_path, monkeypatch, caplog):
    fill_the_disk(monkeypatch, [4, 8, 12, 16])
    with pytest.raises(SystemExit) as ended:
        in_one_thread(command("--num_workers", "0"))
    assert ended.value.code == 1 and "3 checkpoints in a row could not be written" in caplog.text


def test_a_killed_worker_is_replaced_and_nothing_is_lost(command, tmp_path, monkeypatch, caplog):
    in_one_thread(command("--phase2_steps", "0", out="whole"))
    read, calls = TrainingData.next, []

    def killing(self):
        calls.append(1)
        if len(calls) == 5:
            self._batches._workers[0].kill()
        return read(self)

    monkeypatch.setattr(TrainingData, "next", killing)
    in_one_thread(command("--phase2_steps", "0"))
    assert "A process that reads audio died and is replaced" in caplog.text
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_a_source_that_vanishes_ends_the_run_and_is_resumed_when_it_is_back(command, noise, tmp_path, monkeypatch):
    folder = tmp_path / "audio"
    shutil.copytree(noise, folder)
    options = ["--train_data", str(folder), "--num_workers", "0", "--phase2_steps", "0", "--phase1_steps", "40"]
    in_one_thread(command(*options, out="whole"))
    read, calls = TrainingData.next, []

    def vanishing(self):
        calls.append(1)
        if len(calls) == 14:
            folder.rename(tmp_path / "gone")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "next", vanishing)
        with pytest.raises(SystemExit, match="clips were skipped|no usable clip"):
            in_one_thread(command(*options, "--max_bad_fraction", "0.1"))
    assert len(checkpoints(tmp_path / "out")) >= 3
    (tmp_path / "gone").rename(folder)
    latest = checkpoints(tmp_path / "out")[2]  # step 12, before it went
    in_one_thread(command(*options, "--resume_from_checkpoint", str(latest)))
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_many_bad_files_end_the_run_with_their_number(command, noise, tmp_path, caplog):
    lines = [{"audio_filepath": str(path)} for path in sorted(noise.glob("*.wav"))]
    lines += [{"audio_filepath": f"gone{number}.wav"} for number in range(17)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=r"error: \d+ of \d+ clips were skipped \(\d+ missing\), more than"):
        in_one_thread(command("--train_data", str(tmp_path / "list.jsonl"), "--num_workers", "0"))


def test_a_corrupt_file_in_a_shard_is_skipped_and_counted(command, noise, tmp_path, caplog):
    paths = sorted(noise.glob("*.wav"))
    cells = [{"path": path.name, "bytes": path.read_bytes()} for path in paths]
    cells[7]["bytes"] = b"RIFF" + bytes(3000)
    for shard in range(2):
        Dataset.from_dict({"audio": cells[shard::2]}).to_parquet(str(tmp_path / f"{shard}.parquet"))
    options = ["--train_data", f"{tmp_path}/*.parquet", "--streaming", "true", "--num_workers", "0"]
    in_one_thread(command(*options, "--phase2_steps", "0", "--phase1_steps", "20"))
    assert f"Skipped {paths[7].name}: corrupt" in caplog.text
    assert read_history(tmp_path / "out" / "metrics.jsonl")[-1]["skipped_clips"] >= 2


def test_a_killed_rank_takes_the_others_down_with_a_word(command, tmp_path):
    process = start(command("--num_workers", "0", "--phase2_steps", "3000"), processes=2)
    wait_for_checkpoint(process, tmp_path / "out" / "checkpoint-4")
    ranks = [child for child in children(process.pid) if "pretrain.py" in child[1]]
    assert len(ranks) == 2
    killed = time.monotonic()
    os.kill(ranks[1][0], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert "error: another process of this run has died" in errors or "SIGTERM: saving after this step" in errors


def test_sigterm_to_the_launcher_of_several_processes_saves(command, tmp_path):
    """As a pre-emptible cluster sends it; the launcher's own status is 1, so a file says that it was a signal."""
    out = tmp_path / "out"
    process = start(command("--num_workers", "0", "--phase2_steps", "3000", "--save_steps", "4"), processes=2)
    wait_for_checkpoint(process, out / "checkpoint-4")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert (out / "interrupted").read_text() == "SIGTERM came\n"
    assert damage(checkpoints(out)[-1]) is None
    assert load_loop_state(checkpoints(out)[-1]).step >= 4


def children(pid: int) -> list[tuple[int, str]]:
    """Process number and command line of the direct children."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        numbers = [int(number) for number in file.read().split()]
    return [(n, open(f"/proc/{n}/cmdline").read().replace("\0", " ")) for n in numbers]
