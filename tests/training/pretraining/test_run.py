"""A run has its output directory for itself; two processes give what one gives."""

import json
from types import SimpleNamespace

import pytest
import torch
from pretraining_runs import (
    in_one_thread,
    start,
    weights,
)
from safetensors.torch import load_file

from training import pretrain
from training.common.seeds import Purpose
from training.pretraining.checkpoint_layout import load_loop_state
from training.pretraining.monitoring import read_history
from training.pretraining.run import Run


def test_an_output_directory_belongs_to_one_run(command, tmp_path):
    run = pretrain.prepare(pretrain.parse_arguments(command("--num_workers", "0")))
    with pytest.raises(SystemExit, match="error: .*is in use by a run that is still active"):
        pretrain.main(command("--num_workers", "0"))
    run.lock.release()
    interrupted = tmp_path / "out" / "interrupted"
    interrupted.touch()
    with pytest.raises(SystemExit, match="there is no file or folder"):
        pretrain.main(command("--num_workers", "0", "--train_data", "/absent"))
    assert not interrupted.exists(), "no word of a signal that has ended another start"
    (tmp_path / "out" / "checkpoint-4").mkdir()
    with pytest.raises(SystemExit, match="holds an earlier run: name another directory, or go on"):
        pretrain.main(command("--num_workers", "0"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: .*cannot be written to"):
        pretrain.main(command(out="file/out"))


def test_a_run_opens_its_sources_once(command, monkeypatch):
    run = pretrain.prepare(pretrain.parse_arguments(command("--num_workers", "0")))
    run.lock.release()
    monkeypatch.setattr("training.data.loader.open_source", lambda *_, **__: pytest.fail("opened again"))
    for _ in range(2):
        assert next(run.data.fresh_pass(Purpose.FIT_PASS))["reader"] == 0
    assert run.data.next()["reader"] == 0


def test_what_all_processes_have_together_takes_one_exchange():
    """Seconds, clips and samples of both, and the losses by name."""
    exchanges = []
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    accelerator.reduce = lambda values, reduction: exchanges.append(reduction) or 2 * values
    run = SimpleNamespace(accelerator=accelerator)
    run.data = SimpleNamespace(
        seconds=1.5, bad_audio=SimpleNamespace(skipped=3), samples_padded=30_000, samples_real=24_000
    )
    run.loss_sums = {"masked_kl": (torch.tensor(4.0), 2), "loss": (torch.tensor(1.0), 1)}
    losses = {"loss": [2.0, 2.0], "masked_kl": [8.0, 4.0]}
    assert Run.totals(run) == (3.0, 6, 60_000, 48_000, losses) and exchanges == ["sum"]


NO_DROPOUT = ["hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "predictor_dropout"]
WITH_ALL = ["--target_transitions", "true", "--frozen_weight", "0.5", "--mixture_decay", "0.9"]


def without_dropout(command, *options, out):
    config = json.dumps(dict.fromkeys(NO_DROPOUT, 0.0) | {"layerdrop": 0.0})
    return command("--model_config", config, "--layer_check_steps", "5", *WITH_ALL, *options, out=out)


def test_two_processes_give_what_one_gives_with_accumulation(command, tmp_path):
    """Also of kept targets and transitions, and a second time, resumed on the other number of processes."""
    two = start(without_dropout(command, "--num_workers", "1", out="two"), ranks=2)
    in_one_thread(without_dropout(command, "--gradient_accumulation_steps", "2", out="one"))
    errors = two.communicate(timeout=300)[1]
    assert two.returncode == 0, errors[-3000:]
    for said in ("Reading up to", "Mixture of 8 components fitted", "Step 4 is saved: "):
        assert errors.count(said) == 1, errors
    assert "FutureWarning" not in errors
    state = load_loop_state(tmp_path / "two" / "final")
    assert state.processes == 2 and len(state.data["positions"]) == 2
    random_states = load_file(tmp_path / "two" / "final" / "training_state" / "random_states.safetensors")
    assert sorted(random_states) == ["0.cpu", "1.cpu"]
    one, two = (read_history(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in {
            "masked_kl",
            "visible_kl",
            "frozen_kl",
            "gradient_norm",
            "mixture_perplexity",
            "hours_seen",
        } & ours.keys():
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
