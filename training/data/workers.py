"""Workers, the processes that read audio: what they need to start, and what becomes of one that stops or dies."""

import logging
import multiprocessing.queues
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from sjepa_hf.frames import SAMPLING_RATE


logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # through which workers hand over their batches, on Linux
AHEAD = 2  # batches that each worker prepares (torch's default)
PASSES = 2  # passes that run at the same time: training, and the one that seeds a mixture
SAMPLE_BYTES = 4 + 1 + 0.03  # of a padded batch: the sample, its attention mask, and the frames' part
STUCK = 75  # exit status of a worker whose batch could not be sent

TELL_EVERY = 60  # seconds of waiting between two lines in the log
IDLE_LIMIT = 600  # seconds without a batch in which no worker does anything, that end the run
BUSY_LIMIT = 3600  # the same while they work: a stream may have to be read again up to where it stood
DYING = 2.0  # seconds in which a worker that has broken off a batch is expected to be dead
BUSY = 0.5  # seconds of processor time by which workers count as at work


def check_shared_memory(
    batch_seconds: float,
    num_workers: int,
    processes: int,
    sample_bytes: float = SAMPLE_BYTES,
    settings: tuple[str, str] = ("num_workers", "batch_seconds"),
) -> None:
    """
    Raise a ValueError if the batches on their way from the workers may not fit into the shared memory that is free.

    Args:
        batch_seconds: padded seconds of a batch.
        num_workers: of each process.
        processes: of the run, on this machine.
        sample_bytes: of a batch, for each of its padded samples.
        settings: names of those that decide how many workers there are and how large a batch is.
    """
    if not SHARED_MEMORY.is_dir():
        return
    batch = batch_seconds * SAMPLING_RATE * sample_bytes
    needed = batch * num_workers * AHEAD * PASSES * processes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        workers = f"{num_workers} workers" + (f" of {processes} processes each" if processes > 1 else "")
        gib = max(1, -(-needed * 1.25 // 2**30))
        raise ValueError(
            f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but {workers} hand batches of {batch / 2**20:.0f} MiB"
            f" over through it and may need {needed / 2**20:.0f} MiB: start the container with --shm-size={gib:.0f}g,"
            f" or lower `{settings[0]}` or `{settings[1]}` (`{settings[0]}` 0 needs none)."
        )


def start_method() -> str | None:
    """
    How workers start: as forks on Linux; None: in the system's own way. The fork server, Python's own way on Linux
    since 3.14, would outlive a run that is killed, its workers too: it waits for them, and they for it.
    """
    return "fork" if sys.platform == "linux" else None


def die_when_stuck() -> None:
    """
    In a worker: end it when a batch cannot be sent, for want of shared memory or of open files. Python would print a
    traceback, drop the batch and have the training process wait for it for ever.
    """

    def end(error: BaseException, batch: object) -> None:
        logger.error("A batch could not be handed over: %s", error)
        os._exit(STUCK)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)


def why_died(workers: Sequence[BaseProcess]) -> str:
    """What the exit status of dead workers says, and the way out."""
    if any(worker.exitcode in (STUCK, -signal.SIGBUS) for worker in workers):
        return (
            f"shared memory ({SHARED_MEMORY}) or open files do not suffice. Start the container with a larger"
            " --shm-size or raise `ulimit -n`, or lower num_workers or batch_seconds"
        )
    return "is the machine out of memory? Lower num_workers, bucket_buffer_size or shuffle_buffer_size"


def one_has_died(workers: Sequence[BaseProcess]) -> bool:
    """Whether one of the workers is dead; the error of a half-sent batch comes a moment before its process is gone."""
    end = time.monotonic() + DYING
    while workers and time.monotonic() < end:
        if not all(worker.is_alive() for worker in workers):
            return True
        time.sleep(0.05)
    return False


def process_of(worker: BaseProcess) -> psutil.Process | None:
    """The process of a worker, unless it is gone already."""
    try:
        return psutil.Process(worker.pid)
    except psutil.NoSuchProcess:
        return None


def status_of(process: psutil.Process) -> str | None:
    """What a process does in a word; None for one that is dead."""
    try:
        status = process.status()
    except psutil.NoSuchProcess:
        return None
    return None if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else status


class WorkerTimeout:
    """
    Decides when to give up on workers that send no batch.

    Only time in which this process runs counts: being suspended is no waiting.
    """

    def __init__(self, workers: Sequence[BaseProcess]):
        self._processes = [process for worker in workers if (process := process_of(worker)) is not None]
        self._waited = self._idle = 0.0
        self._told = 0
        self._worked = self._work()

    def add(self, seconds: float) -> str | None:
        """Add seconds of waiting in vain; returns an error message once there have been too many."""
        self._waited, self._idle = self._waited + seconds, self._idle + seconds
        if (worked := self._work()) > self._worked + BUSY:
            self._worked, self._idle = worked, 0.0
        found = Counter(status_of(process) or "dead" for process in self._processes)
        workers = ", ".join(f"{count} {status}" for status, count in found.items())
        if self._waited // TELL_EVERY > self._told:
            self._told = int(self._waited // TELL_EVERY)
            logger.warning("Waiting for a batch for %.0f s (workers: %s).", self._waited, workers)
        if self._idle < IDLE_LIMIT and self._waited < BUSY_LIMIT:
            return None
        return (
            f"No batch came for {self._waited / 60:.0f} minutes (workers: {workers}): does a disk or a source hang?"
            " Go on from the last checkpoint once it answers again."
        )

    def _work(self) -> float:
        """Processor time of the workers so far, in seconds."""
        total = 0.0
        for process in self._processes:
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return total
