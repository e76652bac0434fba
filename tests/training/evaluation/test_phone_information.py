import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from training.evaluation.phone_information import JointCounts, information_share


def test_information_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    phones = random.integers(0, 5, 400)
    components = (phones + random.integers(0, 3, 400)) % 7
    counts = JointCounts(5, 7)
    one_hot = torch.eye(7)[torch.from_numpy(components)]
    for part in (slice(0, 150), slice(150, 400)):
        counts.add(torch.from_numpy(phones[part]), one_hot[part])
    found = counts.result()
    expected = mutual_info_score(phones, components) / mutual_info_score(phones, phones)
    assert found.hard == pytest.approx(expected) and found.soft == pytest.approx(expected)
    assert found.entropy_bits == 0 and 5 < found.components_used <= 7


def test_soft_targets_that_say_nothing_know_nothing():
    counts = JointCounts(2, 4)
    counts.add(torch.tensor([0, 1] * 50), torch.full((100, 4), 0.25))
    found = counts.result()
    assert found.soft == pytest.approx(0, abs=1e-9)
    assert found.entropy_bits == pytest.approx(2) and found.components_used == pytest.approx(4)
    assert information_share(torch.eye(3) / 3) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(20))
def test_information_is_never_negative(seed):
    """Posteriors of almost nothing, as an untrained head has them, sum to 1 in fp32 alone."""
    generator = torch.Generator().manual_seed(seed)
    counts = JointCounts(5, 10)
    counts.add(
        torch.randint(5, (130,), generator=generator), (1e-6 * torch.randn(130, 10, generator=generator)).softmax(-1)
    )
    assert 0 <= counts.result().soft < 1e-10
