"""A pretraining run: everything that its loop works on, new or as a checkpoint holds it."""

import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed

from sjepa_hf.opening import open_config
from training.common.device import choose_precision, on_cpu
from training.common.memory import keep_freed_memory
from training.common.output_directory import lock_of
from training.common.processes import COLLECTIVE_TIMEOUT, Coordinator, all_or_none, end_group, summed_numbers
from training.common.publishing import Publisher
from training.common.signals import Interruption
from training.data.order import DataPosition
from training.pretraining import resuming
from training.pretraining.arguments import Arguments
from training.pretraining.model import build_model, build_optimizer, frozen_targets
from training.pretraining.schedules import Schedule
from training.pretraining.training_data import TrainingData
from training.targets.layer_choice import LayerChoice
from training.targets.targets import FrozenTargets, OnlineTargets


class Totals(NamedTuple):
    """
    Of all processes of a run together.

    Attributes:
        seconds (`float`): audio heard since the run began.
        skipped (`int`): unusable clips since then.
        samples_padded (`int`), samples_real (`int`): samples in all batches, with and without padding.
        losses (`dict[str, list[float]]`): the run's `loss_sums`.
    """

    seconds: float
    skipped: int
    samples_padded: int
    samples_real: int
    losses: dict[str, list[float]]


class Run:
    """
    The parts of a run. When it is resumed they hold the checkpoint's weights, loop state and place in the data;
    [`checkpointing.restore`] fills in the rest.

    Args:
        arguments (`Arguments`): of the run. What has had its effect before the checkpoint is put back in place.

    Attributes:
        accelerator (`Accelerator`): device, precision and processes.
        coordinator (`Coordinator`), interruption (`Interruption`): how the processes agree, and how a run ends early.
        schedule (`Schedule`): what the settings say of each step.
        resumed (`Path`, *optional*): the checkpoint that the run goes on from.
        state (`LoopState`): all that changes and is no tensor, as of the last checkpoint but for step and counters.
        model (`SJepaForPreTraining`): encoder, predictor, head and mixture; `wrapped` is the same under Accelerate.
        optimizer (`AcceleratedOptimizer`): of the model's parameters.
        targets (`FrozenTargets` or `OnlineTargets`): make the posteriors that are predicted. They say which phase the
            run is in; where the next step is of another one by the schedule, or they are not `fitted`, a fit is due.
        frozen_targets (`FrozenTargets`, *optional*): in phase 2 those of phase 1, where they stay in the loss.
        layer_choice (`LayerChoice`): which layer the targets of phase 2 are read from.
        data (`TrainingData`): the batches of this process.
        skipped_steps (`torch.Tensor`), skipped_in_a_row (`torch.Tensor`): `()`, steps without an update because of a
            NaN or infinite gradient, since the run began and just now in a row.
        loss_sums (`dict[str, tuple]`): of this process since the last line of metrics: sum and number of each part.
        unsaved (`bool`): whether a step, or the fit of the first mixture, is in no checkpoint yet.
        failed_saves (`int`): checkpoints in a row that could not be written.
        publisher (`Publisher`, *optional*): sends results to the Hub, from the main process.
        output_dir (`Path`), lock (`FileLock`): where results go, and what keeps other runs out of it.

    Raises:
        ValueError: if the output directory, the checkpoint or the data cannot be used.
        AlreadyFinished: if the run that is to be resumed has come to its end.
    """

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        run, settings = arguments.run, arguments.targets
        self.started = time.monotonic()
        self.accelerator = Accelerator(
            cpu=on_cpu(),
            mixed_precision=choose_precision(run.mixed_precision),
            log_with=None if run.report_to == "none" else run.report_to,
            project_dir=run.output_dir,
            # The mixture is the same in all processes by construction; sending it around would only hide a drift.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            ],
        )
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.output_dir = Path(run.output_dir)
        self.lock = lock_of(self.output_dir)
        with all_or_none(self.accelerator):
            if self.accelerator.is_main_process:
                resuming.claim(self.output_dir, self.lock, run.resume_from_checkpoint is not None, run.dry_run)
        self.interruption = Interruption()
        self.coordinator = Coordinator(self.accelerator, self.interruption)
        self.schedule = Schedule(arguments)
        self.resumed, self.state = resuming.find_start(arguments, self.accelerator, self.lock)
        self.publisher = None
        if run.push_to_hub and self.accelerator.is_main_process and not run.dry_run:
            repo_id = run.hub_model_id or self.output_dir.resolve().name
            begun_with = self.resumed or arguments.model.initial_checkpoint
            kind = open_config(begun_with).model_type if begun_with else "sjepa"
            self.publisher = Publisher(repo_id, kind, self.output_dir, run.hub_private_repo)
        set_seed(run.seed)
        self.model = build_model(arguments, self.resumed, self.accelerator)
        self.optimizer = self.accelerator.prepare_optimizer(build_optimizer(self.model, run))
        set_seed(run.seed, device_specific=True)  # dropout differs between processes, weights do not
        self.targets: FrozenTargets | OnlineTargets = frozen_targets(self.model.mixture, settings)
        self.targets.fitted = self.resumed is not None
        self.frozen_targets: FrozenTargets | None = None
        self.layer_choice = LayerChoice(settings.start_layer, settings.layer_score_decay, settings.follows_ranks)
        position = DataPosition.from_dict(self.state.data) if self.resumed else None
        self.data = TrainingData(arguments, self.accelerator, self.coordinator, position)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        self.skipped_in_a_row = self.skipped_steps.clone()
        self.loss_sums: dict[str, tuple[torch.Tensor | float, torch.Tensor | float]] = {}
        self.unsaved = False
        self.failed_saves = 0
        self.wrap()

    def wrap(self) -> None:
        """Give the model to Accelerate; anew whenever it has other parameters."""
        self.wrapped = self.model
        self.accelerator._models.clear()  # of DDP's earlier wrapper, whose buffers are as large as all gradients
        if self.processes > 1:
            with warnings.catch_warnings():  # what torch offers instead sends the buffers around at the start
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self.wrapped = self.accelerator.prepare_model(self.model)

    def end(self) -> None:
        """End trackers and the process group; every process must call it."""
        self.wrapped = self.model
        end_group(self.accelerator)

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    def totals(self) -> Totals:
        """Audio heard, clips skipped and `loss_sums` of all processes together. Every process must call it."""
        names = sorted(self.loss_sums)
        losses = [float(part) for name in names for part in self.loss_sums[name]]
        counts = [self.data.bad_audio.skipped, self.data.samples_padded, self.data.samples_real]
        seconds, *sums = summed_numbers([self.data.seconds, *counts, *losses], self.accelerator)
        counts, losses = map(int, sums[:3]), sums[3:]
        pairs = map(list, zip(losses[::2], losses[1::2]))
        return Totals(seconds, *counts, dict(zip(names, pairs, strict=True)))

    def seconds_taken(self) -> float:
        """Time that the run has taken so far, in seconds, with what it took before it was resumed."""
        return self.state.seconds_taken + time.monotonic() - self.started
