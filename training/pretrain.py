"""Pretrain S-JEPA on audio without labels: both phases in one run.

    python -m training.pretrain --config training/recipes/tiny.yaml --train_data my_audio/ [--dry_run true]
    accelerate launch -m training.pretrain --config training/recipes/base.yaml --train_data a.jsonl  # on several GPUs

A step is: soft targets from the clean audio, masked prediction from the augmented audio, the loss over the whole
global batch, and an update of encoder, EMA encoder and mixture. Any field of `training/pretraining/arguments.py`,
`training/pretraining/method_arguments.py` and `training/data/arguments.py` can stand in the recipe or on the command
line.

SIGTERM and Ctrl-C save the last finished step and exit with status 143 and 130, out of a wait for data or a fit at
once; `--resume_from_checkpoint auto` then goes on to the very weights of a run without the break. 1 is the status
after a fault, which the last line names.
"""

import logging
import os
import sys
from contextlib import nullcontext


# On a CPU, OpenMP threads that spin long while they wait starve the process that decodes audio: ten times slower on
# two cores. Threads that never spin lose a quarter when alone; a short spin loses little in either case (measured).
# Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import training.common.onednn  # noqa: F401


# isort: split
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from sjepa_hf import SJepaForPreTrainingOutput
from sjepa_hf.command import UserError, command, first_line, once
from training.common.processes import is_lost_connection
from training.common.signals import Interrupted, Stop, tell_in_file
from training.data.augmentation import augmented
from training.data.batches import to_device
from training.data.masking import MelMask
from training.pretraining.arguments import Arguments, parse_arguments
from training.pretraining.checkpointing import restore, save_step
from training.pretraining.monitoring import Monitor, loss_parts
from training.pretraining.phases import choose_layer, fit, fit_is_due
from training.pretraining.plan import log_plan
from training.pretraining.result import finish
from training.pretraining.resuming import AlreadyFinished
from training.pretraining.run import Run


logger = logging.getLogger(__name__)

RESEED_EVERY = 100  # steps between two looks for dead mixture components
LONG_FIT = 60.0  # seconds of fitting that are worth a checkpoint


@command
def main(argv: list[str] | None = None) -> None:
    """Run the pretraining that the command line asks for."""
    arguments = parse_arguments(argv)
    try:
        run = prepare(arguments)
        log_plan(run)
        if run.arguments.run.dry_run:
            return
        try:
            with logging_redirect_tqdm(), run.interruption:
                stop = pretrain(run)
        finally:
            run.lock.release()
    except AlreadyFinished as finished:
        logger.info("%s", finished)
        return
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(
            f"another process of this run has died or hangs, so this one stops ({first_line(error)})."
        ) from None
    if stop is not None:
        said = f"stopped at step {run.state.step} of {run.schedule.total_steps}: {stop.reason}."
        if stop.status == 1:
            raise UserError(said) from stop.error
        logger.log(once(logging.ERROR), "%s", said[0].upper() + said[1:])
        if run.accelerator.is_main_process:
            tell_in_file(run.output_dir, stop)
        sys.exit(stop.status)


def prepare(arguments: Arguments) -> Run:
    """A run as it stands before its next step: a new one, or one that goes on from its checkpoint."""
    run = Run(arguments)
    if run.resumed and not arguments.run.dry_run:
        restore(run)
    return run


def pretrain(run: Run) -> Stop | None:
    """
    Train from where the run stands to its end, then save the result and its pictures.

    Returns:
        why the run ended early, once its last finished step is saved; None at its proper end.
    """
    try:
        train(run)
        finish(run)
    except Interrupted:
        stop = run.coordinator.reason()
        if run.unsaved:
            save_step(run)
        run.end()
        return stop
    finally:
        run.data.close()
        if run.publisher:
            run.publisher.stop()
    return None


def train(run: Run) -> None:
    """Run the remaining steps. A stop raises [`Interrupted`] between two steps or while a mixture is fitted."""
    settings, accelerator, schedule, state = run.arguments.run, run.accelerator, run.schedule, run.state
    if settings.report_to != "none":
        accelerator.init_trackers("sjepa")
    monitor = Monitor(run)
    while state.step < schedule.total_steps:
        if fit_is_due(run):
            with monitor.paused():
                seconds = fit(run)
            if seconds >= LONG_FIT:  # so that it is never made twice, however short the run may live
                save_step(run)
        micro_batches = [
            to_device(run.data.next(), accelerator.device) for _ in range(settings.gradient_accumulation_steps)
        ]
        for group in run.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(state.step)
        # Here all processes stop together, if any is to. Only then does `mark_used` count the batches and move the
        # position in the data behind them, so that no batch is lost with the step.
        frames = max(1.0, run.coordinator.sum(frame_count(run, micro_batches))[0])  # of all processes
        run.data.mark_used()
        sums = []
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(run.wrapped):
                targets, statistics = soft_targets(run, batch)
                output = predict(run, batch, targets)
                accelerator.backward(summed_loss(output) * run.processes / frames)
            run.targets.accumulate(statistics)
            sums.append(loss_parts(output))
        shown = batch, targets["target_posteriors"], output  # the last micro-batch, for the line of metrics
        norm = accelerator.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
        broken = update_weights(run, norm)
        run.targets.update(run.model.sjepa, schedule.ema_decay(state.step))
        state.step, run.unsaved = state.step + 1, True
        monitor.count_step(sums, norm, broken)
        after_step(run, monitor, micro_batches, shown)


def frame_count(run: Run, micro_batches: list[dict]) -> int:
    """Frames of this process that count in the loss of this step, which is one mean over those of all processes."""
    parts = ["masked_positions"]
    if not run.schedule.masked_only(run.state.step):
        parts.append("visible_positions")
    return sum(len(batch[part]) for batch in micro_batches for part in parts)


def soft_targets(run: Run, batch: dict) -> tuple[dict[str, torch.Tensor | float], tuple[torch.Tensor, ...] | None]:
    """
    All that is predicted of a micro-batch, from its clean audio, by the names that the model's `forward` has; and the
    statistics that an online mixture follows.
    """
    posteriors, statistics = run.targets.expectation(batch)
    targets = {"target_posteriors": posteriors}
    if run.frozen_targets is not None:
        targets["frozen_posteriors"] = run.frozen_targets.posteriors(batch)
        targets["frozen_weight"] = run.arguments.targets.frozen_weight
    return targets, statistics


def predict(run: Run, batch: dict, targets: dict[str, torch.Tensor | float]) -> SJepaForPreTrainingOutput:
    """Masked prediction from the augmented audio, and its divergence from [`soft_targets`]."""
    masking, schedule, step = run.arguments.masking, run.schedule, run.state.step
    disturbed = not schedule.in_final_stage(step)
    audio = augmented(batch, masking.p_mix, masking.p_noise) if disturbed else batch["input_values"]
    bands = {}
    if disturbed and masking.mel_mask:
        mask = MelMask(masking.mel_mask, run.model.config.num_mel_bins)
        bands["mask_mel_indices"] = mask.of_batch(batch)
    with run.accelerator.autocast():
        return run.wrapped(
            audio,
            attention_mask=batch["attention_mask"],
            mask_time_indices=batch["mask_time_indices"],
            include_visible=not schedule.masked_only(step),
            masked_positions=batch["masked_positions"],
            visible_positions=batch["visible_positions"],
            longest_visible=batch["longest_visible"],
            **bands,
            **targets,
        )


def summed_loss(output: SJepaForPreTrainingOutput) -> torch.Tensor:
    """The loss as a sum over frames, from which the global mean is made."""
    return output.loss * (output.num_masked_frames + output.num_visible_frames)


def update_weights(run: Run, norm: torch.Tensor) -> torch.Tensor:
    """The optimizer's step, which changes nothing where the gradient is NaN or infinite; returns whether it is."""
    broken = ~torch.isfinite(norm)
    if run.accelerator.scaler is None:  # else the scaler does this
        run.optimizer.optimizer.found_inf = broken.float()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.skipped_steps = run.skipped_steps + broken
    run.skipped_in_a_row = torch.where(broken, run.skipped_in_a_row + 1, 0)
    return broken


def after_step(run: Run, monitor: Monitor, micro_batches: list[dict], shown: tuple) -> None:
    """
    What happens now and then after a step: dead components, the layer choice, a line of metrics, checkpoints.

    Args:
        micro_batches: of this process in the step.
        shown: batch, posteriors and output of one of them, for [`Monitor.line`].
    """
    settings, state = run.arguments.run, run.state
    if state.step % RESEED_EVERY == 0:
        state.reseeded_components += run.targets.reseed_dead()
    ranks = choose_layer(run, micro_batches)
    if state.step % settings.logging_steps == 0 or ranks or state.step in (1, run.schedule.total_steps):
        monitor.write(monitor.line(*shown, ranks))
        if (in_a_row := int(run.skipped_in_a_row)) >= settings.max_skipped_steps:
            run.interruption.ask(1, f"{in_a_row} steps in a row had a NaN or infinite gradient")
    if state.step % settings.save_steps == 0:
        save_step(run)


if __name__ == "__main__":
    main()
