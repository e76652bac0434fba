import pytest
import torch

from sjepa_hf.soft_targets import check_distributions, soft_target_divergence


def test_golden_divergence(golden_targets):
    divergence = soft_target_divergence(golden_targets["kl.logits"], golden_targets["kl.targets"])
    torch.testing.assert_close(divergence.mean(), golden_targets["kl.batchmean"][0], atol=1e-6, rtol=1e-6)


def test_divergence_of_one_hot_targets_is_cross_entropy():
    logits, labels = torch.randn(20, 10), torch.randint(10, (20,))
    divergence = soft_target_divergence(logits, torch.nn.functional.one_hot(labels, 10).float())
    torch.testing.assert_close(divergence, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_rows_that_are_no_distributions_are_refused():
    rows = torch.randn(20, 10).softmax(-1)
    for fair in (
        rows,
        rows.bfloat16(),
        rows.half(),
        rows[:0],
        torch.full((2, 10), torch.nan),
    ):  # NaN: left to the loss
        check_distributions("targets", fair)
    for wrong in (1.1 * rows, torch.cat([rows, torch.zeros(1, 10)]), torch.eye(10) * 3 - 0.2):
        with pytest.raises(ValueError, match="`targets` must be posteriors"):
            check_distributions("targets", wrong)
