import torch

from benchmarks.steps import turns
from benchmarks.steps.turns import ratio, take_turns


def test_each_runs_in_its_turn(monkeypatch):
    order = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(len(order)))  # a run takes a second
    seconds = take_turns(runs, 3, torch.device("cpu"), runs_per_turn=2)
    assert order == ["a", "a", "b", "b"] * 3
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}, "of one run, not of a turn"


def test_a_row_is_compared_with_the_first_one_turn_by_turn():
    assert ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0]) == "2.00 (1.50 to 4.00)"
    assert ratio([1.0], [1.0]) == "1.00 (1.00 to 1.00)"
