"""Resuming a run: which one, what may differ from the run that wrote it, what becomes of the others."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

from accelerate import Accelerator
from filelock import FileLock
from transformers.utils import CONFIG_NAME

from sjepa_hf.command import once
from sjepa_hf.contents import RECORD
from sjepa_hf.opening import open_config
from training.common import output_directory
from training.common.output_directory import FINAL, checkpoints, released_if_refused, set_aside, step_of
from training.common.processes import of_first
from training.common.resuming import LATEST, NEWEST, named_checkpoint
from training.pretraining.arguments import Arguments, check_unchanged
from training.pretraining.checkpoint_layout import (
    STATE_DIRECTORY,
    LoopState,
    damage,
    has_teacher,
    load_arguments,
    load_loop_state,
    restoring,
)
from training.pretraining.schedules import Schedule


logger = logging.getLogger(__name__)

# What becomes of a setting that differs from the checkpoint's, in phase 1 and in phase 2; all others may differ.
REFUSED, PUT_BACK = "refused", "put back"
FIXED = {
    "target_transitions": (REFUSED, REFUSED),
    **dict.fromkeys(("phase1_features", "phase1_components"), (REFUSED, PUT_BACK)),
    **dict.fromkeys(("initial_checkpoint", "fit_frames", "fit_hours"), (PUT_BACK, PUT_BACK)),
    **dict.fromkeys(("phase1_learning_rate", "phase1_warmup_steps", "phase1_schedule"), (None, PUT_BACK)),
    **dict.fromkeys(("phase1_final_factor", "phase1_decay_steps", "phase1_temperature"), (None, PUT_BACK)),
    **dict.fromkeys(("seed_frames", "start_layer"), (None, PUT_BACK)),
    **dict.fromkeys(("phase2_components", "target_layers", "target_instance_norm", "target_dims"), (None, REFUSED)),
}
OF_PHASE_1_TARGETS = ("phase1_features", "phase1_temperature")  # where phase 2 keeps these: as in phase 1
# `model_config`: compared with the model itself
OF_THIS_START = ("resume_from_checkpoint", "model_config", "output_dir", "dry_run")


def claim(output_dir: Path, lock: FileLock, resuming: bool, dry_run: bool = False) -> None:
    """
    [`output_directory.claim`], and a look at whether an earlier run lies there.

    Raises:
        ValueError: if it cannot be written to, another run holds it, or a new run would mix with an earlier one.
    """
    output_directory.claim(output_dir, lock, dry_run)
    with released_if_refused(lock):
        if not resuming and (output_dir / CONFIG_NAME).exists():
            raise ValueError(f"`output_dir` {output_dir} holds a model: name another directory.")
        if not resuming and (checkpoints(output_dir) or (output_dir / FINAL / RECORD).exists()):
            raise ValueError(
                f"`output_dir` {output_dir} holds an earlier run: name another directory, or go on from its"
                " checkpoints (if there are any) with --resume_from_checkpoint latest."
            )


class AlreadyFinished(Exception):
    """The run that is to be resumed has come to its end; the message says so."""


def find_start(arguments: Arguments, accelerator: Accelerator, lock: FileLock) -> tuple[Path | None, LoopState]:
    """
    The checkpoint that a run is resumed from, with its loop state; for a new run None and a new state. Settings
    that have had their effect are put back, as `compare_settings` says. Every process must call it.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or the settings do not fit it.
        AlreadyFinished: if the run has come to its end.
    """
    run, output_dir = arguments.run, Path(arguments.run.output_dir)
    checkpoint = None
    if run.resume_from_checkpoint is not None:
        checkpoint = of_first(lambda: find_checkpoint(output_dir, run.resume_from_checkpoint), accelerator)
    if checkpoint is None:
        return None, LoopState()
    state, total = load_loop_state(checkpoint), Schedule(arguments).total_steps
    if is_finished(output_dir, checkpoint, state.step, total) and not run.push_to_hub:
        lock.release()
        raise AlreadyFinished(f"{checkpoint} is finished: it has taken {state.step} steps, and {total} are asked for.")
    if state.step > total:
        raise ValueError(
            f"`phase1_steps` and `phase2_steps` are {total} steps together, but {checkpoint} has taken {state.step}:"
            " ask for more, or resume from an earlier one."
        )
    compare_settings(checkpoint, arguments, state)
    return checkpoint, state


def find_checkpoint(output_dir: Path, asked: str) -> Path | None:
    """
    The checkpoint to resume from: a path, `"latest"` in `output_dir`, or with `"auto"` the latest if there is any. Of
    those in `output_dir`, `final` among them, the newest whole one; damaged ones are named and passed over.

    Raises:
        ValueError: if there is none, or the one that is named is damaged.
    """
    if asked not in NEWEST:
        path = named_checkpoint(asked)
        if not (path / STATE_DIRECTORY).is_dir():
            raise ValueError(
                f"{asked} is not a training checkpoint (no {STATE_DIRECTORY}): to start a new run from its weights,"
                " give it as `initial_checkpoint`."
            )
        if problem := damage(path):
            raise ValueError(f"`resume_from_checkpoint` {asked} is damaged: {problem}. Take an earlier one.")
        return path
    there = checkpoints(output_dir)
    newest = next(filter(is_undamaged, reversed(there)), None)
    final = output_dir / FINAL
    if (final / STATE_DIRECTORY).is_dir():
        there.append(final)
        if is_undamaged(final) and (newest is None or load_loop_state(final).step >= step_of(newest)):
            newest = final
    if newest is None and (there or asked == LATEST):
        in_the_way = there or (final / RECORD).exists()
        way_out = "name another `output_dir`, or move what lies there away" if in_the_way else "start without resuming"
        raise ValueError(f"There is no complete checkpoint in {output_dir} to resume from: {way_out}.")
    return newest


def is_undamaged(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are as they were written; if not, the log says what is wrong."""
    if problem := damage(checkpoint):
        logger.warning("%s is damaged and passed over: %s.", checkpoint, problem)
    return problem is None


def is_finished(output_dir: Path, checkpoint: Path, step: int, total_steps: int) -> bool:
    """Whether a checkpoint is the result of this very run, with all that lies beside it."""
    final = output_dir / FINAL
    return checkpoint.resolve() == final.resolve() and step >= total_steps and (final / RECORD).is_file()


def set_aside_after(output_dir: Path, step: int) -> None:
    """
    [`set_aside`] all checkpoints beyond `step`, from which a run goes on, and a result that is beyond it too.

    Raises:
        ValueError: if one cannot be renamed.
    """
    beyond = [path for path in checkpoints(output_dir) if step_of(path) > step]
    final = output_dir / FINAL
    if (final / STATE_DIRECTORY).is_dir() and (damage(final) or load_loop_state(final).step > step):
        beyond.append(final)
    set_aside(beyond, step)


def compare_settings(directory: Path, arguments: Arguments, state: LoopState) -> None:
    """
    Compare the settings of a run with those that its checkpoint was written with. What differs is named in the log;
    what has had its effect already is put back, so that no later record is false.

    Args:
        directory: the checkpoint.
        arguments: of the run that goes on from it; changed in place.
        state: the checkpoint's loop state.

    Raises:
        ValueError: where the mixture would meet other features than it was fitted to, or the model would have to be
            another.
    """
    before = load_arguments(directory)
    with restoring(directory, "settings"):
        chosen_before = json.loads(before["model_config"])
        old_schedule = Schedule(SimpleNamespace(run=SimpleNamespace(**before), targets=SimpleNamespace(**before)))
        old_rate = old_schedule.learning_rate(min(state.step, old_schedule.total_steps - 1))
        kept = before["frozen_weight"] > 0 or before.get("frozen_weight_end", 0) > 0  # the latter in old checkpoints
    in_phase_2, keeps = has_teacher(directory), arguments.targets.keeps_frozen
    check_phase(directory, before, arguments, state.step)
    if in_phase_2 and keeps and not kept:
        raise ValueError(f"`frozen_weight` is above 0, but {directory} has not kept the mixture of phase 1.")
    for group in vars(arguments).values():
        for name in (field.name for field in fields(group)):
            value = json.loads(json.dumps(getattr(group, name)))
            if name not in before or before[name] == value or name in OF_THIS_START:
                continue
            as_in_phase_2 = in_phase_2 and not (keeps and name in OF_PHASE_1_TARGETS)
            then = FIXED.get(name, (None, None))[as_in_phase_2]
            if then == REFUSED:
                raise ValueError(
                    f"`{name}` is {value!r}, but the mixture of {directory} was fitted with {before[name]!r}: go on"
                    " with that, or start a new run from its weights with `initial_checkpoint`."
                )
            if then == PUT_BACK:
                said = "`%s` stays %r, as it has had its effect: %r is too late."
                logger.log(once(logging.WARNING), said, name, before[name], value)
                setattr(group, name, before[name])
            else:
                said = "Changed since the checkpoint: `%s` from %r to %r."
                logger.log(once(logging.WARNING), said, name, before[name], value)
    check_same_model(directory, arguments, chosen_before)
    tell_other_rate(arguments, state.step, old_rate)


def check_phase(directory: Path, before: dict, arguments: Arguments, step: int) -> None:
    """Raise a ValueError where the new `phase1_steps` puts the checkpoint's step into the other phase."""
    steps = arguments.run.phase1_steps
    if has_teacher(directory):
        if steps != before["phase1_steps"] or step < steps:
            raise ValueError(f"`phase1_steps` is {steps}, but {directory} is of phase 2: leave it as it was.")
    elif steps < step:
        raise ValueError(
            f"`phase1_steps` is {steps}, but {directory} has taken {step} of them: {step} begins phase 2 here."
        )


def check_same_model(directory: Path, arguments: Arguments, chosen_before: dict) -> None:
    """Raise a ValueError where `model_config` asks for another model than the checkpoint's, which goes on as it is."""
    if arguments.model.initial_checkpoint:
        return  # then `model_config` never had a say
    names = sorted(chosen_before.keys() | arguments.chosen_model().keys())
    whose, way_out = f"the model of {directory}", "leave that as it was, or start a new run"
    check_unchanged(names, arguments.sjepa_config(), open_config(directory), whose, way_out)


def tell_other_rate(arguments: Arguments, step: int, old_rate: float) -> None:
    """Say where the learning rate goes on elsewhere than at `old_rate`, that of the settings before."""
    schedule = Schedule(arguments)
    if step >= schedule.total_steps:
        return
    rate = schedule.learning_rate(step)
    if abs(rate - old_rate) > 1e-9 * max(rate, old_rate):
        said = "The learning rate goes on at %.3g; by the settings before it would be %.3g."
        logger.log(once(logging.WARNING), said, rate, old_rate)


def tell_other_split(state: LoopState, processes: int, accumulation: int, same_draws: bool) -> None:
    """Say what another number of processes or micro-batches than the checkpoint's means."""
    before, now = (state.processes, state.accumulation), (processes, accumulation)
    if before != now or not same_draws:
        logger.log(
            once(logging.WARNING),
            "A step had %d (processes) x %d (micro-batches), and has %d x %d now: weights, optimizer, EMA encoder,"
            " mixture, schedules and layer scores go on as they were; dropout draws differ from now on%s.",
            *before,
            *now,
            "" if before[0] * before[1] == now[0] * now[1] else ", and a step now sees another amount of audio",
        )
