"""A sign of life: a line in the log whenever ten seconds have passed without one."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator


logger = logging.getLogger(__name__)

SILENCE = 10.0  # seconds


class Heartbeat(logging.Handler):
    """
    Says what a process is doing when it has logged nothing for `SILENCE` seconds.

    with Heartbeat("opening the data") as heartbeat:
        heartbeat.doing = "training"

    Attributes:
        doing (`str`): what to say.
    """

    def __init__(self, doing: str, silence: float = SILENCE):
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
