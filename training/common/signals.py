"""Signals that end a run early and in order: a signal is kept until the step is done, or ends a wait at once."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sjepa_hf.command import AGAIN, UserError, once, sentence


logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted"  # file in the output directory of a run that a signal has ended


def check_system() -> None:
    """Raise a UserError where the system lacks the signals that training lives by."""
    if not hasattr(signal, "SIGALRM"):
        raise UserError("training needs Linux or macOS; on Windows use WSL.")


@dataclass
class Stop:
    """
    Why a run ends before its last step.

    Args:
        status (`int`): exit status of the process: 143 after SIGTERM, 130 after Ctrl-C, 1 after a fault.
        reason (`str`): one sentence, without its full stop.
        error (`BaseException`, *optional*): the fault; it stays in the process where it was raised.
    """

    status: int
    reason: str
    error: BaseException | None = field(default=None, compare=False)

    def __reduce__(self):
        return Stop, (self.status, self.reason)


def tell_in_file(output_dir: Path, stop: Stop) -> None:
    """Leave word that a signal has ended the run; on a full disk the exit status has to do."""
    path = output_dir / INTERRUPTED
    try:
        path.write_text(stop.reason + "\n")
    except OSError as error:
        logger.error("%s could not be written: %s.", path, error)


class Interrupted(BaseException):
    """The run ends in a wait: everything that a checkpoint holds is as the last finished step has left it."""


class Interruption:
    """
    During a step SIGTERM and Ctrl-C are only noted; while the run waits (reading, fitting) they end the wait at once.
    A second Ctrl-C ends the run at once. Processes that are forked meanwhile inherit the handler: there SIGTERM
    ends the process, and Ctrl-C does nothing.

    A handler may run in a destructor or a fork hook, where Python drops the exception that it raises: the hook for
    dropped exceptions has it raised again a moment later.

    Attributes:
        stop (`Stop | None`): set by a signal, or by the run itself when it finds a fault; the first one stays.
    """

    def __init__(self):
        self.stop: Stop | None = None
        self._waiting = False
        self._before, self._hook = {}, sys.unraisablehook
        self._process = os.getpid()

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._end_wait)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *exception) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """
        A part of the run that may take long and changes nothing that a checkpoint holds: reading, fitting. A signal
        ends it at once, and so does whatever is wrong with the user's data, files or machine.

        Raises:
            Interrupted: then, with `stop` set; at once, if it is set already.
        """
        outer, self._waiting = self._waiting, True
        try:
            if self.stop is not None:
                raise Interrupted
            yield
            if self.stop is not None:  # its exception was dropped
                raise Interrupted
        except (UserError, ValueError, OSError, MemoryError) as error:
            self.ask(1, str(sentence(error)).rstrip("."), error)
            raise Interrupted from error
        finally:
            self._waiting = outer and self.stop is None

    def ask(self, status: int, reason: str, error: BaseException | None = None) -> None:
        """Stop before the next step, unless something else has asked before."""
        self.stop = self.stop or Stop(status, reason, error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        logger.log(once(logging.WARNING), "%s: saving the last finished step.", signal.Signals(number).name)
        self.ask(128 + number, f"{signal.Signals(number).name} came")
        self._end_wait()

    def _end_wait(self, *_) -> None:
        """Raise [`Interrupted`] if the run waits: once, so that nothing disturbs it while it saves."""
        if self._waiting:
            self._waiting = False
            raise Interrupted

    def _dropped(self, unraisable) -> None:
        """`sys.unraisablehook`: have an [`Interrupted`] that was dropped raised again."""
        if unraisable.exc_type is not Interrupted:
            self._hook(unraisable)
        elif os.getpid() == self._process:
            self._waiting = True
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
