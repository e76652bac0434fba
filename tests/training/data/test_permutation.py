import numpy as np
import pytest

from training.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 100_003])
def test_everything_comes_once(size):
    order = Permutation(size, 0, 1)(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))
    part = np.array([size - 1, 0, size // 2])
    assert Permutation(size, 0, 1)(part).tolist() == order[part].tolist(), "any element can be asked for alone"


def test_words_decide():
    orders = {tuple(Permutation(30, 7, word)(np.arange(30))) for word in range(50)}
    assert len(orders) == 50


@pytest.mark.parametrize("size", [3, 8, 45, 1000])
def test_every_item_comes_to_every_place_equally_often(size):
    draws = 1000
    first = np.array([Permutation(size, word)(np.array([0, size - 1])) for word in range(draws)])
    for column in first.T:
        counts = np.bincount(column, minlength=size)
        chi_squared = ((counts - draws / size) ** 2 / (draws / size)).sum()
        assert chi_squared < size - 1 + 5 * np.sqrt(2 * size)


def test_neighbours_are_scattered():
    order = Permutation(10**7, 3)(np.arange(5000)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(order.mean() / 10**7 - 0.5) < 0.02 and abs(order.std() / 10**7 - 12**-0.5) < 0.02
