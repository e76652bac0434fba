"""Learning rate and encoder-average decay as plain functions of the step."""

import math
from collections.abc import Sequence
from typing import Literal


def learning_rate_factor(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    shape: Literal["linear", "cosine", "constant"],
    final_factor: float = 0.0,
    decay_steps: int | None = None,
) -> float:
    """Fraction of a phase's peak learning rate at a step of that phase.

    It rises linearly to 1 over the first `warmup_steps` steps (step 0 already takes 1 / `warmup_steps` of the peak),
    then follows `shape` down to `final_factor`, reached after the last step. Each phase has a schedule of its own: one
    over the whole run would leave the second phase with a rate near zero. With `decay_steps` the rate stays at its
    peak until so many steps before the end (warmup-stable-decay).

    Args:
        step: optimizer steps already taken in this phase, from 0.
        num_steps: optimizer steps of the phase.
        warmup_steps: those of them that warm up.
        shape: decay after the warm-up; "constant" stays at 1.
        final_factor: fraction of the peak at the end of the phase, 0 to 1.
        decay_steps: last steps of the phase, over which the rate falls; None: all after the warm-up.

    Raises:
        ValueError: if an argument is out of range.
    """
    if shape not in ("linear", "cosine", "constant"):
        raise ValueError(f'shape must be "linear", "cosine" or "constant", got {shape!r}.')
    if step < 0 or not 0 <= warmup_steps <= num_steps:
        raise ValueError(
            f"warmup_steps must lie between 0 and num_steps, and step be at least 0; got warmup_steps={warmup_steps}, "
            f"num_steps={num_steps}, step={step}."
        )
    if decay_steps is not None and not 0 <= decay_steps <= num_steps - warmup_steps:
        raise ValueError(
            "decay_steps must lie between 0 and num_steps - warmup_steps "
            f"({num_steps - warmup_steps}), got {decay_steps}."
        )
    if not 0.0 <= final_factor <= 1.0:
        raise ValueError(f"final_factor must lie between 0 and 1, got {final_factor}.")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if shape == "constant":
        return 1.0
    start = warmup_steps if decay_steps is None else num_steps - decay_steps
    progress = min(max((step - start) / max(num_steps - start, 1), 0.0), 1.0)
    remaining = 1.0 - progress if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_factor + (1.0 - final_factor) * remaining


def ema_decay(step_in_phase: int, decays: Sequence[float] = (0.999, 0.9999), switch_every: int = 20000) -> float:
    """Decay of the encoder average at a step of the second phase: `decays` in turn, each for `switch_every` steps.

    Args:
        step_in_phase: optimizer steps already taken in this phase, from 0.
        decays: decays between 0 and 1, the first one first.
        switch_every: steps between two changes.

    Raises:
        ValueError: if an argument is out of range.
    """
    if step_in_phase < 0 or switch_every < 1:
        raise ValueError(
            f"step_in_phase must be at least 0 and switch_every at least 1, got {step_in_phase} and {switch_every}."
        )
    if not decays or not all(0.0 <= decay <= 1.0 for decay in decays):
        raise ValueError(f"decays must hold at least one value, each between 0 and 1, got {tuple(decays)}.")
    return decays[step_in_phase // switch_every % len(decays)]
