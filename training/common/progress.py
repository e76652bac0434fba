"""Progress: nothing that takes long is silent in the log.

- `Progress`: whoever does the work says how far it is.
- `Heartbeat`: where nobody says anything, what is being done.
- `Forecast`: once, how long the rest of a phase will take.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator

from sjepa_hf.durations import audio_amount, duration


logger = logging.getLogger(__name__)

SILENCE = 5.0  # seconds between two lines about the same work
LONGEST_SILENCE = 10.0  # seconds without any line, after which there is a sign of life
MEASURED_STEPS = 20  # steps whose time says how long a phase will take
LONG_ENOUGH = 60.0  # seconds after which fewer steps will do


class Progress:
    """
    Says how far a long piece of work is, at most every five seconds.

    Args:
        work (`str`): what is done, as a line of the log begins.
        speaks (`bool`): False on all processes but one.
    """

    def __init__(self, work: str, speaks: bool = True):
        self.work, self.speaks = work, speaks
        self._last = time.monotonic()

    def __call__(self, done: str) -> None:
        """Say `done`, if it is time."""
        if self.speaks and time.monotonic() - self._last >= SILENCE:
            logger.info("%s: %s.", self.work, done)
            self._last = time.monotonic()

    def count_hours(self, batches: Iterable[dict], processes: int = 1) -> Iterator[dict]:
        """The same batches, while it says how many hours of audio they were; `processes` read as much each."""
        seconds = 0.0
        for batch in batches:
            seconds += batch["seconds"]
            self(f"{audio_amount(seconds * processes / 3600)} of audio read")
            yield batch


class Heartbeat(logging.Handler):
    """
    Says what a process is doing when it has logged nothing for ten seconds.

    with Heartbeat("opening the data") as heartbeat:
        heartbeat.doing = "training"

    Attributes:
        doing (`str`): what to say.
    """

    def __init__(self, doing: str, silence: float = LONGEST_SILENCE):
        super().__init__()
        self.doing = doing
        self.silence = silence
        self._last = self._begin = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Any line of the log counts."""
        self._last = time.monotonic()

    def over(self, items: Iterable, doing: str, total: int) -> Iterator:
        """The items, while `doing` counts them."""
        for number, item in enumerate(items):
            self.doing = f"{doing}: {number} of {total}"
            yield item

    def __enter__(self) -> "Heartbeat":
        logging.getLogger().addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        logging.getLogger().removeHandler(self)
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self.silence / 10):
            if time.monotonic() - self._last >= self.silence:
                logger.info("... %s (%.0f s since the start)", self.doing, time.monotonic() - self._begin)


class Forecast:
    """
    Measures the first steps of each phase and says once how long its rest will take.

    Args:
        steps (`dict[int, int]`): the last step of each phase, by its number.
        speaks (`bool`): False on all processes but one.
    """

    def __init__(self, steps: dict[int, int], speaks: bool = True):
        self.steps, self.speaks = steps, speaks
        self._phase, self._since, self._first = None, 0.0, 0

    def pause(self) -> None:
        """What is measured is no longer steps alone: begin again."""
        self._phase = None

    def step(self, step: int, phase: int) -> None:
        """Called after each step; `phase` is the one that it belonged to."""
        now = time.monotonic()
        if phase != self._phase:  # the first step, which compiles and fills caches, is left out
            self._phase, self._since, self._first = phase, now, step
        taken, left = step - self._first, self.steps[phase] - step
        if not self._first or not taken or (taken < MEASURED_STEPS and now - self._since < LONG_ENOUGH):
            return
        each = (now - self._since) / taken
        if self.speaks and left > 0:
            logger.info(
                "A step takes %s: about %s for the %s left of phase %d.",
                seconds_of(each),
                duration(each * left),
                f"{left:,}",
                phase,
            )
        self._first = 0


def seconds_of(seconds: float) -> str:
    """A short time in words."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
