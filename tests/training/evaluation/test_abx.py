"""ABX against a plain reference, and on tokens whose answer is known."""

import numpy as np
import pytest

from training.evaluation import abx as module
from training.evaluation.abx import Cell, Token, abx, distances, find_cells


def naive_distance(x, y):
    """The least mean over paths of the least cost, from a table of (cost, steps)."""
    table = {}
    for i in range(len(x)):
        for j in range(len(y)):
            before = [table[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in table] or [(0, 0)]
            cost, steps = min(before)
            table[i, j] = (cost + int(x[i] != y[j]), steps + 1)
    cost, steps = table[len(x) - 1, len(y) - 1]
    return cost / steps


def naive_abx(tokens, across):
    cells = {}
    for ix, x in enumerate(tokens):
        for ia, a in enumerate(tokens):
            for b in tokens:
                if ix == ia or not x.context == a.context == b.context or x.category != a.category:
                    continue
                if b.category == a.category or a.speaker != b.speaker or (x.speaker != a.speaker) != across:
                    continue
                to_a, to_b = naive_distance(x.units, a.units), naive_distance(x.units, b.units)
                key = (a.context, x.speaker, a.speaker, a.category, b.category)
                cells.setdefault(key, []).append(0.5 * (to_a == to_b) + (to_a > to_b))
    return np.mean([np.mean(found) for found in cells.values()]), len(cells), sum(map(len, cells.values()))


def random_tokens(count=24):
    rng = np.random.default_rng(0)
    return [
        Token(
            rng.integers(0, 3, rng.integers(1, 7)), "pt"[rng.integers(2)], "ab"[rng.integers(2)], "xy"[rng.integers(2)]
        )
        for _ in range(count)
    ]


def test_distances_are_those_of_the_plain_table():
    tokens = random_tokens()
    pairs = [(x.units, y.units) for x in tokens for y in tokens]
    np.testing.assert_allclose(distances(pairs), [naive_distance(x, y) for x, y in pairs])


@pytest.mark.parametrize("across", [False, True])
def test_the_error_is_that_of_the_plain_reference(across, monkeypatch):
    tokens = random_tokens()
    monkeypatch.setattr(module, "MAX_GROUP", 100)
    found = abx(tokens, across)
    error, cells, triplets = naive_abx(tokens, across)
    assert (found.cells, found.triplets) == (cells, triplets) and found.error == pytest.approx(error)
    monkeypatch.setattr(module, "MAX_GROUP", 2)
    assert abx(tokens, across).triplets < triplets
    monkeypatch.setattr(module, "MAX_CELLS", 1)
    assert abx(tokens, across).cells == 1


def test_perfect_units_make_no_error_and_useless_ones_are_at_chance():
    def tokens(units):
        return [Token(np.full(4, units(n, c)), str(c), str(n % 3)) for c in range(3) for n in range(12)]

    for across in (False, True):
        assert abx(tokens(lambda n, c: c), across).error == 0
        assert abx(tokens(lambda n, c: 0), across).error == 0.5
    assert abx(tokens(lambda n, c: n % 3), across=True).error == 0.5, "they tell speakers alone"
    assert abx([Token(np.zeros(3), "a")], False) is None


def test_a_cell_needs_two_tokens_of_its_own_and_one_of_another_category():
    first, second, other = Token(np.zeros(1), "p", "a"), Token(np.zeros(1), "p", "b"), Token(np.zeros(1), "t", "a")
    rng = np.random.default_rng(0)
    assert find_cells([first, other], False, rng) == []
    assert find_cells([first, other, first], False, rng) == [Cell([0, 2], [0, 2], [1])]
    assert find_cells([first, other, second], True, rng) == [Cell([2], [0], [1])], "X is of a voice without any B"
