"""Progress: nothing that takes long is silent in the log.

- `Progress`: whoever does the work says how far it is.
- `Heartbeat`: where nobody says anything, what is being done.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator

from sjepa_hf.durations import audio_amount


logger = logging.getLogger(__name__)

SILENCE = 5.0  # seconds between two lines about the same work
LONGEST_SILENCE = 10.0  # seconds without any line, after which there is a sign of life


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
