"""The fits of a run's mixtures: each reads audio in a pass of its own, which leaves the training batches alone."""

import logging
import time

from accelerate import Accelerator

from training.common.processes import Meeting
from training.common.progress import Progress
from training.pretraining.arguments import Arguments
from training.pretraining.training_data import TrainingData
from training.targets.targets import MfccTargets, OnlineTargets, fit_mixture, sample_frames


logger = logging.getLogger(__name__)

LONG = 60.0  # seconds of fitting that are worth a checkpoint


class MixtureFits:
    """
    Args:
        arguments (`Arguments`): of the run.
        data (`TrainingData`): gives the passes.
        accelerator (`Accelerator`), meeting (`Meeting`): the ranks. A fit that is interrupted changes no mixture of
            phase 2, and ends with `Interrupted`.
    """

    def __init__(self, arguments: Arguments, data: TrainingData, accelerator: Accelerator, meeting: Meeting):
        self.arguments, self.data, self.accelerator, self.meeting = arguments, data, accelerator, meeting
        self._was_long = False

    def mfcc(self, targets: MfccTargets) -> None:
        """Phase 1's mixture: a uniform sample of the corpus's MFCC frames, k-means, EM."""
        settings, seed, began = self.arguments.targets, self.arguments.run.seed, time.monotonic()
        logger.info("Reading up to %g hours for the MFCC mixture.", settings.fit_hours)
        progress = Progress("MFCC mixture", self.accelerator.is_main_process)
        sample = sample_frames(
            targets.features,
            progress.hours(self.data.fresh_pass(salt=0), self.accelerator.num_processes),
            settings.fit_frames,
            seed,
            self.accelerator,
            max_seconds=settings.fit_hours * 3600,
            batches_a_round=self.data.readers_here,
            meeting=self.meeting,
        )
        with self.meeting.waiting():
            self._check_frames(len(sample))
        options = settings.fit_options() | {"progress": progress}
        fit_mixture(targets.mixture, sample, seed, self.accelerator, self.meeting, **options)
        self._done(began)

    def online(self, targets: OnlineTargets, layer: int, num_frames: int, salt: int) -> None:
        """Phase 2's mixture, over the EMA encoder's features."""
        began = time.monotonic()
        layers = targets.target_features.layers or (layer,)
        logger.info("Seeding the mixture on features of layer %s.", ", ".join(map(str, layers)))
        progress = Progress("Mixture of phase 2", self.accelerator.is_main_process)
        targets.seed(
            progress.hours(self.data.fresh_pass(salt=salt), self.accelerator.num_processes),
            num_frames,
            self.arguments.run.seed + salt,
            batches_a_round=self.data.readers_here,
            meeting=self.meeting,
            progress=progress,
            **self.arguments.targets.fit_options(),
        )
        self._done(began)

    def _check_frames(self, found: int) -> None:
        """Raise a ValueError at the start where phase 2 could not be seeded on so little audio."""
        settings = self.arguments.targets
        everything = found < settings.fit_frames and found / 50 < settings.fit_hours * 3600 / 2
        if everything and self.arguments.run.phase2_steps and found < settings.phase2_components:
            raise ValueError(
                f"`phase2_components` is {settings.phase2_components}, but train_data has {found} frames in all:"
                " give more audio or fewer components"
            )

    def _done(self, began: float) -> None:
        self.data.take()
        took = self.meeting.sum(time.monotonic() - began)[0] / self.accelerator.num_processes
        self._was_long = took >= LONG

    def take_long(self) -> bool:
        """Whether there was a fit since the last call that took long; the same on all ranks."""
        was_long, self._was_long = self._was_long, False
        return was_long
