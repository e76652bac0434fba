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
    assert (final / "training.json").is_file() and (final / "loss.png").is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(final).items())


def test_the_record_names_sources_and_no_folders_above_them(command, noise, tmp_path, monkeypatch):
    monkeypatch.chdir(noise.parents[2])
    source = str(noise.relative_to(noise.parents[2]))
    options = ["--num_workers", "0", "--train_data", source, "--noise_data", source]
    run = pretrain.prepare(pretrain.parse_arguments(command(*options)))
    run.lock.release()
    record(run, tmp_path, 7200.0)
    found = json.loads((tmp_path / "training.json").read_text())
    assert found["data"]["sources"] == found["settings"]["noise_data"] == [noise.name]


def test_a_pass_that_reads_nothing_has_no_entropy(make_config):
    model = SJepaForPreTraining(make_config("log_mel"))
    assert predictor_entropy(model, iter(()), 100, Accelerator(cpu=True)).shape == (0,)
