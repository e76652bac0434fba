"""Schedules: what changes over a run, as plain functions of the step."""

import math
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

    def in_final_stage(self, step: int) -> bool:
        """
        Whether `masked_only_after` of phase 2 has passed: then only masked frames count in the loss, and visible ones
        are heard as they are, without augmentation and `mel_mask`.
        """
        boundary = self.run.phase1_steps + self.run.masked_only_after * self.run.phase2_steps
        return self.phase(step) == 2 and step >= boundary

    def masked_only(self, step: int) -> bool:
        """Whether visible frames are left out of the loss."""
        return self.in_final_stage(step) or not self.run.visible_loss

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

    def ema_decay(self, step: int) -> float:
        """Decay of the EMA encoder, which follows the student from phase 2 on."""
        decays = self.targets.ema_decays
        turn = max(step - self.run.phase1_steps, 0) // self.targets.ema_switch_steps
        return decays[turn % len(decays)]


def learning_rate_factor(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    shape: Literal["linear", "cosine", "constant"],
    final_factor: float,
    decay_steps: int | None,
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
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if shape == "constant":
        return 1.0
    start = warmup_steps if decay_steps is None else num_steps - decay_steps
    progress = min(max((step - start) / max(num_steps - start, 1), 0.0), 1.0)
    remaining = 1.0 - progress if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_factor + (1.0 - final_factor) * remaining
