"""Ending a run early and in order: signals are kept until the step is done, and the checkpoint is written."""

import logging
import signal
from dataclasses import dataclass
from types import FrameType


logger = logging.getLogger(__name__)


@dataclass
class Stop:
    """
    Why a run ends before its last step.

    Args:
        status (`int`): exit status of the process: 143 after SIGTERM, 130 after Ctrl-C, 1 after a fault.
        reason (`str`): one sentence.
    """

    status: int
    reason: str


class Interruption:
    """
    Holds SIGTERM and Ctrl-C back until the run asks; a second Ctrl-C ends it at once.

    Attributes:
        stop (`Stop | None`): set by a signal, or by the run itself when it finds a fault; the first one stays.
    """

    def __init__(self):
        self.stop: Stop | None = None
        self._before = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self, status: int, reason: str) -> None:
        """Stop after this step, unless something else has asked before."""
        self.stop = self.stop or Stop(status, reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        logger.warning("%s: saving after this step.", name)
        self.ask(128 + number, f"{name} came")
