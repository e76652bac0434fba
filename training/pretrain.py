"""Pretrain S-JEPA on audio without labels: both phases in one run.

    python -m training.pretrain --config training/recipes/tiny.yaml --train_data my_audio/ [--dry_run true]
    accelerate launch -m training.pretrain --config training/recipes/base.yaml --train_data a.jsonl  # on several GPUs

A step is: soft targets from the clean audio, masked prediction from the augmented audio, the loss over the whole
global batch, and an update of encoder, EMA encoder and mixture. Any field of `training/pretraining/arguments.py` and
`training/data/loader.py` can stand in the recipe or on the command line.

SIGTERM and Ctrl-C save the last finished step and exit with status 143 and 130, out of a wait for data or a fit at
once; `--resume_from_checkpoint auto` then goes on to the very weights of a run without the break. 1 is the status
after a fault, which the last line names.
"""

import logging
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path


# On a CPU, OpenMP threads that spin long while they wait starve the process that decodes audio: ten times slower on
# two cores. Threads that never spin lose a quarter when alone; a short spin loses little in either case (measured).
# Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# oneDNN keeps kernels for the last 1,024 shapes, and almost every batch has its own: memory would grow for hours.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object, set_seed
from filelock import FileLock
from tqdm.contrib.logging import logging_redirect_tqdm

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from sjepa_hf.command import UserError, command, first_line
from training.common.memory import keep_freed_memory
from training.common.processes import COLLECTIVE_TIMEOUT, Meeting, check_ranks_agree, is_lost_connection
from training.common.publishing import Publisher
from training.common.run_record import record_pretraining
from training.common.signals import Interrupted, Interruption, Stop
from training.data.augmentation import augmented
from training.data.clips import BadAudioError
from training.data.order import DataPosition
from training.pretraining import checkpointing, figures, resuming
from training.pretraining.arguments import Arguments, choose_precision, parse_arguments
from training.pretraining.fits import MixtureFits
from training.pretraining.model import build_model, build_optimizer, frozen_targets, online_targets
from training.pretraining.monitoring import Monitor, loss_sums, predictor_entropy, target_metrics
from training.pretraining.plan import tell_plan
from training.pretraining.resuming import FINAL
from training.pretraining.saver import Saver
from training.pretraining.schedules import Schedule
from training.pretraining.training_data import TrainingData
from training.targets.layer_choice import LayerChoice
from training.targets.targets import MfccTargets, OnlineTargets, layer_ranks, to_device


logger = logging.getLogger(__name__)

RESEED_EVERY = 100  # steps between two looks for dead mixture components
ENTROPY_FRAMES = 20_000  # frames in the final histogram of predictor entropy
INTERRUPTED = "interrupted"  # file in the output directory of a run that a signal has ended


@command
def main(argv: list[str] | None = None) -> None:
    """Run the pretraining that the command line asks for."""
    try:
        run = Pretraining(parse_arguments(argv))
    except resuming.AlreadyFinished as finished:
        logger.info("%s", finished)
        return
    tell_plan(run.arguments, run.accelerator, run.data.stream, run.model, run.state.step)
    if run.arguments.run.dry_run:
        return
    try:
        with logging_redirect_tqdm(), run.interruption:
            stop = run.run()
    except RuntimeError as error:
        if run.ranks == 1 or not is_lost_connection(error):
            raise
        raise UserError(
            f"another process of this run has died or hangs, so this one ends too ({first_line(error)})."
        ) from None
    finally:
        run.lock.release()
    if stop is not None:
        said = f"stopped at step {run.state.step} of {run.schedule.total_steps}: {stop.reason}."
        if stop.status == 1:
            raise UserError(said)
        logger.error("%s", said[0].upper() + said[1:])
        if run.accelerator.is_main_process:
            (run.output_dir / INTERRUPTED).write_text(stop.reason + "\n")
        sys.exit(stop.status)


class Pretraining:
    """
    A run: the model, what it is trained towards, and where it stands.

    Attributes:
        model (`SJepaForPreTraining`): encoder, predictor, head and mixture; `wrapped` is the same under Accelerate.
        targets (`MfccTargets` or `OnlineTargets`): makes the soft targets.
        state (`LoopState`): all else that changes.
    """

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        run, settings = arguments.run, arguments.targets
        self.accelerator = Accelerator(
            mixed_precision=choose_precision(run.mixed_precision),
            log_with=None if run.report_to == "none" else run.report_to,
            project_dir=run.output_dir,
            # The mixture is the same on all ranks by construction; sending it around would only hide a drift.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            ],
        )
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.output_dir = Path(run.output_dir)
        self.lock = FileLock(self.output_dir / ".lock")
        if self.accelerator.is_main_process:
            resuming.claim(self.output_dir, self.lock, run.resume_from_checkpoint is not None, run.dry_run)
        self._started = time.monotonic()
        self.publisher = None
        if run.push_to_hub and self.accelerator.is_main_process and not run.dry_run:
            repo_id = run.hub_model_id or self.output_dir.resolve().name
            self.publisher = Publisher(repo_id, self.output_dir, run.hub_private_repo)
        self.schedule = Schedule(arguments)
        self.interruption = Interruption()
        self.meeting = Meeting(self.accelerator, self.interruption)
        at_each_save = self.publisher if run.hub_strategy == "every_save" else None
        self.saver = Saver(self.interruption, at_each_save, run.save_total_limit)
        self.layer_choice = LayerChoice(settings.start_layer, settings.layer_score_decay, settings.follows_ranks)
        resumed, self.state = resuming.begin(arguments, self.accelerator, self.lock)
        set_seed(run.seed)
        self.model = build_model(arguments, resumed, self.accelerator)
        self.optimizer = self.accelerator.prepare_optimizer(build_optimizer(self.model, run))
        set_seed(run.seed, device_specific=True)  # dropout differs between ranks, weights do not
        self.targets = frozen_targets(self.model.mixture, settings)
        self.frozen_targets: MfccTargets | None = None
        position = DataPosition.from_dict(self.state.data) if resumed else None
        self.data = TrainingData(arguments, self.accelerator, self.meeting, position)
        self._saved_step = self.state.step  # what a checkpoint holds; before the first fit there is nothing to save
        self._fitted = resumed is not None
        if resumed and not run.dry_run:
            self._restore(resumed)
        self._broken = torch.zeros(2, device=self.accelerator.device)  # steps without update: in a row, in all
        self.fits = MixtureFits(arguments, self.data, self.accelerator, self.meeting)
        self._wrap()

    def _restore(self, checkpoint: Path) -> None:
        """All of a checkpoint's training state but the loop state, which is there already."""
        checkpointing.load_optimizer(checkpoint, self.optimizer, self.accelerator.scaler)
        if self.schedule.phase(self.state.step) == 2 and checkpointing.has_teacher(checkpoint):
            self.layer_choice.active, self.layer_choice.scores = self.state.active_layer, self.state.layer_scores
            self.targets = self._online_targets(self.model.mixture)
            self._keep_frozen_targets()
            checkpointing.load_online(checkpoint, self.targets.modules)
        if self.accelerator.is_main_process:
            resuming.set_aside_after(self.output_dir, self.state.step)
            self.data.restore_clips(self.state.clips_seen, self.state.clips_skipped)
        same_draws = checkpointing.load_random_state(checkpoint, self.accelerator.process_index)
        logger.info("Resumed from %s at step %d.", checkpoint, self.state.step)
        resuming.tell_other_split(self.state, self.ranks, self._accumulation, same_draws)

    # The algorithm

    def run(self) -> Stop | None:
        """
        Train from where the state stands to the end, then save the result and its pictures.

        Returns:
            why the run ended early, once its last finished step is saved; None at its proper end.
        """
        try:
            self.train()
            self.finish()
        except Interrupted:
            stop = self.meeting.reason()
            if self.state.step != self._saved_step:
                self.save_step()
            self.accelerator.end_training()
            return stop
        return None

    def train(self) -> None:
        """All steps that are left. It is left with [`Interrupted`] between two steps, or while a mixture is fitted."""
        run, state = self.arguments.run, self.state
        (self.output_dir / INTERRUPTED).unlink(missing_ok=True)
        if run.report_to != "none":
            self.accelerator.init_trackers("sjepa")
        if not self._fitted and self.schedule.phase(0) == 1:
            self.fits.mfcc(self.targets)
            self._saved_step = None
        monitor = Monitor(self.accelerator, self.output_dir, self.schedule, state.step, self.model.config.hidden_size)
        while state.step < self.schedule.total_steps:
            if self.schedule.phase(state.step) == 2 and isinstance(self.targets, MfccTargets):
                with monitor.paused():
                    self.begin_phase_2()
            if state.seeding_due:
                with monitor.paused():
                    self.follow_layer()
            if self.fits.take_long():  # so that it is never made twice, however short the run may live
                self.save_step()
            micro_batches = [self.next_batch() for _ in range(self._accumulation)]
            rate = self.schedule.learning_rate(state.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            frames = max(1.0, self.meeting.sum(self.frame_count(micro_batches))[0])
            self.take(micro_batches)
            losses = []
            for number, batch in enumerate(micro_batches):
                last = number == len(micro_batches) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                    targets = self.targets.posteriors(batch)
                    output = self.predict(batch, targets)
                    self.accelerator.backward(self.summed_divergence(output) * self.ranks / frames)
                losses.append(loss_sums(output))
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), run.max_grad_norm)
            broken = self.update_weights(norm)
            decay = self.schedule.ema_decay(state.step)
            self.targets.update(self.model.sjepa, decay)
            state.step += 1
            for sums in (*losses, {"gradient_norm": norm.detach(), "steps": 1}):
                monitor.add(**{name: torch.where(broken, 0, value) for name, value in sums.items()})
            monitor.count_step(state.step, self.schedule.phase(state.step - 1))
            self.look_after(monitor, micro_batches, targets, output, rate, decay)

    def update_weights(self, norm: torch.Tensor) -> torch.Tensor:
        """The optimizer's step, which changes nothing where the gradient is NaN or infinite; returns whether it is."""
        broken = ~torch.isfinite(norm)
        if self.accelerator.scaler is None:  # else the scaler does this
            self.optimizer.optimizer.found_inf = broken.float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._broken = torch.stack([torch.where(broken, self._broken[0] + 1, 0), self._broken[1] + broken])
        return broken

    def predict(self, batch: dict, targets: torch.Tensor) -> SJepaForPreTrainingOutput:
        """Masked prediction from the augmented audio, and its divergence from the targets."""
        masking, late = self.arguments.masking, self.schedule.late(self.state.step)
        audio = batch["input_values"] if late else augmented(batch, masking.p_mix, masking.p_noise)
        frozen = {}
        if self.frozen_targets is not None:
            frozen = {
                "frozen_posteriors": self.frozen_targets.posteriors(batch),
                "frozen_weight": self.schedule.frozen_weight(self.state.step),
            }
        with self.accelerator.autocast():
            return self.wrapped(
                audio,
                attention_mask=batch["attention_mask"],
                mask_time_indices=batch["mask_time_indices"],
                target_posteriors=targets,
                include_visible=not self.schedule.masked_only(self.state.step),
                masked_positions=batch["masked_positions"],
                visible_positions=batch["visible_positions"],
                longest_visible=batch["longest_visible"],
                **frozen,
            )

    def frame_count(self, micro_batches: list[dict]) -> int:
        """Frames of this rank that count in the loss of this step, which is one mean over those of all ranks."""
        parts = ["masked_positions"]
        if not self.schedule.masked_only(self.state.step):
            parts.append("visible_positions")
        return sum(len(batch[part]) for batch in micro_batches for part in parts)

    def begin_phase_2(self) -> None:
        """
        The boundary: EMA encoder := encoder, a new mixture seeded on its features, a new last layer of the head.
        Nothing changes before the mixture is there.
        """
        settings = self.arguments.targets
        size = settings.phase2_components, settings.target_dims or self.model.config.hidden_size
        with torch.random.fork_rng():  # a fit that is interrupted leaves the run's random numbers as they were
            mixture = DiagonalGaussianMixture(*size).to(self.accelerator.device)
        targets = self._online_targets(mixture)
        self.fits.online(targets, self.layer_choice.active, settings.seed_frames, salt=1)
        self.model.replace_mixture(*size, keep_frozen=settings.keeps_frozen)
        self.model.mixture.load_state_dict(mixture.state_dict())
        targets.mixture = self.model.mixture
        self.targets = targets
        self._keep_frozen_targets()
        parameters = list(self.model.parameters())
        self.optimizer.param_groups[0]["params"] = parameters
        for parameter in set(self.optimizer.state) - set(parameters):
            del self.optimizer.state[parameter]
        self.restart_head(salt=1)
        self._wrap()

    def follow_layer(self) -> None:
        """Other clusters, after the layer that makes the targets has changed."""
        salt = self.state.step
        self.fits.online(self.targets, self.layer_choice.active, self.arguments.targets.reseed_frames, salt)
        self.restart_head(salt)
        self.state.seeding_due = False

    def _online_targets(self, mixture: DiagonalGaussianMixture) -> OnlineTargets:
        return online_targets(self.model.sjepa, mixture, self.arguments, self.layer_choice, self.accelerator)

    def _keep_frozen_targets(self) -> None:
        """In phase 2, where the model has kept its frozen mixture: its targets too."""
        if self.model.config.num_frozen_components is not None:
            self.frozen_targets = frozen_targets(self.model.frozen_mixture, self.arguments.targets)

    def look_after(self, monitor: Monitor, micro_batches: list[dict], targets, output, rate: float, decay: float):
        """What happens now and then: dead components, effective ranks and the layer choice, metrics, checkpoints."""
        run, settings, state = self.arguments.run, self.arguments.targets, self.state
        online = isinstance(self.targets, OnlineTargets)
        if online and state.step % RESEED_EVERY == 0:
            state.reseeded_components += self.model.mixture.reseed_dead()
        ranks = None
        if state.step % settings.layer_check_steps == 0:
            encoder = self.targets.teacher if online else self.model.sjepa
            ranks = layer_ranks(encoder, micro_batches, self.accelerator, seed=run.seed + state.step)
            more_to_come = state.step < self.schedule.total_steps
            changed = online and more_to_come and self.layer_choice.observe(ranks)
        if state.step % run.logging_steps == 0 or ranks is not None or state.step in (1, self.schedule.total_steps):
            metrics = self.metrics(monitor, micro_batches[-1], targets, output, rate, decay, ranks)
            monitor.write(metrics, 3600 * metrics["hours_seen"])
            if self._broken[0] >= run.max_skipped_steps:
                self.interruption.ask(1, f"{int(self._broken[0])} steps in a row had a NaN or infinite gradient")
        if ranks is not None and changed:
            logger.info("Step %d: layer %d now has the highest effective rank.", state.step, self.layer_choice.active)
            state.seeding_due = settings.reseed_on_layer_switch
        if state.step % run.save_steps == 0:
            self.save_step()

    def restart_head(self, salt: int) -> None:
        """
        The clusters are others than before: the last layer of the head starts anew (the same on every rank), and its
        optimizer state too.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.arguments.run.seed + salt)
            self.model.reset_last_layer()
        for parameter in self.model.cluster_head.output.parameters():
            self.optimizer.state.pop(parameter, None)

    # Bookkeeping

    def next_batch(self) -> dict:
        """The next batch of this rank, on its device."""
        return to_device(self.data.next(), self.accelerator.device)

    def take(self, micro_batches: list[dict]) -> None:
        """Count a step's batches as used. Too many bad clips end the run after this step."""
        for batch in micro_batches:
            self.state.samples_padded += batch["input_values"].numel()
            self.state.samples_real += round(batch["seconds"] * 16000)
        try:
            self.data.take()
        except BadAudioError as error:
            self.interruption.ask(1, str(error).rstrip("."))

    @property
    def ranks(self) -> int:
        return self.accelerator.num_processes

    @property
    def _accumulation(self) -> int:
        return self.arguments.run.gradient_accumulation_steps

    def seconds_heard(self) -> float:
        """Audio that all ranks have heard so far, in seconds. Every rank must ask."""
        here = torch.tensor(self.data.seconds, device=self.accelerator.device)
        return self.state.seconds + self.accelerator.reduce(here, reduction="sum").item()

    def seconds_taken(self) -> float:
        """Time that the run has taken so far, with what it took before it was resumed."""
        return self.state.seconds_taken + time.monotonic() - self._started

    def _wrap(self) -> None:
        """Give the model to Accelerate; anew at the boundary, where its last layer is another one."""
        self.wrapped = self.model
        if self.ranks > 1:
            self.wrapped = self.accelerator.prepare_model(self.model)

    def summed_divergence(self, output: SJepaForPreTrainingOutput) -> torch.Tensor:
        """The loss as a sum over frames, from which the global mean is made."""
        return output.loss * (output.num_masked_frames + output.num_visible_frames)

    def metrics(self, monitor: Monitor, batch: dict, targets, output, rate: float, decay: float, ranks) -> dict:
        """One line of the history."""
        state = self.state
        metrics = {
            "step": state.step,
            "phase": 1 if state.step <= self.arguments.run.phase1_steps else 2,
            "hours_seen": self.seconds_heard() / 3600,
            "learning_rate": rate,
            "padded_share": 1 - state.samples_real / max(state.samples_padded, 1),
            "skipped_clips": self.data.bad_audio.skipped,
            "skipped_steps": state.skipped_steps + int(self._broken[1]),
            **monitor.averages(self.accelerator.device),
            **target_metrics(self.model.mixture, targets, output, batch["masked_positions"]),
        }
        if metrics["phase"] == 2:
            metrics |= {
                "ema_decay": decay,
                "reseeded_components": state.reseeded_components,
                "layer_scores": self.layer_choice.scores,
            }
            if not self.arguments.targets.target_layers:
                metrics["active_layer"] = self.layer_choice.active
        if ranks is not None:
            metrics["effective_ranks"] = ranks
        return metrics

    def save(self, directory: Path) -> None:
        """
        A checkpoint to resume from, which `from_pretrained` opens too. One that cannot be written is reported and left
        out; several in a row end the run.

        Raises:
            RanksDisagree: if the ranks no longer hold the same.
        """
        online = self.targets.modules if isinstance(self.targets, OnlineTargets) else {}
        parts = {"model": self.model.parameters(), "mixture": self.model.mixture.buffers()}
        if online:
            parts["EMA encoder"] = online["teacher"].parameters()
        check_ranks_agree(self.accelerator, parts, self.layer_choice.active)
        clips_seen, clips_skipped = self.data.clips()
        state = replace(
            self.state,
            active_layer=self.layer_choice.active,
            layer_scores=self.layer_choice.scores,
            seconds=self.seconds_heard(),
            seconds_taken=self.seconds_taken(),
            skipped_steps=self.state.skipped_steps + int(self._broken[1]),
            clips_seen=clips_seen,
            clips_skipped=dict(clips_skipped),
            processes=self.ranks,
            accumulation=self._accumulation,
            data=self.data.position().to_dict(),
        )
        random_states = gather_object([checkpointing.random_state()])
        self._saved_step = self.state.step
        if self.accelerator.is_main_process:
            self.saver.write(
                directory,
                self.state.step,
                self.model,
                online,
                self.optimizer,
                self.accelerator.scaler,
                random_states,
                state,
                self.arguments.to_dict(),
            )
        self.accelerator.wait_for_everyone()

    def save_step(self) -> None:
        """The checkpoint of the last finished step."""
        self.save(self.output_dir / f"checkpoint-{self.state.step}")

    def finish(self) -> None:
        """The final checkpoint and the pictures beside it."""
        final = self.output_dir / FINAL
        self.save(final)
        if self.saver.failed:
            raise OSError(f"{final} could not be written: free space and resume from the last checkpoint.")
        seconds = self.seconds_heard()
        entropy = predictor_entropy(self.model, self.data.fresh_pass(salt=2), ENTROPY_FRAMES, self.accelerator)
        self.meeting.sum()
        if self.accelerator.is_main_process:
            components, phase1_steps = self.model.mixture.num_components, self.arguments.run.phase1_steps
            drawn = figures.draw_run(self.output_dir, final, phase1_steps, entropy, components)
            record_pretraining(final, self.accelerator, self.arguments, self.state.step, seconds, self.seconds_taken())
            logger.info("Saved %s: model, training state, record and pictures (%s).", final, ", ".join(drawn))
        if bad := self.data.bad_audio.skipped:
            logger.warning("%d clips were skipped: %s.", bad, dict(self.data.bad_audio.by_reason))
        self.accelerator.end_training()
        if self.publisher:
            self.publisher.finish(final)


if __name__ == "__main__":
    main()
