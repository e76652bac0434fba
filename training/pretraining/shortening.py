"""A phase that the command line cuts short: its warm-up and decay, made for more steps, shrink with it."""

import argparse
import logging
from collections.abc import Sequence

from sjepa_hf.command import once


logger = logging.getLogger(__name__)

PARTS = ("steps", "warmup_steps", "decay_steps")


def shortened(argv: Sequence[str], recipe: dict) -> list[str]:
    """
    Options that a command line needs beside its own, and a log line about each: where it names the steps of a phase
    and these are fewer than the recipe's warm-up and decay together, both shrink in proportion. Where the command line
    names a warm-up or decay itself, nothing is changed, and what does not fit is refused later.

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
        names = [f"phase{phase}_{part}" for part in PARTS]
        steps, *others = (named[name] for name in names)
        whole, warmup, decay = (recipe[name] or 0 for name in names)
        if steps is None or not steps.isdecimal() or any(other is not None for other in others):
            continue
        if not all(isinstance(each, int) for each in (whole, warmup, decay)):
            continue
        if not 0 < int(steps) < min(whole, warmup + decay):
            continue
        for name, before in zip(names[1:], (warmup, decay), strict=True):
            if before:
                now = before * int(steps) // whole
                found += [f"--{name}", str(now)]
                said = "`%s` is %d, not %d, in proportion to %s of %d steps: --%s gives another."
                logger.log(once(logging.WARNING), said, name, now, before, steps, whole, name)
    return found
