"""Plan of a fine-tuning: what it is about to do, told before it does it."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from sjepa_hf.durations import audio_amount
from sjepa_hf.frames import SAMPLING_RATE
from training.data.labelled import LabelledClips
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.trainer import FineTuner
from training.finetuning.trainer_settings import total_steps


logger = logging.getLogger(__name__)


def log_plan(trainer: FineTuner, scored: Mapping[str, LabelledClips], arguments: FineTuningArguments) -> None:
    """
    Log data, model, device, steps and output of a run that is ready to start; the first process does.

    Raises:
        ValueError: if the encoder were kept as it is to the end.
    """
    total = total_steps(trainer.args, len(trainer.train_dataset))[1]
    if arguments.freeze_encoder_steps >= total:
        raise ValueError(
            f"`freeze_encoder_steps` is {arguments.freeze_encoder_steps}, and the run has {total} steps: the encoder"
            " would never be trained. Give it fewer."
        )
    if not trainer.is_world_process_zero():
        return
    for line in plan(trainer, scored, arguments):
        logger.info("%s", line)
    if arguments.dry_run:
        logger.info("--dry_run: nothing is trained and nothing written.")


def plan(trainer: FineTuner, scored: Mapping[str, LabelledClips], arguments: FineTuningArguments) -> list[str]:
    """The lines of `log_plan`."""
    training, model, clips = trainer.args, trainer.model, trainer.train_dataset
    epoch, total = total_steps(training, len(clips))
    trained, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or each) for each in (0, 1))
    precision = "fp16" if training.fp16 else "bf16" if training.bf16 else "fp32"
    threads = f" ({torch.get_num_threads()} threads)" if training.device.type == "cpu" else ""
    processes = f" of {training.world_size} processes" if training.world_size > 1 else ""
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    among = f", {100 * arguments.p_noise:.3g} % of them among coloured noise each time" * (arguments.p_noise > 0)
    lines = [f"Training on {amount(clips)}{among}."]
    lines += [f"Scoring {name}: {amount(part)}." for name, part in scored.items()]
    kind = type(trainer.accelerator.unwrap_model(model)).__name__
    lines.append(
        f"{kind}: {trained:,} of {whole:,} parameters are trained, on {training.device}{threads} in {precision}."
    )
    lines.append(f"Trained: {what_is_trained(trainer, arguments)}.")
    lines.append(f"{total:,} steps of {batch} clips{processes}, {epoch:,} an epoch ({total / epoch:.1f} epochs).")
    evaluations = when(training.eval_strategy, training.eval_steps, total)
    savings = when(training.save_strategy, training.save_steps, total)
    output = Path(training.output_dir)
    lines.append(f"Evaluation {evaluations}; a checkpoint in {output}/checkpoint-N {savings}.")
    lines.append(f"The result goes to {output}/final; how long it takes follows after the first steps.")
    if training.resume_from_checkpoint:
        lines.append(f"Going on from {training.resume_from_checkpoint}.")
    return lines


def what_is_trained(trainer: FineTuner, arguments: FineTuningArguments) -> str:
    """Which weights are trained, from where they start, and at which rates."""
    if trainer.frozen_encoder:
        parts = ["the head alone"]
    elif arguments.lora_rank:
        parts = [f"adapters of rank {arguments.lora_rank} and the head"]
    else:
        front_end = ", the front end is kept" if arguments.freeze_feature_encoder else ", front end too"
        parts = [f"encoder{' with fresh weights' * arguments.from_scratch} and head{front_end}"]
    if arguments.reinit_layers:
        parts.append(f"the top {arguments.reinit_layers} layers start afresh")
    if arguments.freeze_encoder_steps:
        parts.append(f"the head alone for {arguments.freeze_encoder_steps:,} steps")
    rate, of_head = trainer.args.learning_rate, trainer.head_learning_rate
    own_rate = f", the head's {of_head:g}" if of_head != rate and not trainer.frozen_encoder else ""
    return "; ".join([*parts, f"learning rate {of_head if trainer.frozen_encoder else rate:g}{own_rate}"])


def amount(clips: LabelledClips) -> str:
    """Clips and their length."""
    longest = max(clips.num_samples) / SAMPLING_RATE
    return f"{len(clips):,} clips, {audio_amount(clips.hours)}, the longest {longest:.1f} s"


def when(strategy: IntervalStrategy | SaveStrategy, steps: float | None, total: int) -> str:
    """How often something happens, in words."""
    if strategy == "steps":
        return f"every {int(steps):,} steps" if steps < total else "at the end"
    return {"no": "never", "epoch": "after every epoch", "best": "after every evaluation that is the best"}[strategy]
