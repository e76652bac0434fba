"""The loop over the shards of a corpus: what is made of each, what is skipped, and the sentence at the end."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState

from sjepa_hf.durations import audio_amount
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


def own_shards(state: PartialState, output: OutputFolder) -> Callable[[int], bool]:
    """Which shards are this process's to make: its share of them, less those that are done."""
    return lambda number: number % state.num_processes == state.process_index and not output.is_done(number)


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
        BadAudioError: if too many clips cannot be used, or, once the record says so, none of the corpus.
    """
    monitor, count = BadAudioMonitor(max_bad_fraction), 0
    for number, rows in corpus.shards(own_shards(state, output)):
        count += 1
        if rows is None:
            continue
        made = make(number, rows)
        monitor.update(made.facts["clips"], made.bad)
        monitor.check()
        with output.shard(number, made.facts | {"bad": made.bad}) as folder:
            made.write(folder)
    totals = output.finish(count)
    output.close()
    if totals and not totals["clips"]:
        record = output.directory / RECORD
        raise BadAudioError(f"No clip of the data could be used {totals['bad_clips']}: {record} names them.")
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
