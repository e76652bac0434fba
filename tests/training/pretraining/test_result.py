"""Result of a run: one that was killed at its end, one of whose data nothing more can be read."""

import json

import torch
from accelerate import Accelerator
from pretraining_runs import weights

from sjepa_hf import SJepaForPreTraining
from training import pretrain
from training.pretraining.result import predictor_entropy, record


def test_a_run_that_was_killed_at_its_end_gets_its_pictures(pictures, resume, tmp_path):
    final = tmp_path / "out" / "final"
    before = weights(final)
    for path in (final / "training.json", final / "loss.png"):
        path.unlink()
    assert resume() is None
    assert (final / "training.json").is_file()
    for picture in ("loss", "hidden_frames", "effective_rank", "predictor_entropy"):
        assert (final / f"{picture}.png").stat().st_size > 5000
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(final).items())


def test_the_record_names_sources_and_no_folders_above_them(command, noise, tmp_path, monkeypatch):
    monkeypatch.chdir(noise.parents[2])
    source = str(noise.relative_to(noise.parents[2]))
    options = ["--num_workers", "0", "--train_data", source, "--noise_data", source]
    run = pretrain.prepare(pretrain.parse_arguments(command(*options)))
    run.lock.release()
    run.state.step, run.state.seconds_taken = 7, 1800.0
    record(run, tmp_path, 7200.0)
    found = json.loads((tmp_path / "training.json").read_text())
    assert (found["kind"], found["steps"], found["hours_heard"]) == ("pretraining", 7, 2.0)
    assert 0.5 < found["hours_taken"] < 0.6
    assert found["data"]["sources"] == found["settings"]["noise_data"] == [noise.name]


def test_entropy_is_of_the_prediction_at_enough_real_frames(make_config):
    model = SJepaForPreTraining(make_config("log_mel"))
    batch = {"input_values": 0.1 * torch.randn(2, 6480), "attention_mask": torch.ones(2, 6480, dtype=torch.long)}
    batch["attention_mask"][1, 3600:] = 0  # 20 and 11 frames
    batch |= {"masked_positions": torch.arange(0, 20), "visible_positions": torch.arange(20, 31)}
    with torch.no_grad():
        predicted = model.eval()(batch["input_values"], batch["attention_mask"]).logits.softmax(-1).flatten(0, 1)[:31]
    expected = -(predicted * predicted.log2()).sum(1)
    for wanted, batches in ((31, 1), (32, 2), (62, 2), (100, 3)):
        found = predictor_entropy(model, [batch] * 3, wanted, Accelerator(cpu=True))
        torch.testing.assert_close(torch.from_numpy(found), expected.repeat(batches))


def test_a_pass_that_reads_nothing_has_no_entropy(make_config):
    model = SJepaForPreTraining(make_config("log_mel"))
    assert predictor_entropy(model, iter(()), 100, Accelerator(cpu=True)).shape == (0,)
