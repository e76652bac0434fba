"""A phase that the command line makes shorter: its warm-up and decay, made for more steps, shrink with it."""

import logging
from collections.abc import Mapping
from typing import Any

from sjepa_hf.command import once


logger = logging.getLogger(__name__)

PARTS = ("steps", "warmup_steps", "decay_steps")


def shortened(asked: Mapping[str, Any], recipe: dict) -> dict[str, int]:
    """
    What of a recipe is another for a command line, with a log line about each: where that gives a phase fewer steps
    than the recipe, the recipe's warm-up and decay shrink in proportion, each unless the command line names it.

    Args:
        asked: what the command line sets.
        recipe: `phaseN_steps`, `phaseN_warmup_steps` and `phaseN_decay_steps` (may be None) without it.
    """
    changed = {}
    for phase in (1, 2):
        length, *names = (f"phase{phase}_{part}" for part in PARTS)
        steps, whole = asked.get(length, ""), recipe[length]
        if not steps.isdecimal() or not isinstance(whole, int) or not 0 < int(steps) < whole:
            continue
        for name in names:
            before = recipe[name]
            if name in asked or not isinstance(before, int) or not 0 < before <= whole:
                continue
            now = before * int(steps) // whole
            changed[name] = now
            said = "`%s` is %d, not %d, in proportion to %s of %d steps: --%s gives another."
            logger.log(once(logging.WARNING), said, name, now, before, steps, whole, name)
    return changed
