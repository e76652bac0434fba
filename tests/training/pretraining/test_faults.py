"""What goes wrong in a month of training: the run survives it or ends with one sentence, and nothing is lost."""

import json
import math
import os
import platform
import re
import shutil
import signal
import time

import pytest
import torch
from datasets import Dataset
from pretraining_runs import (
    assert_equal_weights,
    in_one_thread,
    start,
    start_with_torchrun,
    wait_for_checkpoint,
    weights,
)

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.command import TRACEBACK, UserError
from training import pretrain
from training.common.output_directory import checkpoints
from training.common.signals import INTERRUPTED, Stop
from training.pretraining import phases
from training.pretraining.checkpoint_layout import damage, load_loop_state
from training.pretraining.monitoring import read_history
from training.pretraining.training_data import RestartingLoader, TrainingData


def break_gradients(monkeypatch, steps) -> None:
    predict = pretrain.predict

    def broken(run, batch, targets):
        output = predict(run, batch, targets)
        output.loss = output.loss * (math.nan if run.state.step in steps else 1.0)
        return output

    monkeypatch.setattr(pretrain, "predict", broken)


def test_a_broken_gradient_skips_the_step(command, tmp_path, monkeypatch):
    break_gradients(monkeypatch, {2, 3, 15})
    before = {}
    update = pretrain.update_weights

    def watched(run, norm):
        old = [p.detach().clone() for p in run.model.parameters()]
        update(run, norm)
        same = all(torch.equal(a, b) for a, b in zip(old, run.model.parameters()))
        before[run.state.step] = same
        return ~torch.isfinite(norm)

    monkeypatch.setattr(pretrain, "update_weights", watched)
    in_one_thread(command("--num_workers", "0"))
    assert {step for step, same in before.items() if same} == {2, 3, 15}
    history = read_history(tmp_path / "out" / "metrics.jsonl")
    assert history[-1]["skipped_steps"] == 3
    assert all(math.isfinite(value) for line in history for value in line.values() if isinstance(value, float))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "final").values())
    in_one_thread(command("--num_workers", "0", "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-16")))
    resumed = read_history(tmp_path / "out" / "metrics.jsonl")
    for name in ("skipped_steps", "hours_seen", "padded_share", "skipped_clips"):
        assert resumed[-1][name] == history[-1][name], f"{name}: counted on from the checkpoint"


def test_broken_gradients_in_a_row_end_the_run(command, tmp_path, monkeypatch, caplog):
    break_gradients(monkeypatch, range(6, 100))
    with pytest.raises(SystemExit, match="error: stopped at step 9 of 24: 3 steps in a row had a NaN or infinite"):
        in_one_thread(command("--num_workers", "0", "--max_skipped_steps", "3", "--logging_steps", "1"))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "checkpoint-9").values())


def test_the_traceback_shows_the_way_to_a_fault_in_a_wait(command, monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    monkeypatch.setattr(RestartingLoader, "next", lambda self: json.loads("{"))
    with pytest.raises(UserError, match="stopped at step 0 of 24: Expecting") as caught:
        in_one_thread(command("--num_workers", "0"))
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(command, tmp_path, monkeypatch, caplog):
    in_one_thread(command("--phase2_steps", "0", out="whole"))
    read, calls = TrainingData.next, []

    def killing(self):
        calls.append(1)
        if len(calls) == 5:
            self._loader._batches._workers[0].kill()
        return read(self)

    monkeypatch.setattr(TrainingData, "next", killing)
    in_one_thread(command("--phase2_steps", "0"))
    assert "A process that reads audio died and is replaced" in caplog.text
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_a_source_that_vanishes_ends_the_run_and_is_resumed_when_it_is_back(command, noise, tmp_path, monkeypatch):
    folder = tmp_path / "audio"
    shutil.copytree(noise, folder)
    options = ["--train_data", str(folder), "--num_workers", "0", "--phase2_steps", "0", "--phase1_steps", "24"]
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
    assert latest.name == "checkpoint-12"
    in_one_thread(command(*options, "--resume_from_checkpoint", str(latest)))
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_many_bad_files_end_the_run_with_their_number(command, noise, tmp_path, caplog):
    lines = [{"audio_filepath": str(path)} for path in sorted(noise.glob("*.wav"))]
    lines += [{"audio_filepath": f"gone{number}.wav"} for number in range(17)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=r"error: .*\d+ of \d+ clips were skipped \(\d+ missing\), more than"):
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
    process = start(command("--num_workers", "0", "--phase2_steps", "3000"), ranks=2)
    wait_for_checkpoint(process, tmp_path / "out" / "checkpoint-4")
    _, second = children(process.pid)
    killed = time.monotonic()
    os.kill(second, signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert "error: another process of this run has died" in errors


def test_sigterm_to_the_launcher_of_several_processes_saves(command, tmp_path):
    """As a pre-emptible cluster sends it; the launcher's own status is 1, so a file says that it was a signal."""
    out = tmp_path / "out"
    process = start_with_torchrun(command("--num_workers", "0", "--phase2_steps", "3000", "--save_steps", "4"))
    wait_for_checkpoint(process, out / "checkpoint-4")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert (out / "interrupted").read_text() == "SIGTERM came\n"
    assert damage(checkpoints(out)[-1]) is None
    assert load_loop_state(checkpoints(out)[-1]).step >= 4


def children(pid: int) -> list[int]:
    """The process numbers of the ranks that a process has forked, in their order."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(number) for number in file.read().split()]


def test_a_run_ends_in_order_while_it_waits_for_a_batch(command, tmp_path, monkeypatch):
    """The batches that were read for the unfinished step are read again."""
    options = ["--num_workers", "0", "--gradient_accumulation_steps", "2", "--phase2_steps", "4"]
    in_one_thread(command(*options, out="whole"))
    read, calls = RestartingLoader.next, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 18:  # after one micro-batch of a step
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(RestartingLoader, "next", interrupted)
        with pytest.raises(SystemExit) as ended:
            in_one_thread(command(*options))
    assert ended.value.code == 143 and (tmp_path / "out" / "interrupted").is_file()
    assert load_loop_state(checkpoints(tmp_path / "out")[-1]).step % 4 != 0
    in_one_thread(command(*options, "--resume_from_checkpoint", "auto"))
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_a_signal_has_its_status_on_a_full_disk_too(command, tmp_path, monkeypatch, caplog):
    run = pretrain.prepare(pretrain.parse_arguments(command("--num_workers", "0", "--phase2_steps", "0")))
    (run.output_dir / INTERRUPTED).mkdir()
    monkeypatch.setattr(pretrain, "prepare", lambda arguments: run)
    monkeypatch.setattr(pretrain, "pretrain", lambda run: Stop(143, "SIGTERM came"))
    with pytest.raises(SystemExit) as ended:
        pretrain.main(command())
    assert ended.value.code == 143 and "interrupted could not be written: [Errno 21]" in caplog.text


@pytest.mark.parametrize("trouble", ["signal", "error"])
def test_a_run_ends_in_order_while_a_mixture_is_fitted(command, tmp_path, monkeypatch, trouble):
    """At the start, at the boundary and after a layer switch: what the fit would have changed is as it was."""
    monkeypatch.setattr(phases, "layer_ranks", lambda *_, **__: [3.0, 2.0, 1.0])
    options = ["--num_workers", "0", "--layer_check_steps", "14", "--target_dims", "8", "--phase1_steps", "6"]
    in_one_thread(command(*options, out="whole"))
    fit, calls = DiagonalGaussianMixture.fit, []

    def troubled(self, *args, **kwargs):
        history = fit(self, *args, **kwargs)
        calls.append(1)
        if len(calls) in (1, 3, 5):
            if trouble == "error":
                raise UserError("a source has gone.")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return history

    monkeypatch.setattr(DiagonalGaussianMixture, "fit", troubled)
    for step in (0, 6, 14):
        with pytest.raises(SystemExit) as ended:
            in_one_thread(command(*options, "--resume_from_checkpoint", "auto"))
        said = f"error: stopped at step {step} of 18: a source has gone."
        assert ended.value.code == (143 if trouble == "signal" else said)
        assert [path.name for path in checkpoints(tmp_path / "out")][-1:] == ([f"checkpoint-{step}"] if step else [])
    in_one_thread(command(*options, "--resume_from_checkpoint", "auto"))
    assert len(calls) == 6
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")


def test_a_source_that_changes_ends_the_run_with_its_last_step_saved(command, noise, tmp_path, monkeypatch):
    manifest = tmp_path / "list.jsonl"
    lines = [json.dumps({"audio_filepath": str(path)}) + "\n" for path in sorted(noise.glob("*.wav"))]
    manifest.write_text("".join(lines))
    read, calls = RestartingLoader.next, []

    def growing(self):
        calls.append(1)
        if len(calls) == 14:
            manifest.write_text("".join(lines) + lines[0])
        return read(self)

    monkeypatch.setattr(RestartingLoader, "next", growing)
    with pytest.raises(SystemExit, match=r"error: stopped at step \d+ of 24: .*list.jsonl has changed since"):
        in_one_thread(command("--train_data", str(manifest), "--num_workers", "0"))
    assert damage(checkpoints(tmp_path / "out")[-1]) is None


def test_what_cannot_work_is_refused_before_the_first_step(command, noise, tmp_path):
    for options, said in (
        (["--mask_prob", "1.0"], "`mask_prob` must be below 1"),
        (["--phase1_components", "9000", "--fit_frames", "9000"], "Cannot fit 9000 components to .* frames"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{said}"):
            in_one_thread(command("--num_workers", "0", "--fit_hours", "1", *options))
    assert checkpoints(tmp_path / "out") == []


def test_too_little_audio_for_phase_2_ends_the_run_where_it_can_be_resumed(command, tmp_path):
    many = [f"--{name}=9000" for name in ("phase2_components", "seed_frames", "reseed_frames")]
    with pytest.raises(SystemExit, match="error: stopped at step 12 of 24: Cannot fit 9000 components to .* frames"):
        in_one_thread(command("--num_workers", "0", *many))
    in_one_thread(command("--num_workers", "0", "--resume_from_checkpoint", "auto"))
    assert damage(tmp_path / "out" / "final") is None


@pytest.mark.parametrize("trouble", ["no data", "other data", "earlier run"])
def test_what_one_process_refuses_all_say(command, noise, tmp_path, trouble):
    """As where one of two machines has not all of the data; and of the output directory, which only one looks at."""
    theirs = tmp_path / "theirs"
    if trouble == "other data":
        shutil.copytree(noise, theirs)
        (theirs / "7.wav").unlink()
    if trouble == "earlier run":
        theirs = noise
        (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
from training import pretrain
if os.environ["RANK"] == "1":
    sys.argv += ["--train_data", {str(theirs)!r}]
pretrain.main()
""")
    process = start(command("--num_workers", "0"), ranks=2, script=script)
    errors = process.communicate(timeout=120)[1]
    said = {
        "no data": [f"error: process 1 (on {platform.node()}) cannot start: ", "[rank 1] error: "],
        "other data": [f"error: train_data '{noise}' holds 40 clips in process 0 (on {platform.node()}) and 39 in"],
        "earlier run": ["holds an earlier run", f"[rank 1] error: process 0 (on {platform.node()}) cannot start: "],
    }[trouble]
    assert process.returncode == 1 and all(each in errors for each in said), errors[-3000:]
    assert errors.count("error: ") == 2 and "Traceback" not in errors, errors[-3000:]


def test_a_signal_to_one_rank_ends_all_in_order(command, tmp_path):
    out = tmp_path / "out"
    process = start(command("--num_workers", "0", "--phase2_steps", "3000"), ranks=2)
    wait_for_checkpoint(process, out / "checkpoint-4")
    os.kill(children(process.pid)[1], signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert (out / "interrupted").read_text() == "SIGTERM came\n", errors[-2000:]
    assert damage(checkpoints(out)[-1]) is None


@pytest.mark.parametrize(
    ("place", "said"),
    [("RestartingLoader.next", "Process 1 did not come within"), ("pretrain.predict", "has died or hangs")],
    ids=["between steps", "in a step"],
)
def test_a_rank_that_hangs_ends_the_others(command, tmp_path, place, said):
    """Between steps it is named; the limits are shortened here. It hangs in phase 2."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import datetime, os, signal
from training import pretrain
from training.common import processes
from training.pretraining import run
from training.pretraining.training_data import RestartingLoader
processes.EXCHANGE_LIMIT, run.COLLECTIVE_TIMEOUT = 6.0, datetime.timedelta(seconds=10)
whole, calls = {place}, []
def stopping(*args):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 8:
        os.kill(os.getpid(), signal.SIGSTOP)
    return whole(*args)
{place} = stopping
pretrain.main()
""")
    options = ["--num_workers", "0", "--phase1_steps", "4", "--phase2_steps", "300"]
    process = start(command(*options), ranks=2, script=script)
    errors = ""
    while not (told := re.search("^.*error: .*\n", errors, re.MULTILINE)) and process.poll() is None:
        time.sleep(0.1)
        errors = process.errors
    assert told, errors[-3000:]
    for number in children(process.pid):  # one that is stopped would be waited for
        os.kill(number, signal.SIGKILL)
    process.communicate(timeout=120)
    assert said in told[0], errors[-3000:]
