"""Bad audio: clips that cannot be used are counted and named in the log, and too many of them end a run."""

import logging
from collections import Counter, deque
from collections.abc import Sequence

from scipy.special import bdtrc

from sjepa_hf.command import UserError
from sjepa_hf.frames import MIN_SAMPLES, SAMPLING_RATE


logger = logging.getLogger(__name__)


NOISE = "noise: "  # begins the reason where a recording of noise cannot be used
DECIDED_BY = {
    "too_short": "shorter than min_seconds",
    "too_long": "longer than is decoded at once: give parts of it by offset and duration",
}


class BadAudioError(UserError):
    """So much of the audio cannot be used that the run stops."""


class BadAudioMonitor:
    """Counts the clips that had to be skipped, names them in the log and stops a run that skips too many.

    Args:
        max_bad_fraction: the share of clips that may be skipped.

    The clips so far are a sample of the data: a run stops when chance does not explain how many of them are bad.

    A source that vanishes in the middle of a long run would hardly move the share of all clips so far: the run also
    stops when most of the last 1,000 clips were skipped.

    Recordings of noise are named and counted with the others, but not as clips, since none is lost.

    Attributes:
        seen: clips so far, usable or not.
        by_reason: skipped clips for each reason of `BadAudio`, and recordings of noise for each with "noise: " before.
    """

    names_logged = 20
    min_clips = 50  # before the share is judged
    chance = 1e-6  # of as many skipped clips in data of which just `max_bad_fraction` is bad
    recent_clips = 1000

    def __init__(self, max_bad_fraction: float = 0.05):
        self.max_bad_fraction = max_bad_fraction
        self.seen = 0
        self.by_reason: Counter[str] = Counter()
        self._restored_seen, self._restored = 0, Counter()
        self._named: set[str] = set()
        self._recent: deque[tuple[int, int]] = deque()  # clips and skipped ones of the last batches
        self._recent_seen = self._recent_skipped = 0

    def restore(self, seen: int, by_reason: dict[str, int]) -> None:
        """Count on from an earlier run. `check` judges what comes from here on: the data may have been repaired."""
        self.seen, self.by_reason = seen, Counter(by_reason)
        self._restored_seen, self._restored = seen, Counter(by_reason)

    @property
    def skipped(self) -> int:
        """Clips so far that were not usable."""
        return _of_clips(self.by_reason).total()

    def update(self, num_clips: int, skipped: Sequence[tuple[str, str]]) -> None:
        """Take in one batch: the number of its clips, and its `skipped` list of `(name, reason)`."""
        bad = sum(not reason.startswith(NOISE) for _, reason in skipped)
        self.seen += num_clips + bad
        self._recent.append((num_clips + bad, bad))
        self._recent_seen += num_clips + bad
        self._recent_skipped += bad
        while self._recent_seen - self._recent[0][0] >= self.recent_clips:
            seen, bad = self._recent.popleft()
            self._recent_seen, self._recent_skipped = self._recent_seen - seen, self._recent_skipped - bad
        for name, reason in skipped:
            self.by_reason[reason] += 1
            if name in self._named or len(self._named) >= self.names_logged:
                continue
            self._named.add(name)
            logger.warning("Skipped %s: %s.", name, explained(reason))
            if len(self._named) == self.names_logged:
                logger.warning("%d bad clips named; from here on they are only counted.", self.names_logged)

    def check(self, end_of_data: bool = False, whole: bool = False) -> None:
        """Stop the run if the audio is bad.

        Args:
            end_of_data: the loader has given all its batches: no usable clip at all is then an error too.
            whole: all clips of the data have been counted, each once: their share is no matter of chance.

        Raises:
            BadAudioError: if of at least `min_clips` clips more were skipped than `max_bad_fraction` and chance
                explain, or most of the last 1,000 were, or all of them and no more will come.
        """
        seen, reasons = self._since_restored()
        skipped = reasons.total()
        if end_of_data and seen == skipped:
            raise BadAudioError(f"The data gave no usable clip: {self._counts()}; check it.")
        too_many = skipped > self.max_bad_fraction * seen
        if not whole:
            too_many = too_many and bdtrc(skipped - 1, seen, self.max_bad_fraction) < self.chance  # so many or more
        if seen >= self.min_clips and too_many:
            least = MIN_SAMPLES / SAMPLING_RATE
            shorter = f"lower min_seconds (to {least:g} at the least) or " if reasons["too_short"] else ""
            raise BadAudioError(
                f"{self._counts()}, more than max_bad_fraction={self.max_bad_fraction} allows: "
                f"repair the data or leave those clips out (the log names the first ones), or {shorter}raise"
                " max_bad_fraction where the command has it."
            )

        most = max(0.5, self.max_bad_fraction)
        if self._recent_seen >= self.recent_clips and self._recent_skipped > most * self._recent_seen:
            raise BadAudioError(
                f"{self._recent_skipped} of the last {self._recent_seen} clips were skipped ({self._counts()} in all):"
                " has a disk or a source gone away?"
            )

    def _counts(self) -> str:
        seen, reasons = self._since_restored()
        return f"{reasons.total()} of {seen} clips were skipped ({counted(reasons) or 'none was read'})"

    def _since_restored(self) -> tuple[int, Counter[str]]:
        return self.seen - self._restored_seen, _of_clips(self.by_reason - self._restored)


def explained(reason: str) -> str:
    """A reason and, of a length, what decides."""
    return f"{reason}, {DECIDED_BY[reason]}" if reason in DECIDED_BY else reason


def counted(reasons: Counter[str]) -> str:
    """Reasons with their numbers, the most frequent first: "3 silent, 1 corrupt"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _of_clips(reasons: Counter[str]) -> Counter[str]:
    return Counter({reason: count for reason, count in reasons.items() if not reason.startswith(NOISE)})
