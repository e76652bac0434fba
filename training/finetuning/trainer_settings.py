"""Settings of the Trainer: those that fine-tuning cannot honour are refused before any data are read, and steps."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.hf_argparser import string_to_bool
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from training.common.ranges import check_hub, check_ranges
from training.data.workers import start_method


logger = logging.getLogger(__name__)

EVALUATIONS_APART = 25  # steps, at least, between two evaluations whose interval is a share of the run
# Fields that must keep a value, and why.
REFUSED = {
    "prediction_loss_only": (False, "without predictions there is no error rate to choose a checkpoint by"),
    "batch_eval_metrics": (False, "the metrics need all clips together"),
    "eval_do_concat_batches": (True, "the metrics need all clips together"),
    "eval_use_gather_object": (False, "predictions are gathered as tensors"),
    "fp16_full_eval": (False, "it would turn the model itself into fp16; --fp16 true computes in it"),
    "bf16_full_eval": (False, "it would turn the model itself into bf16; --bf16 true computes in it"),
    "neftune_noise_alpha": (None, "it disturbs the embeddings of tokens, which an encoder of speech has not"),
    "use_liger_kernel": (False, "its kernels are for language models"),
    "fsdp": (None, "the weights are saved whole by one process; `accelerate launch` trains on several GPUs"),
    "deepspeed": (None, "the weights are saved whole by one process; `accelerate launch` trains on several GPUs"),
    "optim_target_modules": (None, "the optimizer takes all that is trained"),
    "enable_jit_checkpoint": (False, "SIGTERM saves a checkpoint in any case"),
    "label_names": (None, "the labels are named `labels`"),
    "include_num_input_tokens_seen": ("no", "there are no input tokens"),
    "hub_always_push": (False, "the result is pushed once, at the end"),
    "hub_revision": (None, "the result goes to the main branch"),
    "debug": (None, "its hooks fail on the boolean masks of encoders of speech, or need a TPU"),
}


def equal_intervals(asked: Mapping[str, Any]) -> list[str]:
    """Options for as many savings as evaluations, where a command line says how often only for one of the two."""
    found = []
    for kind in ("steps", "strategy"):
        for one, other in (("eval", "save"), ("save", "eval")):
            value = asked.get(f"{one}_{kind}")
            if value not in (None, "no", "best") and f"{other}_{kind}" not in asked:
                found += [f"--{other}_{kind}", value]
    return found


def check_training(
    training: TrainingArguments, asked: Mapping[str, Any], higher_is_better: Mapping[str, bool]
) -> None:
    """
    Refuse what cannot work, and settle what follows from the rest (the direction of the metric, persistent workers).

    Args:
        asked: what the command line sets, for what has no effect.
        higher_is_better: by which metrics the best checkpoint may be chosen.

    Raises:
        ValueError: naming the field and the way out.
    """
    for name, (value, reason) in REFUSED.items():
        if (getattr(training, name) or None) != (value or None):
            raise ValueError(f"`{name}` {getattr(training, name)} does not go with fine-tuning: {reason}.")
    check_hub(training, asked)
    strategy = training.hub_strategy
    if training.push_to_hub and strategy != "end" and ("hub_strategy" in asked or strategy != "every_save"):
        raise ValueError(f"`hub_strategy` must be end: fine-tuning pushes its result alone, got {strategy.value}.")
    check_ranges(
        training,
        at_least_1="per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps",
        not_negative="dataloader_num_workers learning_rate weight_decay max_grad_norm logging_steps eval_steps"
        " save_steps",
        seed="seed",
    )
    if training.max_steps == 0 or training.max_steps < 0 and not training.num_train_epochs > 0:
        raise ValueError("`max_steps` or `num_train_epochs` must be above 0: no step would be trained.")
    for name, way in (("do_train", "--dry_run shows what a run would do"), ("do_eval", "give --eval_strategy no")):
        if not string_to_bool(asked.get(name, "true")):
            raise ValueError(f"`{name}` false has no effect here: {way}.")
    if string_to_bool(asked.get("remove_unused_columns", "false")):
        raise ValueError("`remove_unused_columns` true would take the labels from the batches: leave it out.")
    if training.train_sampling_strategy == "batch_rebalance":
        raise ValueError("`train_sampling_strategy` batch_rebalance decodes all audio first: take group_by_length.")
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("`fp16` needs a GPU: on a CPU leave it out, or give --bf16 true with --use_cpu true.")
    if training.dataloader_num_workers == 0:
        training.dataloader_persistent_workers = False  # nothing to persist
        if training.dataloader_multiprocessing_context is not None:
            raise ValueError("`dataloader_multiprocessing_context` needs `dataloader_num_workers` above 0.")
    elif training.dataloader_multiprocessing_context is None:
        training.dataloader_multiprocessing_context = start_method()
    check_best(training, asked, higher_is_better)
    check_parts(training)


def check_best(training: TrainingArguments, asked: Mapping[str, Any], higher_is_better: Mapping[str, bool]) -> None:
    """Refuse what leaves the choice of the best checkpoint without a figure, or would choose the worst."""
    if training.metric_for_best_model is not None:
        metric = training.metric_for_best_model.removeprefix("eval_")
        if metric not in higher_is_better:
            raise ValueError(
                f"`metric_for_best_model` is {training.metric_for_best_model}; choose {', '.join(higher_is_better)}."
            )
        if "greater_is_better" in asked and training.greater_is_better != higher_is_better[metric]:
            raise ValueError(f"`greater_is_better` {asked['greater_is_better']} would keep the worst {metric}.")
        training.greater_is_better = higher_is_better[metric]
    needed = "load_best_model_at_end" if training.load_best_model_at_end else None
    needed = "save_strategy best" if training.save_strategy == SaveStrategy.BEST else needed
    if training.eval_strategy == IntervalStrategy.NO:
        if needed:
            raise ValueError(
                f"`{needed}` needs evaluations, and `eval_strategy` is no: with --load_best_model_at_end false the"
                " last checkpoint is the result."
            )
        training.eval_on_start = False


def check_parts(training: TrainingArguments) -> None:
    """Refuse an optimizer, a schedule or a logger that cannot be made."""
    try:
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(training, None)
        if {"params", "model", "optimizer_dict"} & set(options):
            raise ValueError("it takes parameters in a form of its own")
        optimizer([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    except Exception as error:
        raise ValueError(f"`optim` {training.optim.value} cannot be used: {one_line(error)}.") from error
    if training.lr_scheduler_type not in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        try:
            dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            get_scheduler(training.lr_scheduler_type, dummy, 1, 10, training.lr_scheduler_kwargs)
        except Exception as error:
            kind = training.lr_scheduler_type.value
            raise ValueError(
                f"`lr_scheduler_type` {kind} cannot be used: {one_line(error)}; what it needs goes into"
                " `lr_scheduler_kwargs`."
            ) from error
    for name in training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"`report_to` {name} is unknown; choose none, {', '.join(INTEGRATION_TO_CALLBACK)}.")
        if name not in get_available_reporting_integrations():
            raise ValueError(f"`report_to` {name} needs a package that is not installed: install it, or leave it out.")


def one_line(error: Exception) -> str:
    """What an error of a library says, without its line breaks and the full stop."""
    return " ".join(str(error).split())[:200].rstrip(".")


def interval(share_or_steps: float | None, total: int) -> float | None:
    """
    Steps between two evaluations. A share of the run (below 1) is at least `EVALUATIONS_APART` steps: a shorter run is
    evaluated at its end alone.
    """
    if share_or_steps is None or not 0 < share_or_steps < 1:
        return share_or_steps
    return max(math.ceil(share_or_steps * total), min(EVALUATIONS_APART, total))


def total_steps(training: TrainingArguments, num_clips: int) -> tuple[int, int]:
    """
    Optimizer steps of an epoch and of the run.

    Raises:
        ValueError: if there are none.
    """
    batch = training.train_batch_size * training.world_size
    batches = num_clips // batch if training.dataloader_drop_last else math.ceil(num_clips / batch)
    if batches == 0:
        raise ValueError(
            f"`dataloader_drop_last` leaves out a last batch that is not full, and {num_clips} clips do not fill one"
            f" of {batch}: no step would be trained. Take a smaller `per_device_train_batch_size`, or leave it out."
        )
    epoch = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * epoch)
    return epoch, total


def settle_steps(training: TrainingArguments, min_steps: int, num_clips: int) -> None:
    """
    Make the epochs enough for `min_steps`, and shares of the run steps.

    Raises:
        ValueError: if not one step would be trained, or the best one could be one that is not saved.
    """
    enough_epochs(training, min_steps, num_clips)
    total = total_steps(training, num_clips)[1]
    training.eval_steps, training.save_steps = (interval(n, total) for n in (training.eval_steps, training.save_steps))
    by_steps = training.eval_strategy == IntervalStrategy.STEPS and training.save_strategy == SaveStrategy.STEPS
    if training.load_best_model_at_end and by_steps and training.eval_steps != training.save_steps:
        raise ValueError(
            f"`save_steps` comes to {training.save_steps:g} and `eval_steps` to {training.eval_steps:g}: the best step"
            " would not always be saved. Give one of them alone, or --load_best_model_at_end false for the last step."
        )


def enough_epochs(training: TrainingArguments, min_steps: int, num_clips: int) -> None:
    """Raise the number of epochs until they make `min_steps` optimizer steps."""
    epochs = math.ceil(min_steps / total_steps(training, num_clips)[0])
    if epochs > training.num_train_epochs:
        logger.info(
            "%d clips: %d epochs instead of %g, for %d steps.", num_clips, epochs, training.num_train_epochs, min_steps
        )
        training.num_train_epochs = epochs
