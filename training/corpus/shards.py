"""The loop over the shards of a corpus: what is made of each, what is skipped, and the sentence at the end."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState

from sjepa_hf.durations import audio_amount, duration
from training.common.progress import Progress
from training.corpus.output import RECORD, OutputFolder
from training.corpus.reading import Corpus, Row
from training.data.bad_audio import BadAudioError, BadAudioMonitor


logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """
    What has become of a shard: sums for `corpus.json` (`clips`, `seconds` and others), name and reason of each clip
    that could not be used, and what writes the rest into a folder.
    """

    facts: dict
    bad: list[tuple[str, str]]
    write: Callable[[Path], None]


class CorpusProgress:
    """
    Says how far the shards of this process are that are not done yet, and how long the rest will take.

    Args:
        work, corpus, output, state: what is done, to which clips, where they go, by which process.

    Attributes:
        clips, seconds, began: what has been told so far, and since when.
    """

    def __init__(self, work: str, corpus: Corpus, output: OutputFolder, state: PartialState):
        self.clips, self.seconds, self.began = 0, 0.0, time.monotonic()
        self._say, self._due = Progress(work, state.process_index == 0), None
        if corpus.size is not None:
            size, firsts = corpus.clips_per_shard, range(0, corpus.size, corpus.clips_per_shard)
            due = [first for number, first in enumerate(firsts) if is_due(number, output, state)]
            self._due = sum(min(size, corpus.size - first) for first in due)

    def __call__(self, clips: int, seconds: float) -> None:
        """So many more clips, usable or not, and seconds of audio."""
        self.clips, self.seconds = self.clips + clips, self.seconds + seconds
        taken = time.monotonic() - self.began
        said = f"{self.clips:,} clips, {audio_amount(self.seconds / 3600)}, {self.seconds / taken:.0f} times real time"
        if self._due:
            rest = taken * max(self._due - self.clips, 0) / self.clips
            said += f"; of {self._due:,}, about {duration(rest)} left"
        self._say(said)


def is_due(number: int, output: OutputFolder, state: PartialState) -> bool:
    """Whether a shard is this process's to make: of its share, and not done."""
    return number % state.num_processes == state.process_index and not output.is_done(number)


def write_shards(
    corpus: Corpus,
    output: OutputFolder,
    state: PartialState,
    max_bad_fraction: float,
    make: Callable[[int, Sequence[Row]], Shard],
) -> dict | None:
    """
    Write the shards of this process that are not there yet, and let another run write.

    Args:
        corpus, output: what is read, and where it goes.
        state: which process this is, of how many.
        max_bad_fraction: share of the clips that may be unusable.
        make: a shard, of its number and clips.

    Returns:
        The totals of the corpus; None if shards of other processes are not done yet.

    Raises:
        ValueError: if a stream breaks off, or has no clip.
        BadAudioError: if too many clips cannot be used, or, once the record says so, too many or all of the corpus.
    """
    monitor = BadAudioMonitor(max_bad_fraction)
    for number, rows in corpus.shards():
        if not is_due(number, output, state):
            continue
        made = make(number, list(rows))
        monitor.update(made.facts["clips"], made.bad)
        monitor.check()
        with output.shard(number, made.facts | {"bad": made.bad}) as folder:
            made.write(folder)
    totals = output.finish(number + 1)
    output.close()
    if totals and not totals["clips"]:
        record = output.directory / RECORD
        raise BadAudioError(f"No clip of the data could be used {totals['bad_clips']}: {record} names them.")
    if totals:
        monitor = BadAudioMonitor(max_bad_fraction)
        monitor.seen, monitor.by_reason = totals["clips"] + len(totals["bad"]), Counter(totals["bad_clips"])
        monitor.check(whole=True)
    return totals


def print_totals(output: str, totals: dict | None, details: Callable[[dict], str]) -> None:
    """Say what a folder holds, with `details` of the totals; or that other processes are not done."""
    if totals is None:
        logger.info("The shards of this process are done; others are not.")
        return
    said = f"{output}: {totals['clips']:,} clips, {audio_amount(totals['seconds'] / 3600)}{details(totals)}"
    if totals["bad"]:
        said += f"; {len(totals['bad'])} could not be used {totals['bad_clips']}: corpus.json names them"
    print(said)
