"""Ranges of settings: whether each lies where it can work, with one sentence that names the first that does not."""

import dataclasses
import math
from collections.abc import Collection, Iterable

from sjepa_hf.frames import SAMPLING_RATE, WINDOW


A_FRAME = WINDOW / SAMPLING_RATE  # seconds
RULES = {
    "at_least_1": (lambda value: value >= 1, "must be at least 1"),
    "at_least_2": (lambda value: value >= 2, "must be at least 2"),
    "positive": (lambda value: value > 0, "must be above 0"),
    "not_negative": (lambda value: value >= 0, "must be at least 0"),
    "a_frame": (lambda value: value >= A_FRAME, f"must be at least {A_FRAME} (one frame)"),
    "seed": (lambda value: 0 <= value < 2**31, "must lie between 0 and 2147483647"),  # each process adds its number
    "share": (lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
    "below_1": (lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
}


def check_ranges(settings: object, **names: str) -> None:
    """
    Check fields of a dataclass; a field that is None or holds a list is checked as far as it goes.

    Args:
        settings: the dataclass.
        names: for each of `RULES`, names of fields with spaces between.

    Raises:
        ValueError: for a field that breaks its rule.
    """
    for rule, fields in names.items():
        holds, words = RULES[rule]
        for name in fields.split():
            value = getattr(settings, name)
            for each in value if isinstance(value, list) else [value]:
                if each is None:
                    continue
                if not holds(each):  # NaN holds nowhere
                    raise ValueError(f"`{name}` {words}, got {each}.")
                if math.isinf(each):
                    raise ValueError(f"`{name}` must be finite, got {each}.")


def check_enough_frames(frames: int, needed: int, name: str = "components") -> None:
    """Raise a ValueError where the field `frames`, what is fitted to, is below the `name` that are to be found."""
    if frames < needed:
        raise ValueError(f"`frames` is {frames}: {needed} `{name}` need at least as many.")


def refuse_unread(settings: object, names: str, why: str) -> None:
    """Raise a ValueError for a field among `names`, with spaces between, that is given and would not be read."""
    for name in names.split():
        if getattr(settings, name):
            raise ValueError(f"`{name}` {why}, or leave it out.")


def check_choice(settings: object, name: str, choices: Iterable[str]) -> None:
    """Raise a ValueError where a field holds none of `choices`."""
    value = getattr(settings, name)
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(choices)}.")


def check_hub(settings: object, asked: Collection[str] = ()) -> None:
    """Raise a ValueError for a field of what goes to the Hub, set or `asked` for, where nothing goes there."""
    for field in dataclasses.fields(settings):
        name = field.name
        given = name in asked or getattr(settings, name) != field.default
        if name.startswith("hub_") and given and not settings.push_to_hub:
            raise ValueError(f"`{name}` has no effect without `push_to_hub`: set that to true, or leave it out.")
