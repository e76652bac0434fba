"""Seeds of a run's random choices: one for each purpose and number, all made of the one that the user gives."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn. The numbers belong to saved runs: new purposes get new ones."""

    FIT_PASS = 1  # order of the clips that a mixture is fitted on
    FIT = 2  # which of their frames, and where k-means begins
    HEAD = 3  # the head's new last layer
    LAYER_RANKS = 4  # frames that effective ranks are measured on
    ENTROPY_PASS = 5  # order of the clips in the histogram of predictor entropy


def seed_for(seed: int, purpose: Purpose, number: int) -> int:
    """
    A seed below 2**63 that no other purpose, number or run seed gets, as far as a hash of 63 bits can promise.

    Args:
        seed (`int`): of the run, at least 0.
        purpose (`Purpose`): what is drawn.
        number (`int`): which time it is drawn, e.g. the step.
    """
    return draw(seed, purpose, number) >> 1


def draw(*words: int) -> int:
    """An integer below 2**64 that other words do not give, as far as a hash of 64 bits can promise."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
