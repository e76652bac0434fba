"""Seeds: what is drawn for one purpose, time or run is drawn for no other."""

import torch

from training.common.seeds import Purpose, seed_for


def test_no_two_choices_share_a_seed():
    seeds = [seed_for(seed, purpose, step) for seed in range(3) for purpose in Purpose for step in range(2000)]
    assert len(set(seeds)) == len(seeds)
    assert not set(range(100_000)) & set(seeds), "nor one that users give"


def test_generators_take_them_and_they_stay_what_they_are():
    seeds = [seed_for(0, purpose, 7) for purpose in Purpose]
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    assert seed_for(0, Purpose.FIT, 7) == 446635038625362869, "else runs that are resumed would draw otherwise"
