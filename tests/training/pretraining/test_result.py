"""Result of a run that was killed at its end."""

import torch
from pretraining_runs import (
    weights,
)


def test_a_run_that_was_killed_at_its_end_gets_its_pictures(pictures, resume, tmp_path):
    final = tmp_path / "out" / "final"
    before = weights(final)
    for path in (final / "training.json", final / "loss.png"):
        path.unlink()
    assert resume() is None
    assert (final / "training.json").is_file() and (final / "loss.png").is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(final).items())
