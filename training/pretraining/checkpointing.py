"""Checkpoints of a run: saving it, going on from one. What lies in a checkpoint: `checkpoint_layout.py`."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from accelerate.utils import gather_object

from training.common.output_directory import FINAL, prune_checkpoints, room_in
from training.common.processes import check_processes_agree
from training.pretraining import checkpoint_layout, resuming
from training.pretraining.model import online_targets
from training.pretraining.phases import predict_online
from training.pretraining.run import Run


logger = logging.getLogger(__name__)

MAX_FAILED = 3  # checkpoints in a row that could not be written, that end the run


def restore(run: Run) -> None:
    """
    What a new [`Run`] has not taken from its checkpoint yet: optimizer, EMA encoder, layer choice, random state.

    Raises:
        ValueError: if a part cannot be restored.
    """
    checkpoint = run.resumed
    checkpoint_layout.load_optimizer(checkpoint, run.optimizer, run.accelerator.scaler)
    if checkpoint_layout.has_teacher(checkpoint):
        run.layer_choice.active, run.layer_choice.scores = run.state.active_layer, run.state.layer_scores
        predict_online(
            run, online_targets(run.model.sjepa, run.model.mixture, run.arguments, run.layer_choice, run.accelerator)
        )
        run.targets.fitted = not run.state.seeding_due
        checkpoint_layout.load_online(checkpoint, run.targets.modules)
    run.data.restore(run.state)
    run.skipped_steps += run.state.skipped_steps
    first = run.accelerator.is_main_process  # its sums are those of all processes
    run.loss_sums = {name: tuple(sums) if first else (0.0, 0.0) for name, sums in run.state.loss_sums.items()}
    if first:
        resuming.set_aside_after(run.output_dir, run.state.step)
    same_draws = checkpoint_layout.load_random_state(checkpoint, run.accelerator.process_index)
    logger.info("Resumed from %s at step %d.", checkpoint, run.state.step)
    resuming.tell_other_split(run.state, run.processes, run.arguments.run.gradient_accumulation_steps, same_draws)


def save_step(run: Run) -> None:
    """The checkpoint of the last finished step."""
    save(run, run.output_dir / f"checkpoint-{run.state.step}")


def save(run: Run, directory: Path) -> None:
    """
    A checkpoint to resume from, which `from_pretrained` opens too. One that cannot be written is reported and left
    out; several in a row end the run.

    Raises:
        ProcessesDisagree: if the processes no longer hold the same.
    """
    parts = {"model": run.model.parameters(), "mixture": run.model.mixture.buffers()}
    if run.targets.phase == 2:
        parts["EMA encoder"] = run.targets.teacher.parameters()
    active_layer = run.layer_choice.active or 0  # 0: none is chosen yet
    check_processes_agree(run.accelerator, parts, active_layer)
    clips_seen, clips_skipped = run.data.clips()
    totals = run.totals()
    state = replace(
        run.state,
        active_layer=active_layer,
        layer_scores=run.layer_choice.scores,
        seeding_due=not run.targets.fitted,
        seconds=totals.seconds,
        seconds_taken=run.seconds_taken(),
        samples_padded=totals.samples_padded,
        samples_real=totals.samples_real,
        skipped_steps=int(run.skipped_steps),
        clips_seen=clips_seen,
        loss_sums=totals.losses,
        clips_skipped=dict(clips_skipped),
        processes=run.processes,
        accumulation=run.arguments.run.gradient_accumulation_steps,
        data=run.data.position().to_dict(),
    )
    if run.targets.fitted:
        run.targets.describe(run.model)
    else:  # the mixture is no longer over what is predicted
        run.model.describe_mixture(None)
    random_states = gather_object([checkpoint_layout.random_state()])
    if run.accelerator.is_main_process:
        write(run, directory, random_states, state)
    if all(gather_object([run.failed_saves == 0])):  # all wait for the one that writes
        run.unsaved = False


def write(run: Run, directory: Path, random_states: list[dict], state: checkpoint_layout.LoopState) -> None:
    """Of the main process: write the checkpoint, publish it, delete those that are too many."""
    began = time.monotonic()
    try:
        checkpoint_layout.save_checkpoint(
            directory,
            run.model,
            run.targets.modules,
            run.optimizer,
            run.accelerator.scaler,
            random_states,
            state,
            run.arguments.to_dict(),
        )
    except (OSError, RuntimeError) as error:
        run.failed_saves += 1
        in_a_row = f"{run.failed_saves} in a row, {room_in(directory.parent)}"
        logger.error("%s could not be written (%s): %s.", directory, in_a_row, error.__cause__ or error)
        if run.failed_saves >= MAX_FAILED:
            run.interruption.ask(1, f"{run.failed_saves} checkpoints in a row could not be written")
        return
    run.failed_saves = 0
    if directory.name != FINAL:
        logger.info("Step %d is saved: %s (%.1f s).", state.step, directory, time.monotonic() - began)
        prune_checkpoints(directory.parent, run.arguments.run.save_total_limit)
        if run.publisher and run.arguments.run.hub_strategy == "every_save":
            run.publisher.checkpoint(directory, revision=f"step-{state.step}")
