import numpy as np
import pytest

from training.data.hold_out import held_out


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_the_share_of_single_items_at_random(share):
    drawn = [held_out(np.arange(200), share, seed) for seed in range(100)]
    assert {each.sum() for each in drawn} == {round(200 * share)}
    assert (held_out(np.arange(200), share, 3) == drawn[3]).all() and not (drawn[3] == drawn[4]).all()
    often = np.mean(drawn, 0)  # of each item, over the seeds: as often as any other
    assert abs(often - share).max() < 5 * (share * (1 - share) / 100) ** 0.5


def test_groups_are_whole_and_their_size_counts():
    sizes = np.random.default_rng(0).integers(1, 20, 100)
    groups = np.repeat(np.arange(100), sizes)
    for seed in range(20):
        drawn = held_out(groups, 0.2, seed)
        counts = np.bincount(groups[drawn], minlength=100)
        assert set(counts[counts > 0] - sizes[counts > 0]) == {0}
        assert abs(drawn.sum() - 0.2 * len(groups)) <= max(sizes) / 2


def test_every_label_gives_its_share():
    labels = np.repeat(["a", "b", "c"], [100, 50, 10])
    drawn = held_out(np.arange(160), 0.1, 5, evenly=labels.tolist())
    assert [(labels[drawn] == name).sum() for name in "abc"] == [10, 5, 1]
    rare = np.repeat([f"{n:02}" for n in range(40)], 3)  # none of them could give a tenth of a clip
    drawn = held_out(np.arange(120), 0.1, 5, evenly=rare.tolist())
    assert drawn.sum() == 12 and np.bincount(rare[drawn].astype(int)).max() == 1


def test_the_only_group_of_a_label_stays():
    labels = ["a"] * 20 + [f"only {n}" for n in range(20)]
    for seed in range(5):
        assert held_out(np.arange(40), 0.2, seed, evenly=labels)[20:].sum() == 0
    assert held_out(np.arange(4), 0.1, evenly=["b", "a", "a", "a"]).tolist()[0] is False
    assert held_out(np.arange(3), 0.2, evenly=["a", "b", "c"]).sum() == 1


def test_large_groups_of_one_label_take_nothing_from_another():
    labels = ["music"] * 200 + ["speech"] * 5  # of two long recordings and five short ones
    groups = np.repeat(np.arange(7), [100, 100, 1, 1, 1, 1, 1])
    for seed in range(20):
        drawn = held_out(groups, 0.2, seed, evenly=labels)
        assert drawn[:200].sum() == 0 and drawn[200:].sum() in (1, 2)


def test_each_label_with_two_groups_keeps_one_and_is_near_its_share():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.2, 0.5, 0.9):
        for _ in range(200):
            sizes = [rng.choice([1, 3, 10, 40], rng.integers(2, 6)) for _ in range(6)]
            labels = np.repeat(np.arange(6), [each.sum() for each in sizes])
            groups = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))
            drawn = held_out(groups, share, rng.integers(1000), evenly=labels.tolist())
            for label, own in enumerate(sizes):
                held = drawn[labels == label].sum()
                assert held < own.sum() and held - share * own.sum() <= (own.max() + own.min()) / 2


@pytest.mark.parametrize(("groups", "share", "expected"), [("aab", 0.1, 1), ("ab", 0.9, 1), ("abbb", 0.9, 3)])
def test_neither_side_is_empty(groups, share, expected):
    assert {held_out(np.array(list(groups)), share, seed).sum() for seed in range(10)} == {expected}
    with pytest.raises(ValueError, match="All 3 clips belong together"):
        held_out(np.zeros(3), share)
