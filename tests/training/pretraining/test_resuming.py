"""A run that is stopped anywhere goes on to the very weights of one that is not."""

import json
import os
import re
import shutil
import signal
from dataclasses import fields

import pytest
from datasets import Dataset
from pretraining_runs import (
    assert_equal_weights,
    in_one_thread,
    start,
    wait_for_checkpoint,
    weights,
)
from transformers import AutoConfig

from training import pretrain
from training.common.output_directory import checkpoints
from training.pretraining import resuming
from training.pretraining.arguments import ARGUMENTS, parse_arguments
from training.pretraining.checkpoint_layout import LoopState, damage, load_arguments, load_loop_state
from training.pretraining.monitoring import read_history
from training.pretraining.resuming import find_checkpoint


def test_kills_and_signals_leave_the_weights_as_they_would_have_been(command, tmp_path):
    in_one_thread(command(out="whole"))
    saved = [(8, signal.SIGKILL, -9), (12, signal.SIGTERM, 143), (16, signal.SIGINT, 130)]
    for step, number, status in saved:
        process = start(command("--resume_from_checkpoint", "auto"))
        wait_for_checkpoint(process, tmp_path / "out" / f"checkpoint-{step}")
        # The whole group, as a batch system does it: a worker must not die of what its parent survives.
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == status, errors[-2000:]
        if number == signal.SIGTERM:
            assert "SIGTERM: saving the last finished step" in errors and "Stopped at step" in errors
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
    aimed += ["--frozen_weight", "0.7", "--num_workers", "0", "--logging_steps", "5"]
    in_one_thread(command(*aimed, out="whole"))
    assert read_history(tmp_path / "whole" / "metrics.jsonl")[-1]["frozen_kl"] > 0
    again = command(*aimed, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-16"), out="again")
    in_one_thread(again)
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "again" / "final")
    whole, resumed = (
        {line["step"]: [line[name] for name in ("masked_kl", "frozen_kl", "gradient_norm")] for line in history[-4:]}
        for history in (read_history(tmp_path / name / "metrics.jsonl") for name in ("whole", "again"))
    )
    assert sorted(resumed) == [18, 20, 21, 24] and resumed == whole, "the first is a mean since step 15"
    assert "frozen_mixture.means" in weights(tmp_path / "again" / "final")


def test_transitions_are_resumed_too(command, tmp_path):
    """Of both mixtures: the frozen one and the online one, whose transitions follow every step."""
    given = ["--target_transitions", "true", "--frozen_weight", "0.5", "--mixture_decay", "0.9", "--num_workers", "0"]
    given += ["--phase1_steps", "6", "--phase2_steps", "6", "--save_steps", "3"]
    in_one_thread(command(*given, out="whole"))
    for step in (6, 9):
        checkpoint, out = tmp_path / "whole" / f"checkpoint-{step}", f"from-{step}"
        in_one_thread(command(*given, "--resume_from_checkpoint", str(checkpoint), out=out))
        assert_equal_weights(tmp_path / "whole" / "final", tmp_path / out / "final")
    phase_1, amid, last = (weights(tmp_path / "whole" / name) for name in ("checkpoint-6", "checkpoint-9", "final"))
    for name in ("pairs", "initial"):
        assert last[f"frozen_mixture.transitions.{name}"].equal(phase_1[f"mixture.transitions.{name}"])
        assert not last[f"mixture.transitions.{name}"].equal(amid[f"mixture.transitions.{name}"])
    assert AutoConfig.from_pretrained(tmp_path / "whole" / "final").mixture_transitions


def test_a_torn_checkpoint_is_named_and_passed_over(finished, tmp_path, caplog):
    out = shutil.copytree(finished[0], tmp_path / "out")
    assert [damage(path) for path in checkpoints(out)] == [None, None, None]
    shutil.rmtree(out / "final")
    torn = out / "checkpoint-9" / "training_state" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert find_checkpoint(out, "latest").name == "checkpoint-6"
    assert "checkpoint-9 is damaged and passed over: training_state/optimizer.pt has" in caplog.text
    weights_file = out / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    assert damage(out / "checkpoint-6") == "model.safetensors is not what was written"
    with pytest.raises(ValueError, match="checkpoint-6 is damaged: .* Take an earlier one"):
        find_checkpoint(out, str(out / "checkpoint-6"))
    (out / "checkpoint-3" / "config.json").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint .*: name another `output_dir`, or move what lies"):
        find_checkpoint(out, "auto")
    with pytest.raises(ValueError, match="no complete checkpoint .*: start without resuming"):
        find_checkpoint(tmp_path, "latest")
    assert find_checkpoint(tmp_path, "auto") is None


def test_resuming_with_other_processes_says_what_that_changes(command, tmp_path, caplog):
    in_one_thread(command("--phase2_steps", "0", "--num_workers", "2"))
    resume = command("--resume_from_checkpoint", "auto", "--num_workers", "0", "--gradient_accumulation_steps", "2")
    in_one_thread(resume)
    assert "this pass over the data goes on in its order, no clip is left out" in caplog.text
    assert "A step had 1 (processes) x 1 (micro-batches), and has 1 x 2 now" in caplog.text
    assert load_loop_state(tmp_path / "out" / "final").data["batches"] == 12 + 2 * 12


def test_a_finished_run_is_not_trained_again(resume, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(pretrain, "train", lambda run: pytest.fail("trained"))
    assert resume() is None and "final is finished: it has taken 10 steps, and 10 are asked for" in caplog.text


def test_what_a_run_goes_back_behind_is_set_aside_with_its_result(resume, tmp_path, caplog):
    assert resume("--phase2_steps", "3", at="checkpoint-3") is None
    out = tmp_path / "out"
    assert "`output_dir`" not in caplog.text
    assert load_loop_state(out / "final").step == 7 and load_loop_state(out / "final.abandoned").step == 10
    assert (out / "checkpoint-9.abandoned").is_dir()


def test_settings_that_have_changed_are_named_refused_or_put_back(resume, tmp_path, caplog):
    for options, at, said in (
        (["--model_config", '{"hidden_size": 64}'], "checkpoint-3", "hidden_size = 64, but the model of .* has 32"),
        (["--phase1_steps", "5"], "checkpoint-6", "`phase1_steps` is 5, but .*checkpoint-6 is of phase 2"),
        (["--phase1_steps", "2"], "checkpoint-3", "`phase1_steps` is 2, but .* has taken 3 of them"),
        (["--phase2_steps", "1"], "checkpoint-6", "5 steps together, but .*checkpoint-6 has taken 6: ask for more"),
    ):
        assert re.search(f"error: .*{said}", str(resume(*options, at=at)))
    options = ["--fit_hours", "2", "--seed_frames", "500", "--weight_decay", "0.5", "--phase2_learning_rate", "1e-4"]
    options += ["--phase1_components", "5", "--phase1_temperature", "2"]
    assert resume(*options, "--phase1_learning_rate", "7", at="checkpoint-6") is None
    for said in (
        "`fit_hours` stays 1000.0, as it has had its effect: 2.0 is too late",
        "`seed_frames` stays 600",
        "`phase1_components` stays 8",
        "`phase1_temperature` stays 1.0",
        "`phase1_learning_rate` stays 0.001",
        "Changed since the checkpoint: `weight_decay` from 0.001 to 0.5",
        "The learning rate goes on at 0.0001; by the settings before it would be 0.001",
    ):
        assert said in caplog.text
    record = json.loads((tmp_path / "out" / "final" / "training.json").read_text())["settings"]
    assert (record["fit_hours"], record["seed_frames"], record["phase1_learning_rate"]) == (1000.0, 600, 0.001)
    assert record["weight_decay"] == 0.5
    assert json.loads(record["model_config"])["hidden_size"] == 32


def test_fields_that_options_decide_are_refused_in_a_resumed_run_too(resume, finished, tmp_path):
    said = "sets mixture_transitions, but that is decided by target_transitions: leave"
    asked = ["--model_config", '{"mixture_transitions": true}']
    assert re.search(f"error: .*{said}", str(resume(*asked, at="checkpoint-6")))
    new = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "auto"]
    with pytest.raises(SystemExit, match=said):
        pretrain.main([*finished[1], *new, *asked])


def test_what_is_fixed_are_settings():
    assert resuming.FIXED.keys() <= {field.name for group in ARGUMENTS for field in fields(group)}


def test_settings_of_kept_targets_stay_open_in_phase_2_but_for_their_features(finished, tmp_path, monkeypatch, caplog):
    """As long as the run keeps them; else they have had their effect."""
    before = load_arguments(finished[0] / "checkpoint-6") | {"frozen_weight": 0.5}
    monkeypatch.setattr(resuming, "load_arguments", lambda directory: before)

    def settled(*options):
        arguments = parse_arguments([*finished[1], "--output_dir", str(tmp_path), *options])
        resuming.compare_settings(finished[0] / "checkpoint-6", arguments, LoopState(step=6))
        return arguments.targets

    keeps = ["--frozen_weight", "0.5", "--phase1_temperature", "2"]
    assert settled(*keeps).phase1_temperature == 2
    with pytest.raises(ValueError, match="`phase1_features` is 'mfcc_cmn', but the mixture of .* with 'mfcc'"):
        settled(*keeps, "--phase1_features", "mfcc_cmn")
    targets = settled("--phase1_temperature", "2", "--phase1_features", "mfcc_cmn")
    assert (targets.phase1_temperature, targets.phase1_features) == (1.0, "mfcc")
    before |= {"frozen_weight": 0.0, "frozen_weight_end": 0.5}  # as it was once said
    assert settled(*keeps).frozen_weight == 0.5
    before["frozen_weight_end"] = 0.0
    with pytest.raises(ValueError, match="has not kept the mixture of phase 1"):
        settled(*keeps)


def test_data_that_have_changed_are_noticed(resume, finished, caplog):
    manifest = finished[2]
    lines = manifest.read_text().splitlines(keepends=True)
    try:
        manifest.write_text("".join(reversed(lines)))
        assert resume(at="checkpoint-6") is None
    finally:
        manifest.write_text("".join(lines))
    assert "the contents of source 1 of train_data have changed: a new pass over the data begins" in caplog.text


def test_a_component_that_dies_is_seeded_again_in_a_resumed_run_too(command, tmp_path, monkeypatch):
    """It dies after step 4 and gets its new place after step 6; resumed between the two, and later."""
    soft_targets, out = pretrain.soft_targets, tmp_path / "whole"

    def killing(run, batch):
        if run.state.step == 4:
            run.model.mixture.weights[1], run.model.mixture.means[1] = 1e-9, 1e3
        return soft_targets(run, batch)

    monkeypatch.setattr(pretrain, "RESEED_EVERY", 3)
    monkeypatch.setattr(pretrain, "soft_targets", killing)
    options = ["--num_workers", "0", "--save_steps", "5", "--logging_steps", "1", "--layer_check_steps", "100"]
    options += ["--phase1_steps", "4", "--phase2_steps", "8"]
    in_one_thread(command(*options, out="whole"))
    counted = {line["step"]: line.get("reseeded_components") for line in read_history(out / "metrics.jsonl")}
    assert [counted[n] for n in (4, 5, 6, 12)] == [None, 0, 1, 1]
    dead = weights(out / "checkpoint-5")["mixture.weights"] < 0.01 / 6
    assert dead.tolist() == [False, True, False, False, False, False]
    assert weights(out / "final")["mixture.weights"].min() > 0.01 / 6
    for name in ("checkpoint-5", "checkpoint-10"):
        in_one_thread(command(*options, "--resume_from_checkpoint", str(out / name), out=name))
        assert_equal_weights(out / "final", tmp_path / name / "final")
        assert read_history(tmp_path / name / "metrics.jsonl")[-1]["reseeded_components"] == 1


def test_a_streamed_run_goes_on_where_it_was_stopped(command, noise, tmp_path, monkeypatch):
    """Parquet in shards, stopped amid a pass over the data, once in each phase."""
    cells = [{"path": path.name, "bytes": path.read_bytes()} for path in sorted(noise.glob("*.wav"))[:20]]
    for shard in range(4):
        Dataset.from_dict({"audio": cells[shard::4]}).to_parquet(str(tmp_path / f"{shard}.parquet"))
    streamed = ["--train_data", f"{tmp_path}/*.parquet", "--streaming", "true"]
    streamed += ["--phase1_steps", "6", "--phase2_steps", "6"]
    in_one_thread(command(*streamed, out="whole"))
    update, stops = pretrain.update_weights, {2, 8}

    def stopping(run, norm):
        if run.state.step in stops:
            stops.remove(run.state.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return update(run, norm)

    monkeypatch.setattr(pretrain, "update_weights", stopping)
    for step in (3, 9):
        with pytest.raises(SystemExit) as stopped:
            in_one_thread(command(*streamed, "--resume_from_checkpoint", "auto"))
        assert stopped.value.code == 143 and (tmp_path / "out" / f"checkpoint-{step}").is_dir()
    in_one_thread(command(*streamed, "--resume_from_checkpoint", "auto"))
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "out" / "final")
    ends = [load_loop_state(tmp_path / name / "final") for name in ("whole", "out")]
    assert ends[0].data == ends[1].data and ends[0].clips_seen == ends[1].clips_seen
