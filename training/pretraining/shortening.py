"""A phase that the command line makes shorter: its warm-up and decay, made for more steps, shrink with it."""

import argparse
import logging
from collections.abc import Sequence

from sjepa_hf.command import once


logger = logging.getLogger(__name__)

PARTS = ("steps", "warmup_steps", "decay_steps")


def shortened(argv: Sequence[str], recipe: dict) -> list[str]:
    """
    Options that a command line needs beside its own, and a log line about each: where it gives a phase fewer steps
    than the recipe, the recipe's warm-up and decay shrink in proportion, each unless the command line names it.

    Args:
        argv: the command line.
        recipe: `phaseN_steps`, `phaseN_warmup_steps` and `phaseN_decay_steps` (may be None) without it.
    """
    chooser, found = argparse.ArgumentParser(add_help=False, allow_abbrev=False), []
    for phase in (1, 2):
        for part in PARTS:
            chooser.add_argument(f"--phase{phase}_{part}")
    named = vars(chooser.parse_known_args(list(argv))[0])
    for phase in (1, 2):
        length, *names = (f"phase{phase}_{part}" for part in PARTS)
        steps, whole = named[length], recipe[length]
        if steps is None or not steps.isdecimal() or not isinstance(whole, int) or not 0 < int(steps) < whole:
            continue
        for name in names:
            before = recipe[name]
            if named[name] is not None or not isinstance(before, int) or not 0 < before <= whole:
                continue
            now = before * int(steps) // whole
            found += [f"--{name}", str(now)]
            said = "`%s` is %d, not %d, in proportion to %s of %d steps: --%s gives another."
            logger.log(once(logging.WARNING), said, name, now, before, steps, whole, name)
    return found
