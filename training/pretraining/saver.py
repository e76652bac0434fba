"""A run's checkpoints as they come: written from the main process, counted where they fail, published, thinned out."""

import logging
import shutil
from pathlib import Path

from safetensors import SafetensorError

from training.common.publishing import Publisher
from training.common.signals import Interruption
from training.pretraining import checkpointing, resuming


logger = logging.getLogger(__name__)

MAX_FAILED = 3  # checkpoints in a row that could not be written, that end the run


class Saver:
    """
    Args:
        interruption (`Interruption`): is asked to end the run when several checkpoints in a row fail.
        publisher (`Publisher`, *optional*): gets each checkpoint too.
        keep (`int`): checkpoints to keep, the newest; 0 keeps all.

    Attributes:
        failed (`int`): checkpoints in a row that could not be written.
    """

    def __init__(self, interruption: Interruption, publisher: Publisher | None, keep: int):
        self.interruption, self.publisher, self.keep = interruption, publisher, keep
        self.failed = 0

    def write(self, directory: Path, step: int, *parts) -> None:
        """[`checkpointing.save_checkpoint`] of the parts; what cannot be written is reported and left out."""
        try:
            checkpointing.save_checkpoint(directory, *parts)
        except (OSError, SafetensorError, RuntimeError) as error:
            self.failed += 1
            free = shutil.disk_usage(directory.parent).free / 2**20
            in_a_row = f"{self.failed} in a row, {free:.0f} MiB free there"
            logger.error("%s could not be written (%s): %s.", directory, in_a_row, error)
            if self.failed >= MAX_FAILED:
                self.interruption.ask(1, f"{self.failed} checkpoints in a row could not be written")
            return
        self.failed = 0
        if directory.name != resuming.FINAL:
            resuming.prune_checkpoints(directory.parent, self.keep)
            if self.publisher:
                self.publisher.checkpoint(directory, revision=f"step-{step}")
