"""Processes of a run, and what they have to agree on: sums, whether to go on, and that all still hold the same."""

import gc
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.distributed_c10d import _get_default_store

from sjepa_hf.command import UserError, sentence
from sjepa_hf.float32 import widest_float
from training.common.signals import Interrupted, Interruption, Stop


logger = logging.getLogger(__name__)

NUMBERS = 3  # summed over the processes in each exchange
TELL_AFTER = 60.0  # seconds of waiting for other processes after which the log says so
EXCHANGE_LIMIT = 900.0  # seconds for all processes to join an exchange, else the run ends; reading gives up sooner
STOPPING_LIMIT = 120.0  # the same once this process has been asked to stop
# For any other collective, as one process may compile or write a checkpoint meanwhile. It is above the limit of the
# coordinator's exchanges, whose message says more.
COLLECTIVE_TIMEOUT = timedelta(minutes=20)

Answer = TypeVar("Answer")


class ProcessMissing(UserError):
    """A process of the run gives no sign of life."""


class Coordinator:
    """
    Keeps the processes of a run together: they exchange numbers before each step, and between the parts of a fit. A
    process that is to stop, or has failed in a wait, says so in the next exchange, and all stop together.

    Args:
        accelerator (`Accelerator`): the processes.
        interruption (`Interruption`, *optional*): says whether this process is to stop.
    """

    def __init__(self, accelerator: Accelerator, interruption: Interruption | None = None):
        self.accelerator = accelerator
        self.interruption = interruption or Interruption()
        self.count = 0
        # On a stream of its own the sum waits for no kernel of the step before.
        self._stream = torch.cuda.Stream() if accelerator.device.type == "cuda" else None

    def sum(self, *numbers: float) -> list[float]:
        """
        Sums of at most three numbers over all processes. Every process must call it.

        Raises:
            Interrupted: in all processes alike, where any is to stop.
            ProcessMissing: if not all have called it in time.
        """
        if self.accelerator.num_processes == 1:
            if self.interruption.stop is not None:
                raise Interrupted
            return list(numbers)
        *sums, stops = self._exchange(numbers)
        if stops:
            raise Interrupted
        return sums[: len(numbers)]

    def barrier(self) -> None:
        """Wait until all processes have come here. Raises as [`sum`] does."""
        self.sum()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """[`Interruption.waiting`]; if it is interrupted, the other processes learn of it in their next [`sum`]."""
        try:
            with self.interruption.waiting():
                yield
        except Interrupted:
            if self.accelerator.num_processes > 1:
                self._exchange(())
            raise

    def reason(self) -> Stop:
        """Why the processes stop, the same in all. Every process must call it."""
        own = self.interruption.stop
        agreed = next(stop for stop in gather_object([own]) if stop is not None)
        return own if own == agreed else agreed

    def _exchange(self, numbers: tuple[float, ...]) -> list[float]:
        self.count += 1
        here = [*numbers, *[0.0] * (NUMBERS - len(numbers)), float(self.interruption.stop is not None)]
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            total = torch.tensor(here, dtype=torch.float64, device=self.accelerator.device)
            work = torch.distributed.all_reduce(total, async_op=True)
            self._wait(work)
            work.wait()
            return total.tolist()

    def _wait(self, work: torch.distributed.Work) -> None:
        """Wait for the others in short sleeps, so that signal handlers run meanwhile."""
        start, pause, told = time.monotonic(), 1e-5, False
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
            waited = time.monotonic() - start
            limit = EXCHANGE_LIMIT if self.interruption.stop is None else STOPPING_LIMIT
            if not told and waited > min(TELL_AFTER, limit / 2):
                told = True
                self._sign()
            if waited > limit:
                raise ProcessMissing(
                    f"{self._missing()} did not come within {waited / 60:.0f} minutes, so this process ends too: look"
                    " for a machine or process that hangs, and resume from the last checkpoint"
                )

    def _sign(self) -> None:
        """Record in the store that this process has joined the current exchange."""
        logger.warning("Waiting for other processes of this run for more than %.0f s.", TELL_AFTER)
        _get_default_store().set(f"sjepa/{self.count}/{self.accelerator.process_index}", "here")

    def _missing(self) -> str:
        """The processes that have not joined the current exchange, as far as that can be known."""
        try:
            store = _get_default_store()
            numbers = range(self.accelerator.num_processes)
            missing = [number for number in numbers if not store.check([f"sjepa/{self.count}/{number}"])]
        except RuntimeError:  # the first process may be the one that is missing, and the store with it
            missing = []
        return f"Process {', '.join(map(str, missing))}" if missing else "Another process of this run"


def summed(tensors: Iterable[torch.Tensor], accelerator: Accelerator) -> list[torch.Tensor]:
    """Sums over all processes, by one all-reduce, of tensors of one dtype that have the same shapes in each."""
    tensors = list(tensors)
    if accelerator.num_processes == 1:
        return tensors
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="sum")
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def summed_numbers(numbers: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Sums over all processes, by one all-reduce, of as many numbers in each. Every process must call it."""
    device = accelerator.device
    return summed([torch.tensor(numbers, dtype=widest_float(device), device=device)], accelerator)[0].tolist()


def share(tensors: Iterable[torch.Tensor], accelerator: Accelerator) -> None:
    """Give all processes the first one's tensors, in place: others may have rounded otherwise."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def of_first(ask: Callable[[], Answer], accelerator: Accelerator | PartialState) -> Answer:
    """
    What the first process finds, in all; the others do not ask. Every process must call it.

    Raises:
        ValueError: in all alike, where `ask` raises one, or an OSError.
    """
    answer = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except (ValueError, OSError) as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1]:
        raise ValueError(answer[1])
    return answer[0]


@contextmanager
def all_or_none(accelerator: Accelerator, failing: str = "cannot start") -> Iterator[None]:
    """
    A part of a run in which the processes exchange nothing: what one refuses, the others then refuse with its words,
    where they would lose the connection to it without a reason. Every process must come here.

    Args:
        failing: what a process does that refuses, in the words of the others.

    Raises:
        UserError: in those that had nothing to refuse.
    """
    refused = None
    try:
        yield
    except (UserError, ValueError, OSError) as error:
        refused = error
    if accelerator.num_processes > 1:
        said = gather_object([refused and (platform.node(), sentence(refused))])
        if refused is None and (number := next((n for n, each in enumerate(said) if each), None)) is not None:
            raise UserError(f"process {number} (on {said[number][0]}) {failing}: {said[number][1]}")
    if refused is not None:
        raise refused


def local_processes(accelerator: Accelerator) -> int:
    """Processes of the run on this machine, which share its memory. Every process must call it."""
    machines = len(set(gather_object([platform.node()]))) if accelerator.num_processes > 1 else 1
    return -(-accelerator.num_processes // machines)


class ProcessesDisagree(UserError):
    """The processes of a run hold different models or mixtures."""


@torch.no_grad()
def check_processes_agree(
    accelerator: Accelerator, parts: dict[str, Iterable[torch.Tensor]], active_layer: int
) -> None:
    """
    Compare sums over the bits of everything that must be the same in every process; a few numbers travel.

    Args:
        parts: names and tensors, e.g. `{"mixture": model.mixture.buffers()}`.
        active_layer: layer that the targets are read from.

    Raises:
        ProcessesDisagree: in all alike, naming what differs and where.
    """
    if accelerator.num_processes == 1:
        return
    sums = {name: sum(int(bits(tensor)) for tensor in tensors) for name, tensors in parts.items()}
    found = gather_object([sums | {"active layer": active_layer}])
    for name in found[0]:
        others = [number for number, digest in enumerate(found) if digest[name] != found[0][name]]
        if others:
            raise ProcessesDisagree(
                f"Process {', '.join(map(str, others))} holds another {name} than process 0. Nothing was saved: resume"
                " from the last checkpoint, and look for a faulty device or differing versions if it happens again."
            )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor's bit patterns as integers."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)


def end_group(accelerator: Accelerator) -> None:
    """
    End trackers and the process group; every process must call it. The caller has dropped its reference to DDP's
    wrapper, and Accelerate's is dropped here: freed together with the group, the wrapper could deadlock, this thread
    holding the GIL while it waits for Gloo's thread, which needs the GIL to free a tensor.
    """
    accelerator._models.clear()
    gc.collect()
    try:
        accelerator.end_training()
    except OSError as error:  # of a tracker that cannot write its last values, before the group has ended
        logger.error("`report_to` lacks its last values: %s.", error)
        accelerator.trackers = []
        accelerator.end_training()


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone, rather than for a fault of this one."""
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
    return lost and not isinstance(error, UserError)
