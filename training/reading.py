"""The data of a run as it is used up: the next batch, where every reader stands, and what could not be read."""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sjepa_hf.command import own_words
from training.arguments import Arguments
from training.audio import BadAudioError, BadAudioMonitor
from training.batching import BatchStream
from training.corpus import DataPosition
from training.data import build_loader, start_reading


logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # dead workers in a row, without a batch between them, that end the run


class TrainingData:
    """
    The endless batches of this rank.

    Args:
        arguments (`Arguments`): of the run.
        accelerator (`Accelerator`): says which rank this is.
        position (`DataPosition`, *optional*): where an earlier run has stopped.

    Attributes:
        bad_audio (`BadAudioMonitor`): clips of this rank that were skipped.
        seconds (`float`): audio that this rank has given, in seconds.
    """

    def __init__(self, arguments: Arguments, accelerator: Accelerator, position: DataPosition | None = None):
        self.arguments, self.accelerator = arguments, accelerator
        self.bad_audio = BadAudioMonitor(arguments.data.max_bad_fraction)
        self.seconds = 0.0
        self._loader = self._open(arguments.data, arguments.run.seed, position=position)
        self._position: DataPosition = self._loader.dataset.position
        self._batches: Iterator[dict] | None = None

    @property
    def readers_here(self) -> int:
        """Readers of this rank."""
        return max(1, self.arguments.data.num_workers)

    @property
    def stream(self) -> BatchStream:
        """What plans and reads the batches of this rank."""
        return self._loader.dataset

    def next(self) -> dict:
        """
        The next batch, on the CPU. A worker that dies (out of memory, most often) is replaced: reading goes on where
        it stood and nothing is lost.

        Raises:
            BadAudioError: when the data give nothing usable, or workers die again and again.
        """
        for restart in range(MAX_RESTARTS + 1):
            try:
                if self._batches is None:
                    self._batches = start_reading(self._loader)
                    # torch would raise the death of a worker anywhere in a step; without this, where batches are read.
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                batch = next(self._batches)
                break
            except BadAudioError as error:
                raise BadAudioError(own_words(error)) from None
            except (RuntimeError, OSError, EOFError) as error:
                workers = getattr(self._batches, "_workers", [])
                if not one_has_died(workers):
                    raise
                logger.warning("A process that reads audio died and is replaced (%d): %s", restart + 1, error)
                for worker in workers:
                    worker.kill()
                self._batches = None
                seed = self.arguments.run.seed
                self._loader = self._open(self.arguments.data, seed, position=self._position)
        else:
            raise BadAudioError(
                f"Processes that read audio died {MAX_RESTARTS + 1} times in a row: is the machine out of memory?"
                " Lower num_workers, bucket_buffer_size or shuffle_buffer_size."
            )
        self._position.positions[batch["reader"]] = batch["position"]
        self._position.batches += self.accelerator.num_processes
        self.seconds += batch["seconds"]
        self.bad_audio.update(len(batch["lengths"]), batch["skipped"])
        return batch

    def position(self) -> DataPosition:
        """Where the readers of all ranks stand. Every rank must ask."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = {reader: at for reader, at in self._position.positions.items() if reader % ranks == rank}
        parts = gather_object([own])
        return replace(self._position, positions={reader: at for part in parts for reader, at in part.items()})

    def fresh_pass(self, salt: int) -> Iterator[dict]:
        """One pass over the data in an order of its own, which leaves the training batches where they are."""
        data = replace(self.arguments.data, cache_gb=0.0, bucket_buffer_size=256)
        batches = start_reading(self._open(data, self.arguments.run.seed + 1000 + salt, max_epochs=1))
        while True:
            try:
                batch = next(batches, None)
            except BadAudioError as error:
                raise BadAudioError(own_words(error)) from None
            except (RuntimeError, OSError, EOFError) as error:
                if one_has_died(getattr(batches, "_workers", [])):
                    raise BadAudioError(
                        "A process that reads audio died: is the machine out of memory? Lower num_workers, and go on"
                        f" from the last checkpoint ({str(error).splitlines()[0]})."
                    ) from None
                raise
            if batch is None:
                break
            self.bad_audio.update(len(batch["lengths"]), batch["skipped"])
            self.bad_audio.check()
            yield batch
        self.bad_audio.check(end_of_data=True)

    def _open(self, data, seed: int, **options) -> torch.utils.data.DataLoader:
        return build_loader(
            data,
            mask_prob=self.arguments.masking.mask_prob,
            mask_span=self.arguments.masking.mask_span,
            seed=seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            pin_memory=self.accelerator.device.type == "cuda",
            **options,
        )


def one_has_died(workers: Sequence[BaseProcess], patience: float = 2.0) -> bool:
    """Whether one of the workers is dead; what it leaves half-sent is noticed up to `patience` seconds before that."""
    end = time.monotonic() + patience
    while workers and time.monotonic() < end:
        if not all(worker.is_alive() for worker in workers):
            return True
        time.sleep(0.05)
    return False
