import math

import numpy as np
import pytest
import torch
from apple_gpu import AppleGpu
from sklearn.metrics import mutual_info_score

from training.evaluation.phone_information import JointCounts, information_share, of_other_clips


def test_information_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    phones = random.integers(0, 5, 400)
    components = (phones + random.integers(0, 3, 400)) % 7
    counts = JointCounts(5, 7)
    one_hot = torch.eye(7)[torch.from_numpy(components)]
    for part in (slice(0, 150), slice(150, 400)):
        counts.add(torch.from_numpy(phones[part]), torch.from_numpy(phones[part][::-1].copy()), one_hot[part])
    found = counts.result()
    expected = mutual_info_score(phones, components) / mutual_info_score(phones, phones)
    assert found.hard == pytest.approx(expected) and found.soft == pytest.approx(expected)
    assert found.entropy_bits == 0 and 5 < found.components_used <= 7
    turned = np.concatenate([phones[149::-1], phones[:149:-1]])
    chance = mutual_info_score(turned, components) / mutual_info_score(phones, phones)
    assert found.hard_chance == pytest.approx(chance) and found.soft_chance == pytest.approx(chance)
    assert chance < 0.1 < expected


def test_few_frames_seem_to_know_phones_of_other_clips():
    """Components drawn at random: 60 of 80 frames have one of their own."""
    random, clips = torch.Generator().manual_seed(0), [torch.arange(40) % 4, torch.arange(1, 41) % 4]
    assert [part.tolist() for part in of_other_clips(clips)] == [clips[1].tolist(), clips[0].tolist()]
    assert [part.tolist() for part in of_other_clips([torch.tensor([1, 2, 3]), torch.tensor([4])])] == [[4, 4, 4], [1]]
    assert [part.tolist() for part in of_other_clips(list(torch.arange(6).split([1, 2, 3])))] == [
        [1],
        [3, 4],
        [0, 1, 2],
    ]
    with pytest.raises(ValueError, match="A single clip has phones: .* needs two"):
        of_other_clips([clips[0], clips[0][:0]])
    counts = JointCounts(4, 300)
    for said, others in zip(clips, of_other_clips(clips)):
        counts.add(said, others, torch.eye(300)[torch.randint(300, (40,), generator=random)])
    found = counts.result()
    assert found.hard > 0.8 and abs(found.hard - found.hard_chance) < 0.1


def test_a_single_phone_has_no_information_to_share():
    assert math.isnan(information_share(torch.tensor([[0.25, 0.75]])))


def test_soft_targets_that_say_nothing_know_nothing():
    counts = JointCounts(2, 4)
    counts.add(torch.tensor([0, 1] * 50), torch.tensor([1, 0] * 50), torch.full((100, 4), 0.25))
    found = counts.result()
    assert found.soft == pytest.approx(0, abs=1e-9)
    assert found.entropy_bits == pytest.approx(2) and found.components_used == pytest.approx(4)
    assert information_share(torch.eye(3) / 3) == pytest.approx(1)
    independent = [a.softmax(0).outer(b.softmax(0)) for a, b in torch.randn(50, 2, 5, dtype=torch.float64)]
    assert min(map(information_share, independent)) == 0, "rounding leaves nothing below"


def test_the_largest_component_of_soft_targets_knows_more_than_they_do():
    counts, phones = JointCounts(2, 2), torch.tensor([0, 1] * 50)
    counts.add(phones, phones, torch.tensor([[0.75, 0.25], [0.25, 0.75]])[phones])
    found, soft = counts.result(), 1 - (2 - 0.75 * math.log2(3))
    assert (found.hard, found.hard_chance) == pytest.approx((1, 1))
    assert (found.soft, found.soft_chance) == pytest.approx((soft, soft))


@pytest.mark.parametrize("seed", range(20))
def test_information_is_never_negative(seed):
    """Posteriors of almost nothing, as an untrained head has them, sum to 1 in fp32 alone."""
    generator = torch.Generator().manual_seed(seed)
    counts = JointCounts(5, 10)
    said, others = torch.randint(5, (2, 130), generator=generator)
    counts.add(said, others, (1e-6 * torch.randn(130, 10, generator=generator)).softmax(-1))
    assert 0 <= counts.result().soft < 1e-10


def test_posteriors_may_lie_on_a_device_without_float64():
    phones, posteriors = torch.tensor([0, 1] * 50), torch.rand(100, 4).softmax(-1)
    here, there = JointCounts(2, 4), JointCounts(2, 4)
    here.add(phones, phones.flip(0), posteriors)
    with AppleGpu():
        there.add(phones, phones.flip(0), posteriors.to("mps:0"))
    assert there.result() == here.result()
