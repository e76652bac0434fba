"""Trainer of both fine-tunings, what it tells while it runs, and how it ends."""

import copy
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from sjepa_hf.command import once
from sjepa_hf.contents import RESULTS
from sjepa_hf.durations import duration
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.saving import apply_directory_mode
from training.common.memory import keep_freed_memory
from training.common.output_directory import FINAL, prune_checkpoints
from training.common.processes import Coordinator, all_or_none, end_group, local_processes
from training.common.progress import Heartbeat
from training.common.signals import Interrupted, Interruption, Stop, tell_in_file
from training.data.augmentation import among_noise
from training.data.bad_audio import counted
from training.data.workers import check_shared_memory, die_when_stuck
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.model import in_encoder, shortest_batch
from training.finetuning.order import SeededOrder
from training.finetuning.resuming import MERGED, STATE, set_aside_after, steps_taken
from training.finetuning.saving import written_together
from training.finetuning.trainer_settings import total_steps


logger = logging.getLogger(__name__)

SHORT = {"wer": "WER", "cer": "CER", "macro_f1": "macro F1"}
SAMPLE_BYTES = 4 + 4 + 0.1  # of a padded batch: the sample, its attention mask, and labels
TIMED_STEPS = 5  # after the first, from which the time of a run is told


class FineTuner(Trainer):
    """
    Trainer with a learning rate of its own for the head, batches of clips of like length, and checkpoints that open
    like the result.

    Args:
        head_learning_rate: None: that of the encoder.
        p_noise: probability that a training clip is heard among coloured noise.
        frozen_encoder: whether the encoder is only read, without dropout and SpecAugment.
        save_beside: writes into the directory of each checkpoint what inference needs besides the model.
    """

    def __init__(
        self,
        *args,
        head_learning_rate: float | None,
        p_noise: float,
        frozen_encoder: bool = False,
        save_beside: Callable[[Path], object],
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.frozen_encoder, self.p_noise = frozen_encoder, p_noise
        self.head_learning_rate = self.args.learning_rate if head_learning_rate is None else head_learning_rate
        self.save_beside = save_beside
        self.batch_norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        # The Trainer's own deleting would take checkpoints that are set aside for this run's, and, once the run has
        # ended, the last one, by which a later start knows that it has.
        self.keep, self.args.save_total_limit = self.args.save_total_limit or 0, None
        self.model_accepts_loss_kwargs = False  # the losses are means: accumulated ones must be divided
        for bars in (ProgressCallback, PrinterCallback):
            self.remove_callback(bars)

    def training_step(self, model, inputs, *args, **kwargs):
        if self.p_noise:
            heard = among_noise(inputs["input_values"], inputs.get("attention_mask"), self.p_noise)
            inputs = {**inputs, "input_values": heard}
        short = shortest_batch(self.model.config) - inputs["input_values"].shape[1]
        if short > 0 and not self.frozen_encoder:
            padded = {name: nn.functional.pad(inputs[name], (0, short)) for name in ("input_values", "attention_mask")}
            inputs = {**inputs, **padded}
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        # The Trainer has just put all of the model into training mode.
        if self.frozen_encoder:
            self.model.base_model.eval()
        for norm in self.batch_norms:
            if not norm.weight.requires_grad:  # of what is kept as it is; in training mode its statistics would move
                norm.eval()
        return super().compute_loss(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        groups = []
        for encoder, rate in ((True, self.args.learning_rate), (False, self.head_learning_rate)):
            for decay in (True, False):
                kind = (encoder, decay)
                chosen = [
                    parameter
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad and (in_encoder(name, self.model), name in decayed) == kind
                ]
                weight_decay = self.args.weight_decay if decay else 0.0
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay})
        self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def check_shared_memory(self) -> None:
        """
        Raise a ValueError if batches of the longest clips may not fit into the shared memory that is free. Every
        process must call it.
        """
        parts = ((self.train_dataset, "train"), (self.eval_dataset, "eval"))
        longest = {name: max(clip_seconds(dataset), default=0.0) for dataset, name in parts}
        name = max(longest, key=lambda each: longest[each] * getattr(self.args, f"per_device_{each}_batch_size"))
        check_shared_memory(
            longest[name] * getattr(self.args, f"per_device_{name}_batch_size"),
            self.args.dataloader_num_workers,
            local_processes(self.accelerator),
            sample_bytes=SAMPLE_BYTES,
            settings=("dataloader_num_workers", f"per_device_{name}_batch_size"),
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """
        As the Trainer's, but random numbers stay as they are: a run that is stopped in an evaluation, or before one
        that it makes up for as it goes on, ends as without the stop.

        Raises:
            Interrupted: if the run is to stop; a training's checkpoint is then saved.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)
        except Interrupted:
            if self.is_in_train:
                self.save_last_step()
            raise

    def save_last_step(self) -> None:
        """A checkpoint of the last finished step, unless the run began with it, or before the first."""
        resumed = self.args.resume_from_checkpoint
        if self.state.global_step > (steps_taken(resumed) if resumed else 0):
            self._save_checkpoint(self.model, trial=None)

    def _run_epoch(self, *args, **kwargs) -> None:
        """As the Trainer's, but no step more in a run that goes on from its last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """
        As the Trainer's, but a checkpoint is there whole or not at all. Every process must call it.

        Raises:
            OSError: if it cannot be written; the checkpoints before it stay. In other processes a UserError.
        """
        output_dir, args, state = Path(self.args.output_dir), self.args, self.state
        self.store_flos()
        directory = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        with written_together(directory, self.accelerator, args.should_save) as aside:
            self.save_model(str(aside), _internal_call=True)
            if args.save_strategy != SaveStrategy.NO and state.best_global_step:
                best = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
                if best == directory or best.is_dir():
                    state.best_model_checkpoint = str(best)
            if not args.save_only_model:
                self._save_optimizer_and_scheduler(str(aside))
                self._save_scaler(str(aside))
                self._save_rng_state(str(aside))
            if args.should_save:
                for part in (*self.callback_handler.callbacks, self.control):
                    if isinstance(part, ExportableState):
                        state.stateful_callbacks[type(part).__name__] = part.state()
                state.save_to_json(str(aside / STATE))
        if args.should_save:
            best = state.best_model_checkpoint
            prune_checkpoints(output_dir, self.keep, best and Path(best))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model with all that inference needs; beside adapters also the model that they are merged into."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            self.save_beside(directory)
            apply_directory_mode(directory)
            model = self.accelerator.unwrap_model(self.model)
            if hasattr(model, "merge_and_unload"):
                copy.deepcopy(model).merge_and_unload().save_pretrained(directory / MERGED)
                self.save_beside(directory / MERGED)

    def end(self) -> None:
        """End the group of processes; every process must, and nothing is exchanged from then on."""
        self.model_wrapped = self.model
        end_group(self.accelerator)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """An evaluation that shows nothing learned is no candidate: noise may lie below the plateau that follows."""
        return metrics.get("eval_learned", 1.0) > 0 and super()._determine_best_metric(metrics, trial)

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs) -> torch.utils.data.DataLoader:
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training  # what is scored is scored whole
        loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        self.args.dataloader_drop_last = drop_last
        plain = loader.base_dataloader  # which Accelerate has wrapped
        plain.worker_init_fn = partial(start_worker, plain.worker_init_fn)
        # Each new set of workers is seeded from it. Workers that stay for all epochs are one set in an unbroken run
        # and two in a resumed one: out of the global generator, SpecAugment and dropout would differ from there on.
        plain.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        args, group_size = self.args, None
        if args.train_sampling_strategy == "group_by_length":
            group_size = args.train_batch_size * args.gradient_accumulation_steps
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = args.seed if args.data_seed is None else args.data_seed
        return SeededOrder(dataset.num_samples, seed, lambda: int(self.state.epoch or 0), group_size)

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)  # `by_length` has sorted them


class EncoderFreezeCallback(TrainerCallback):
    """Trains the head alone for the first steps, then all that is to be trained."""

    def __init__(self, steps: int):
        self.steps = steps
        self.frozen: list[nn.Parameter] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step < self.steps:
            self.frozen = [p for name, p in model.named_parameters() if p.requires_grad and in_encoder(name, model)]
            for parameter in self.frozen:
                parameter.requires_grad_(False)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.frozen and state.global_step >= self.steps:
            logger.info("Step %d: the encoder is trained from here on.", state.global_step)
            for parameter in self.frozen:
                parameter.requires_grad_(True)
            self.frozen = []


class ProgressLogCallback(TrainerCallback):
    """Logs steps and evaluations with four digits, and how long the run will take once a few steps are timed."""

    def __init__(self, heartbeat: Heartbeat):
        self.heartbeat = heartbeat
        self._start: tuple[int, float] | None = None
        self._batches = 0

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        self.heartbeat.doing = f"training: step {state.global_step} of {state.max_steps}"
        if self._start is None:  # the first step also starts the workers
            self._start = (state.global_step, now)
        elif state.global_step == self._start[0] + TIMED_STEPS and state.is_world_process_zero:
            each = (now - self._start[1]) / TIMED_STEPS
            left = duration(each * (state.max_steps - state.global_step))
            logger.info("%.2f s a step: about %s for the rest, evaluations not counted.", each, left)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self._batches += 1
        batch = f"batch {self._batches} of {len(eval_dataloader)}"
        self.heartbeat.doing = f"evaluating at step {state.global_step}: {batch}"

    def on_evaluate(self, args, state, control, **kwargs):
        self._batches = 0

    def on_predict(self, args, state, control, metrics, **kwargs):
        self._batches = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        evaluation = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        shown = evaluation or {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        hidden = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "learned")
        figures = {
            SHORT.get(name, name.replace("_", " ")): value for name, value in shown.items() if name not in hidden
        }
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if text:
            where = f"Step {state.global_step} of {state.max_steps}"
            logger.info("%s%s: %s.", where, ", evaluation" if evaluation else "", text)


class MissedEvaluationCallback(TrainerCallback):
    """
    Makes up for an evaluation at the step from which a run goes on: a stop came before it, or in it. Without it
    another checkpoint might be the best.
    """

    def __init__(self, trainer: FineTuner):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self.is_due(args, state) and not any(
            line["step"] == state.global_step and any(name.startswith("eval_") for name in line)
            for line in state.log_history
        ):
            self.trainer._determine_best_metric(self.trainer._evaluate(None, None), None)
            if state.best_global_step == state.global_step:
                state.best_model_checkpoint = args.resume_from_checkpoint

    @staticmethod
    def is_due(args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the Trainer evaluates after the step at which it stands."""
        flow, control = DefaultFlowCallback(), TrainerControl()
        flow.on_step_end(args, state, control)
        if state.epoch == int(state.epoch) or state.global_step >= state.max_steps:
            flow.on_epoch_end(args, state, control)
        return control.should_evaluate


class SaveAndStopCallback(TrainerCallback):
    """
    Saves a checkpoint after the step in which a signal came, or after the batch of an evaluation, and ends the run; of
    several processes all do, whichever of them got the signal.

    Raises:
        Interrupted: then, in all processes alike.
    """

    # Not `Interruption.waiting`: it would raise in the middle of the Trainer's code, and treat an error in a clip or
    # metric as a request to stop.

    def __init__(self, trainer: FineTuner, coordinator: Coordinator):
        self.trainer, self.coordinator = trainer, coordinator

    def on_step_begin(self, args, state, control, **kwargs):
        # torch's SIGCHLD handler raises a worker's death anywhere in a step. With the default handler it is raised
        # where the next batch is read.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on_step_end(self, args, state, control, **kwargs):
        if self._is_to_stop():
            control.should_save, control.should_evaluate = True, False

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.trainer.is_in_train and self._is_to_stop():
            raise Interrupted

    def on_save(self, args, state, control, **kwargs):
        if self._is_to_stop():
            raise Interrupted

    def _is_to_stop(self) -> bool:
        """Whether any process is to stop. Every process must call it."""
        try:
            self.coordinator.barrier()
        except Interrupted:
            return True
        return False


def run_training(
    trainer: FineTuner, arguments: FineTuningArguments, heartbeat: Heartbeat, hub: dict | None
) -> nn.Module:
    """
    Train, and return the model of the best evaluation that shows something learned, else the last one.

    Raises:
        SystemExit: after SIGTERM or Ctrl-C, once a checkpoint is saved; its code is the signal's exit status. With 0,
            where the run that is resumed has come to its end, unless its result is to be pushed to `hub` again.
    """
    resumed, output_dir = trainer.args.resume_from_checkpoint, Path(trainer.args.output_dir)
    steps = total_steps(trainer.args, len(trainer.train_dataset))[1]
    if resumed and not hub and (output_dir / FINAL / RESULTS).is_file() and steps_taken(resumed) >= steps:
        logger.info("%s is finished: it has taken %d steps.", output_dir / FINAL, steps)
        sys.exit(0)
    if trainer.args.device.type == "cpu":
        keep_freed_memory()
    trainer.add_callback(ProgressLogCallback(heartbeat))
    if arguments.freeze_encoder_steps:
        trainer.add_callback(EncoderFreezeCallback(arguments.freeze_encoder_steps))
    heartbeat.doing = "starting the training"
    trainer.check_shared_memory()
    with all_or_none(trainer.accelerator):
        if trainer.is_world_process_zero():
            set_aside_after(output_dir, resumed)
    with Interruption() as interruption:
        coordinator = Coordinator(trainer.accelerator, interruption)
        trainer.add_callback(SaveAndStopCallback(trainer, coordinator))
        if resumed:
            trainer.add_callback(MissedEvaluationCallback(trainer))
        try:
            with worker_deaths_as_stops(trainer, interruption):
                trainer.train(resume_from_checkpoint=resumed)
        except Interrupted:
            end_early(trainer, coordinator.reason())
    clips = trainer.train_dataset
    if bad := clips.bad:
        message = "%d of %d training clips were replaced by others: %s."
        logger.warning(message, bad.total(), len(clips), counted(bad))
    heartbeat.doing = "scoring the result"
    return trainer.accelerator.unwrap_model(trainer.model)


@contextmanager
def worker_deaths_as_stops(trainer: FineTuner, interruption: Interruption) -> Iterator[None]:
    """
    Where a signal has also ended a process that reads audio, its death is no error: what is done is saved.

    Raises:
        Interrupted: then. With several processes the error itself, as the others may be elsewhere in the step.
    """
    try:
        yield
    except RuntimeError as error:
        asked = interruption.stop is not None and str(error).startswith("DataLoader worker")
        if not asked or trainer.args.world_size > 1:
            raise
        trainer.save_last_step()
        raise Interrupted from error


def end_early(trainer: FineTuner, stop: Stop) -> NoReturn:
    """Say what is saved, in a file too, and end the process with the status of its signal."""
    step, output_dir = trainer.state.global_step, Path(trainer.args.output_dir)
    message = "Stopped before the first step: nothing is lost."
    saved = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    if saved.is_dir():
        message = (
            f"Stopped at step {step}: {saved} is saved; the same command with --resume_from_checkpoint latest goes on."
        )
    logger.log(once(logging.WARNING), "%s", message)
    if trainer.is_world_process_zero():
        tell_in_file(output_dir, stop)
    trainer.end()
    sys.exit(stop.status)


def start_worker(seed: Callable[[int], None] | None, worker: int) -> None:
    """In each new worker: Ctrl-C, which a terminal sends to it too, is for the training process; and `seed` it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_when_stuck()
    if seed is not None:
        seed(worker)


def clip_seconds(dataset: torch.utils.data.Dataset) -> list[float]:
    """Length of every clip, in seconds, of labelled clips or of several sets of them."""
    parts = getattr(dataset, "datasets", [dataset])
    return [samples / SAMPLING_RATE for part in parts for samples in part.num_samples]
