"""Signals that end a run early and in order: a signal is kept until the step is done, or ends a wait at once."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from sjepa_hf.command import UserError, sentence


logger = logging.getLogger(__name__)


@dataclass
class Stop:
    """
    Why a run ends before its last step.

    Args:
        status (`int`): exit status of the process: 143 after SIGTERM, 130 after Ctrl-C, 1 after a fault.
        reason (`str`): one sentence, without its full stop.
    """

    status: int
    reason: str


class Interrupted(BaseException):
    """The run ends in a wait: everything that a checkpoint holds is as the last finished step has left it."""


class Interruption:
    """
    Holds SIGTERM and Ctrl-C back while a step is made, and lets them end a wait; a second Ctrl-C ends the run at once.
    Processes that are forked meanwhile inherit the handler: there SIGTERM ends the process, and Ctrl-C does nothing.

    Attributes:
        stop (`Stop | None`): set by a signal, or by the run itself when it finds a fault; the first one stays.
    """

    def __init__(self):
        self.stop: Stop | None = None
        self._waiting = False
        self._before = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
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
            if self.stop is not None:  # Python drops what is raised in a destructor or a callback
                raise Interrupted
        except (UserError, ValueError, OSError, MemoryError) as error:
            self.ask(1, str(sentence(error)).rstrip("."))
            raise Interrupted from error
        finally:
            self._waiting = outer

    def ask(self, status: int, reason: str) -> None:
        """Stop before the next step, unless something else has asked before."""
        self.stop = self.stop or Stop(status, reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        logger.warning("%s: saving the last finished step.", signal.Signals(number).name)
        self.ask(128 + number, f"{signal.Signals(number).name} came")
        if self._waiting:
            raise Interrupted
