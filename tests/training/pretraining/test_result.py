"""Result of a run: one that was killed at its end, one of whose data nothing more can be read."""

import torch
from accelerate import Accelerator
from pretraining_runs import weights

from sjepa_hf import SJepaForPreTraining
from training.pretraining.result import predictor_entropy


def test_a_run_that_was_killed_at_its_end_gets_its_pictures(pictures, resume, tmp_path):
    final = tmp_path / "out" / "final"
    before = weights(final)
    for path in (final / "training.json", final / "loss.png"):
        path.unlink()
    assert resume() is None
    assert (final / "training.json").is_file() and (final / "loss.png").is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(final).items())


def test_a_pass_that_reads_nothing_has_no_entropy(make_config):
    model = SJepaForPreTraining(make_config("log_mel"))
    assert predictor_entropy(model, iter(()), 100, Accelerator(cpu=True)).shape == (0,)
