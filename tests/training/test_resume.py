"""A run that is stopped anywhere goes on to the very weights of one that is not; two ranks give what one gives."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import RECIPE, start, write_noise

from training import pretrain
from training.checkpointing import damage, load_loop_state
from training.monitoring import read_history
from training.resuming import checkpoints, find_checkpoint


NO_DROPOUT = ["hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "predictor_dropout"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise"), count=40, shortest=0.3)


@pytest.fixture
def command(noise, tmp_path):
    """Arguments of a run in the folder `out`: small, two phases of 12 steps, a checkpoint every fourth."""

    def arguments(*options, out="out"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(front_end="log_mel"))
        fixed = ["--config", str(recipe), "--train_data", str(noise), "--output_dir", str(tmp_path / out)]
        fixed += ["--report_to", "none", "--phase1_steps", "12", "--phase2_steps", "12", "--num_workers", "2"]
        return [*fixed, "--save_total_limit", "20", *options]

    return arguments


def wait_for_checkpoint(process, directory: Path, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not directory.is_dir() and process.poll() is None:
        assert time.monotonic() < end, f"waited in vain for {directory}"
        time.sleep(0.05)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def assert_equal_weights(first: Path, second: Path) -> None:
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name


def in_one_thread(arguments):
    """A run in this process, with as many threads as those in processes of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain.main(arguments)
    finally:
        torch.set_num_threads(threads)


def test_kills_and_signals_leave_the_weights_as_they_would_have_been(command, tmp_path):
    in_one_thread(command(out="whole"))
    saved = [(8, signal.SIGKILL, -9), (12, signal.SIGTERM, 143), (16, signal.SIGKILL, -9), (20, signal.SIGINT, 130)]
    for step, number, status in saved:
        process = start(command("--resume_from_checkpoint", "auto"))
        wait_for_checkpoint(process, tmp_path / "out" / f"checkpoint-{step}")
        # The whole group, as a batch system does it: a worker must not die of what its parent survives.
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == status, errors[-2000:]
        if number == signal.SIGTERM:
            assert "SIGTERM: saving after this step" in errors and "Stopped at step" in errors
    in_one_thread(command("--resume_from_checkpoint", "auto"))
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")
    whole, pieced = (read_history(tmp_path / name / "metrics.jsonl") for name in ("whole", "out"))
    assert [m["step"] for m in pieced] == [m["step"] for m in whole]
    assert pieced[-1]["hours_seen"] == pytest.approx(whole[-1]["hours_seen"], rel=1e-6)
    loops = [json.loads((tmp_path / n / "final/training_state/loop.json").read_text()) for n in ("whole", "out")]
    assert loops[0]["data"] == loops[1]["data"] and loops[0]["clips_seen"] == loops[1]["clips_seen"]


def test_all_that_phase_2_can_be_aimed_at_is_resumed_too(command, tmp_path):
    """Principal components, mean of layers and the MFCC mixture beside the online one, from a checkpoint amid it."""
    aimed = ["--target_dims", "8", "--target_layers", "1", "3", "--target_instance_norm", "true"]
    aimed += ["--phase2_schedule", "linear", "--phase2_decay_steps", "6"]
    aimed += ["--frozen_weight", "0.7", "--num_workers", "0"]
    in_one_thread(command(*aimed, out="whole"))
    assert read_history(tmp_path / "whole" / "metrics.jsonl")[-1]["frozen_kl"] > 0
    again = command(*aimed, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-16"), out="again")
    in_one_thread(again)
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "again" / "final")
    assert "frozen_mixture.means" in weights(tmp_path / "again" / "final")


def test_a_torn_checkpoint_is_named_and_passed_over(command, tmp_path, caplog):
    in_one_thread(command("--phase2_steps", "0", "--num_workers", "0"))
    out = tmp_path / "out"
    assert [damage(path) for path in checkpoints(out)] == [None, None, None]
    torn = out / "checkpoint-12" / "training_state" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert find_checkpoint(out, "latest").name == "checkpoint-8"
    assert "checkpoint-12 is damaged and passed over: training_state/optimizer.pt has" in caplog.text
    weights_file = out / "checkpoint-8" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    assert damage(out / "checkpoint-8") == "model.safetensors is not what was written"
    with pytest.raises(ValueError, match="checkpoint-8 is damaged: .* Take an earlier one"):
        find_checkpoint(out, str(out / "checkpoint-8"))
    (out / "checkpoint-4" / "config.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        find_checkpoint(out, "auto")
    assert find_checkpoint(tmp_path, "auto") is None


def test_an_output_directory_belongs_to_one_run(command, tmp_path):
    run = pretrain.Pretraining(pretrain.parse_arguments(command("--num_workers", "0")))
    with pytest.raises(SystemExit, match="error: .*belongs to a run that is still going"):
        pretrain.main(command("--num_workers", "0"))
    run.lock.release()
    (tmp_path / "out" / "checkpoint-4").mkdir()
    with pytest.raises(SystemExit, match="holds an earlier run: name another directory, or go on"):
        pretrain.main(command("--num_workers", "0"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: .*cannot be written to"):
        pretrain.main(command(out="file/out"))


def test_resuming_with_other_processes_says_what_that_changes(command, tmp_path, caplog):
    in_one_thread(command("--phase2_steps", "0", "--num_workers", "2"))
    resume = command("--resume_from_checkpoint", "auto", "--num_workers", "0", "--gradient_accumulation_steps", "2")
    in_one_thread(resume)
    assert "this pass over the data goes on in its order, no clip is left out" in caplog.text
    assert "1 processes with 1 micro-batches a step have become 1 with 2" in caplog.text
    assert load_loop_state(tmp_path / "out" / "final").data["batches"] == 12 + 2 * 12


def without_dropout(command, *options, out):
    config = json.dumps(dict.fromkeys(NO_DROPOUT, 0.0) | {"layerdrop": 0.0})
    return command("--model_config", config, "--layer_check_steps", "5", *options, out=out)


def test_two_ranks_give_what_one_gives_with_accumulation(command, tmp_path):
    """Also a second time, resumed on the other number of ranks."""
    two = start(without_dropout(command, "--num_workers", "1", out="two"), processes=2)
    in_one_thread(without_dropout(command, "--gradient_accumulation_steps", "2", out="one"))
    errors = two.communicate(timeout=300)[1]
    assert two.returncode == 0, errors[-3000:]
    one, two = (read_history(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in {"masked_kl", "visible_kl", "gradient_norm", "mixture_perplexity", "hours_seen"} & ours.keys():
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), (ours["step"], name)
        assert theirs.get("active_layer") == ours.get("active_layer")
        if "effective_ranks" in ours:
            assert theirs["effective_ranks"] == pytest.approx(ours["effective_ranks"], rel=1e-5)
    assert sum("effective_ranks" in line for line in one) == 4
    for name, tensor in weights(tmp_path / "one" / "final").items():
        torch.testing.assert_close(weights(tmp_path / "two" / "final")[name], tensor, atol=2e-6, rtol=1e-5, msg=name)

    resume = [
        "--resume_from_checkpoint",
        str(tmp_path / "two" / "checkpoint-16"),
        "--gradient_accumulation_steps",
        "2",
    ]
    in_one_thread(without_dropout(command, *resume, out="resumed"))
    for name, tensor in weights(tmp_path / "one" / "final").items():
        resumed = weights(tmp_path / "resumed" / "final")[name]
        torch.testing.assert_close(resumed, tensor, atol=2e-6, rtol=1e-5, msg=name)


def test_a_run_that_numbered_layers_otherwise_is_not_resumed(command, tmp_path):
    pretrain.main(command("--phase1_steps", "4", "--phase2_steps", "0", "--num_workers", "0"))
    path = tmp_path / "out" / "checkpoint-4" / "training_state" / "loop.json"
    loop = json.loads(path.read_text())
    del loop["version"]
    path.write_text(json.dumps(loop))
    with pytest.raises(ValueError, match="numbered layers from 0 = .* Finish the run with that version, or start"):
        load_loop_state(tmp_path / "out" / "checkpoint-4")
