"""Ranges: the last value that each rule takes and the first that it does not, alone and anywhere in a list."""

import math
from dataclasses import dataclass

import pytest

from training.common.ranges import RULES, check_choice, check_hub, check_ranges, refuse_unread


BOUNDS = {  # what is taken, and what is not
    "at_least_1": ((1, 5), (0, -1)),
    "at_least_2": ((2, 5), (1, 0)),
    "positive": ((1e-9, 3), (0, -1)),
    "not_negative": ((0, 1e-9), (-1e-9, -1)),
    "a_frame": ((0.025, 1), (0.0249, 0)),
    "seed": ((0, 2**31 - 1), (-1, 2**31)),
    "share": ((0, 1, 0.5), (-1e-9, 1.001)),
    "below_1": ((0, 0.999), (1, -1e-9)),
}


@dataclass
class Settings:
    value: object = None
    hub_name: str | None = None
    push_to_hub: bool = False


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_its_bounds(rule):
    taken, refused = BOUNDS[rule]
    for value in (None, [], [None], *taken, list(taken)):
        check_ranges(Settings(value), **{rule: "value"})
    for value in (*refused, math.nan):
        for given in (value, [*taken, value]):
            with pytest.raises(ValueError, match=rf"^`value` must .*, got {value}\.$"):
                check_ranges(Settings(given), **{rule: "hub_name value"})


@pytest.mark.parametrize("rule", ["at_least_1", "at_least_2", "positive", "not_negative", "a_frame"])
def test_what_has_no_end_is_refused(rule):
    with pytest.raises(ValueError, match=r"^`value` must be finite, got inf\.$"):
        check_ranges(Settings(math.inf), **{rule: "value"})


def test_what_would_not_be_read_is_refused():
    for unset in (None, 0, False, []):
        refuse_unread(Settings(unset), "value hub_name", "is of features")
    with pytest.raises(ValueError, match="^`value` is of features, or leave it out"):
        refuse_unread(Settings(3), "hub_name value", "is of features")
    check_choice(Settings("a"), "value", "ab")
    with pytest.raises(ValueError, match="^`value` is 'c'; choose one of a, b"):
        check_choice(Settings("c"), "value", "ab")


def test_what_is_for_the_hub_needs_it():
    check_hub(Settings())
    check_hub(Settings(hub_name="a", push_to_hub=True), ["hub_name"])
    for settings, asked in ((Settings(hub_name="a"), []), (Settings(), ["hub_name"])):
        with pytest.raises(ValueError, match="^`hub_name` has no effect without `push_to_hub`"):
            check_hub(settings, asked)
