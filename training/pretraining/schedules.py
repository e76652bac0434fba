"""Schedules: what changes over a run, as plain functions of the step."""

import math
from collections.abc import Sequence
from typing import Literal

from training.pretraining.arguments import Arguments


class Schedule:
    """
    What a run's settings say of each step, counted from 0 over both phases.

    Attributes:
        total_steps (`int`): optimizer steps of both phases.
    """

    def __init__(self, arguments: Arguments):
        self.run, self.targets = arguments.run, arguments.targets
        self.total_steps = self.run.phase1_steps + self.run.phase2_steps

    def phase(self, step: int) -> int:
        """1 while the targets come from the frozen mixture, then 2."""
        return 1 if step < self.run.phase1_steps else 2

    def late(self, step: int) -> bool:
        """Whether phase 2 has come so far that only masked frames count, and augmentation is off."""
        boundary = self.run.phase1_steps + self.run.masked_only_after * self.run.phase2_steps
        return self.phase(step) == 2 and step >= boundary

    def masked_only(self, step: int) -> bool:
        """Whether visible frames are left out of the loss."""
        return self.late(step) or not self.run.visible_loss

    def learning_rate(self, step: int) -> float:
        """Each phase has its own warm-up and shape."""
        name = f"phase{self.phase(step)}"
        peak, num_steps, warmup_steps, shape, final_factor, decay_steps = (
            getattr(self.run, f"{name}_{setting}")
            for setting in ("learning_rate", "steps", "warmup_steps", "schedule", "final_factor", "decay_steps")
        )
        return peak * learning_rate_factor(
            step if name == "phase1" else step - self.run.phase1_steps,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
            shape=shape,
            final_factor=final_factor,
            decay_steps=decay_steps,
        )

    def frozen_weight(self, step: int) -> float:
        """Share of the frozen targets in the loss of a step of phase 2."""
        start, end = self.targets.frozen_weight, self.targets.frozen_weight_end
        return start + (step - self.run.phase1_steps) / self.run.phase2_steps * (end - start)

    def ema_decay(self, step: int) -> float:
        """Decay of the EMA encoder, which follows the student from phase 2 on."""
        steps = max(step - self.run.phase1_steps, 0)
        return ema_decay(steps, self.targets.ema_decays, self.targets.ema_switch_steps)


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
