"""A run that is stopped anywhere goes on to the very weights of one that is not; two ranks give what one gives."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from pretraining_runs import (
    RECIPE,
    assert_equal_weights,
    in_one_thread,
    start,
    wait_for_checkpoint,
    weights,
)

from benchmarks.fuzz_checkpoints import agree
from training import pretrain
from training.data.identity import identity
from training.data.sources import open_source
from training.pretraining.arguments import RunArguments
from training.pretraining.checkpoint_layout import damage, load_loop_state
from training.pretraining.monitoring import read_history
from training.pretraining.resuming import check_rate, checkpoints, find_checkpoint


NO_DROPOUT = ["hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "predictor_dropout"]


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
    shutil.rmtree(out / "final")
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
    run = pretrain.begin(pretrain.parse_arguments(command("--num_workers", "0")))
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
    with pytest.raises(
        ValueError, match="layers were numbered from 0 = .* Finish the run with that version, or start"
    ):
        load_loop_state(tmp_path / "out" / "checkpoint-4")


@pytest.fixture(scope="module")
def finished(noise, tmp_path_factory):
    """A finished run of two short phases, to be copied; and the command that made it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE.format(front_end="log_mel"))
    manifest = folder / "list.jsonl"
    manifest.write_text("".join(json.dumps({"wav_path": str(path)}) + "\n" for path in sorted(noise.glob("*.wav"))))
    fixed = ["--config", str(folder / "recipe.yaml"), "--train_data", str(manifest), "--report_to", "none"]
    fixed += ["--phase1_steps", "4", "--phase2_steps", "6", "--save_total_limit", "0", "--save_steps", "3"]
    in_one_thread([*fixed, "--output_dir", str(folder / "out")])
    return folder / "out", fixed, manifest


@pytest.fixture
def resume(finished, tmp_path):
    """Go on in a copy of that run; the answer is what the command ended with."""
    out, fixed, _ = finished
    shutil.copytree(out, tmp_path / "out")

    def again(*options, at="auto"):
        at = at if at == "auto" else str(tmp_path / "out" / at)
        try:
            in_one_thread([*fixed, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", at, *options])
        except SystemExit as ended:
            return ended.code

    return again


def test_a_finished_run_is_not_trained_again(resume, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(pretrain, "train", lambda run: pytest.fail("trained"))
    assert resume() is None and "final is finished: it has taken 10 steps, and 10 are asked for" in caplog.text


def test_a_run_that_was_killed_at_its_end_gets_its_pictures(resume, tmp_path):
    final = tmp_path / "out" / "final"
    before = weights(final)
    for path in (final / "training.json", final / "loss.png"):
        path.unlink()
    assert resume() is None
    assert (final / "training.json").is_file() and (final / "loss.png").is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(final).items())


def test_what_a_run_goes_back_behind_is_set_aside_with_its_result(resume, tmp_path):
    assert resume("--phase2_steps", "3", at="checkpoint-3") is None
    out = tmp_path / "out"
    assert load_loop_state(out / "final").step == 7 and load_loop_state(out / "final.abandoned").step == 10
    assert (out / "checkpoint-9.abandoned").is_dir()


def test_settings_that_have_changed_are_named_refused_or_put_back(resume, tmp_path, caplog):
    for options, at, said in (
        (["--model_config", '{"hidden_size": 64}'], "checkpoint-3", "hidden_size = 64, but the model of .* has 32"),
        (["--phase1_steps", "5"], "checkpoint-6", "`phase1_steps` is 5, but .*checkpoint-6 is of phase 2"),
        (["--phase1_steps", "2"], "checkpoint-3", "`phase1_steps` is 2, but .* has taken 3 of them"),
    ):
        assert re.search(f"error: .*{said}", str(resume(*options, at=at)))
    options = ["--fit_hours", "2", "--seed_frames", "500", "--weight_decay", "0.5", "--phase2_learning_rate", "1e-4"]
    assert resume(*options, "--phase1_learning_rate", "7", at="checkpoint-6") is None
    for said in (
        "`fit_hours` stays 1000.0, as it has had its effect: 2.0 is too late",
        "`seed_frames` stays 600",
        "`phase1_learning_rate` stays 0.001",
        "Changed since the checkpoint: `weight_decay` from 0.001 to 0.5",
        "The learning rate goes on at 0.0001; by the settings before it would be 0.001",
    ):
        assert said in caplog.text
    record = json.loads((tmp_path / "out" / "final" / "training.json").read_text())["settings"]
    assert (record["fit_hours"], record["seed_frames"], record["phase1_learning_rate"]) == (1000.0, 600, 0.001)
    assert record["weight_decay"] == 0.5
    assert json.loads(record["model_config"])["hidden_size"] == 32


def test_steps_that_would_learn_nothing_are_refused(tmp_path):
    schedule = {"phase1_schedule": "constant", "phase1_steps": 8, "phase1_learning_rate": 0.0}
    run = SimpleNamespace(**{name: getattr(RunArguments(), name) for name in vars(RunArguments())} | schedule)
    run.phase1_warmup_steps = run.phase2_steps = 0
    with pytest.raises(ValueError, match="The learning rate is 0 in all steps from 6, where out stands, to 8"):
        check_rate(Path("out"), SimpleNamespace(run=run, targets=None), 6, 0.0)


def test_data_that_have_changed_are_noticed(resume, finished, caplog):
    manifest = finished[2]
    lines = manifest.read_text().splitlines(keepends=True)
    try:
        manifest.write_text("".join(reversed(lines)))
        assert resume(at="checkpoint-6") is None
    finally:
        manifest.write_text("".join(lines))
    assert "the contents of source 1 of train_data have changed: a new pass over the data begins" in caplog.text


def test_what_data_are_is_told_by_their_contents(tmp_path):
    def folder(name: str, **contents: bytes) -> str:
        for file, content in contents.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{file}.wav").write_bytes(content)
        return identity(str(tmp_path / name), open_source(str(tmp_path / name)))

    first = folder("a", x=b"1", y=b"22")
    assert folder("b", x=b"1", y=b"22") == first, "a copy is the same"
    assert len({first, folder("c", x=b"1", z=b"22"), folder("d", x=b"1", y=b"223"), folder("e", x=b"1")}) == 4
    shards = []
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        rows = [{"audio": {"path": f"{n}.wav", "bytes": bytes([n]) * 5000}} for n in order]
        path = tmp_path / f"{order[1]}" / "part.parquet"
        path.parent.mkdir()
        Dataset.from_list(rows).to_parquet(str(path))
        shards.append(identity(str(path), open_source(str(path), streaming=True)))
    assert shards[0] != shards[1]


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
        ("loop.json", b"null", "holds no object"),
        ("loop.json", b'{"step', "is not JSON"),
        ("arguments.json", b"{}", "KeyError"),
        ("arguments.json", b"{" * 100_000, "is not JSON"),
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
