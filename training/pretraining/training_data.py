"""Training data of a run: the next batch, where every reader stands, and what could not be read."""

import logging
import platform
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from sjepa_hf.command import first_line, own_words
from sjepa_hf.frames import SAMPLING_RATE
from training.common.processes import Coordinator, all_or_none, local_processes
from training.common.seeds import Purpose, seed_for
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioError, BadAudioMonitor
from training.data.batches import BatchStream
from training.data.loader import build_loader, open_sources
from training.data.manifest import JsonLines
from training.data.noise import open_noise
from training.data.order import DataPosition
from training.data.sources import Source
from training.data.workers import SAMPLE_BYTES, WorkerTimeout, check_shared_memory, one_has_died, why_died
from training.pretraining.arguments import Arguments
from training.pretraining.checkpoint_layout import LoopState


logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # dead workers in a row, without a batch between them, that end the run
POLL = 1.0  # seconds after which a wait for a batch looks around
NOTHING_CAME = "DataLoader timed out"  # what torch says then


class RestartingLoader:
    """
    The batches of a loader that is opened again, where it stood, when one of its workers dies.

    Args:
        open_loader: the loader whose readers go on from `position`; None: from the start.
        processes (`int`): of the run.
        position (`DataPosition`, *optional*): where to begin.

    Attributes:
        position (`DataPosition`): where all readers of this process go on after the batches that were given.
    """

    def __init__(
        self,
        open_loader: Callable[..., DataLoader],
        processes: int,
        position: DataPosition | None = None,
    ):
        self._open_loader = open_loader
        self._processes = processes
        self._loader = open_loader(position=position)
        self._batches: Iterator[dict] | None = None
        start: DataPosition = self._loader.dataset.position
        self.position = replace(start, positions=dict(start.positions))

    @property
    def stream(self) -> BatchStream:
        """What plans and reads the batches."""
        return self._loader.dataset

    def next(self) -> dict | None:
        """
        The next batch, on the CPU, or None at the end. A worker that dies (out of memory, most often) is replaced:
        reading goes on where it stood and nothing is lost.

        Raises:
            BadAudioError: when the data give nothing usable, workers die again and again, or no batch comes.
            ValueError: if a source has changed or gone.
        """
        restarts = 0
        while True:
            try:
                batch = self._wait()
                break
            except BadAudioError as error:
                raise BadAudioError(own_words(error)) from None
            except ValueError as error:
                raise ValueError(own_words(error)) from None
            except (RuntimeError, OSError, EOFError) as error:
                restarts += 1
                self._replace_workers(error, restarts)
        if batch is not None:
            self.position.positions[batch["reader"]] = batch["position"]
            self.position.batches += self._processes
        return batch

    def close(self) -> None:
        """End the workers, which would otherwise wait for work until garbage collection."""
        workers = self._workers()
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(timeout=2)
        self._batches = None

    def _wait(self) -> dict | None:
        """The next batch, or None at the end. Raises BadAudioError where none comes for long, and what ends a read."""
        self._start()
        timeout = None
        while True:
            try:
                return next(self._batches, None)
            except RuntimeError as error:
                if not (str(error).startswith(NOTHING_CAME) and self._can_come()):
                    raise
            timeout = timeout or WorkerTimeout(self._workers())
            if too_long := timeout.add(POLL):
                self.close()
                raise BadAudioError(too_long)

    def _replace_workers(self, error: Exception, restarts: int) -> None:
        """
        Read on with new workers where an error, for the `restarts`-th time in a row, is of one that has died.

        Raises:
            BadAudioError: where it has been too often.
            Exception: the error itself, where none has died.
        """
        workers = self._workers()
        if self._can_come() and not one_has_died(workers):
            raise error
        self.close()
        if restarts > MAX_RESTARTS:
            raise BadAudioError(f"Data loader workers died {restarts} times in a row: {why_died(workers)}.") from None
        logger.warning("A process that reads audio died and is replaced (%d): %s", restarts, first_line(error))
        self._loader = self._open_loader(position=self.position)

    def _start(self) -> None:
        if self._batches is not None:
            return
        if self._loader.num_workers:
            self._loader.timeout = POLL
        self._batches = iter(self._loader)
        # torch would raise the death of a worker anywhere in a step; without this, where batches are read.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _can_come(self) -> bool:
        """Whether the thread that pins batches, if there is one, still passes them on; a worker's end can end it."""
        pins = getattr(self._batches, "_pin_memory_thread", None)
        return pins is None or pins.is_alive()

    def _workers(self) -> Sequence[BaseProcess]:
        return getattr(self._batches, "_workers", [])


class TrainingData:
    """
    The endless batches of this process.

    Args:
        arguments (`Arguments`): of the run.
        accelerator (`Accelerator`): says which process this is.
        coordinator (`Coordinator`): lets a stop of any process end a wait for a batch.
        position (`DataPosition`, *optional*): where an earlier run has stopped.

    Attributes:
        bad_audio (`BadAudioMonitor`): clips of this process that were skipped.
        seconds (`float`): audio that this process has taken since the run was started, in seconds.
        samples_padded (`int`), samples_real (`int`): samples in the batches that it has taken since then, with and
            without padding. Of a resumed run all three hold in the first process those of all processes before, too.

    Raises:
        ValueError: if the sources cannot be opened, or shared memory does not suffice for the workers.
    """

    def __init__(
        self,
        arguments: Arguments,
        accelerator: Accelerator,
        coordinator: Coordinator,
        position: DataPosition | None = None,
    ):
        self.arguments, self.accelerator, self.coordinator = arguments, accelerator, coordinator
        self.bad_audio = BadAudioMonitor(arguments.data.max_bad_fraction)
        self.seconds, self.samples_padded, self.samples_real = 0.0, 0, 0
        data, masking = arguments.data, arguments.masking
        processes_here = local_processes(accelerator)
        with all_or_none(accelerator):
            noise = open_noise(masking.noise_data, masking.p_noise) if masking.noise_data else None
            sample_bytes = SAMPLE_BYTES + (4 * masking.p_noise if noise else 0)
            check_shared_memory(data.batch_seconds, data.num_workers, processes_here, sample_bytes)
            self._sources = open_sources(data)  # once for all passes
            self._loader = self._open(data, arguments.run.seed, position, noise=noise)
        check_same_data(self._sources, accelerator)
        self._read: list[dict] = []  # and not taken
        self._mark()

    @property
    def readers_here(self) -> int:
        """Readers of this process."""
        return max(1, self.arguments.data.num_workers)

    @property
    def stream(self) -> BatchStream:
        """What plans and reads the batches of this process."""
        return self._loader.stream

    def next(self) -> dict:
        """
        The next batch, on the CPU. It counts as read once it is taken.

        Raises:
            Interrupted: if the run is to end, be it for a signal or because the data cannot be read.
        """
        with self.coordinator.waiting():
            batch = self._loader.next()
        self._read.append(batch)
        return batch

    def mark_used(self) -> None:
        """
        Count the batches given so far as used: a checkpoint goes on behind them. Where too many of their clips could
        not be used, the run is asked to end after this step.
        """
        for batch in self._read:
            self.seconds += batch["seconds"]
            self.samples_padded += batch["input_values"].numel()
            self.samples_real += round(batch["seconds"] * SAMPLING_RATE)
            self.bad_audio.update(len(batch["lengths"]), batch["skipped"])
        self._read = []
        self._mark()
        try:
            self.bad_audio.check()
        except BadAudioError as error:
            self.coordinator.interruption.ask(1, str(error).rstrip("."), error)

    def position(self) -> DataPosition:
        """Where the readers of all processes stand behind what was taken. Every process must call it."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        own = {reader: at for reader, at in self._taken.positions.items() if reader % processes == index}
        parts = gather_object([own])
        return replace(self._taken, positions={reader: at for part in parts for reader, at in part.items()})

    def fresh_pass(self, purpose: Purpose, number: int = 0) -> Iterator[dict]:
        """
        One pass over the data in an order of its own, which leaves the training batches where they are. Ends with
        [`Interrupted`] as `next` does.

        Args:
            purpose (`Purpose`), number (`int`): decide the order.
        """
        data = replace(self.arguments.data, bucket_buffer_size=256)
        with self.coordinator.waiting():
            loader = self._open(data, seed_for(self.arguments.run.seed, purpose, number), max_epochs=1)
        try:
            while True:
                with self.coordinator.waiting():
                    batch = loader.next()
                    if batch is not None:
                        self.bad_audio.update(len(batch["lengths"]), batch["skipped"])
                    self.bad_audio.check(end_of_data=batch is None)
                if batch is None:
                    break
                yield batch
        finally:
            loader.close()

    def close(self) -> None:
        """End the processes that read."""
        self._loader.close()

    def restore(self, state: LoopState) -> None:
        """Count on from an earlier run."""
        if self.accelerator.is_main_process:  # its counts are those of all processes
            self.seconds = state.seconds
            self.samples_padded, self.samples_real = state.samples_padded, state.samples_real
            self.bad_audio.restore(state.clips_seen, state.clips_skipped)
        self._mark()

    def clips(self) -> tuple[int, Counter[str]]:
        """Clips of all processes up to what was taken, and the unusable ones by reason. Every process must call it."""
        parts = gather_object([self._clips])
        return sum(seen for seen, _ in parts), sum((reasons for _, reasons in parts), Counter())

    def _mark(self) -> None:
        self._taken = replace(self._loader.position, positions=dict(self._loader.position.positions))
        self._clips = self.bad_audio.seen, Counter(self.bad_audio.by_reason)

    def _open(
        self, data: DataArguments, seed: int, position: DataPosition | None = None, **options
    ) -> RestartingLoader:
        open_loader = partial(
            build_loader,
            data,
            mask=self.arguments.masking.mask(),
            seed=seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            pin_memory=self.accelerator.device.type == "cuda",
            sources=self._sources,
            **options,
        )
        return RestartingLoader(open_loader, self.accelerator.num_processes, position)


def check_same_data(sources: Sequence[Source], accelerator: Accelerator) -> None:
    """
    Raise a ValueError, in all processes alike, if one holds other clips in a source than the first: each reads its
    share by the numbers of the clips. Folders may lie in different places; of manifests, whose paths may too, the
    number of clips alone is compared.
    """
    if accelerator.num_processes == 1:
        return
    here = [(source.size, None if isinstance(source.dataset, JsonLines) else source.identity) for source in sources]
    nodes = gather_object([(platform.node(), here)])
    (first_node, first), *others = nodes
    for number, (node, theirs) in enumerate(others, start=1):
        for source, (size, known), (their_size, their_known) in zip(sources, first, theirs, strict=True):
            if (size, known) == (their_size, their_known):
                continue
            differ = f"{size} clips in process 0 (on {first_node}) and {their_size} in process {number} (on {node})"
            if size == their_size:
                differ = f"other clips in process {number} (on {node}) than in process 0 (on {first_node})"
            raise ValueError(f"train_data '{source.name}' holds {differ}: give all machines the same files.")
