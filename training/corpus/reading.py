"""Clips of any source in their order, cut into shards of a fixed number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import NamedTuple

from sjepa_hf.command import first_line
from training.common.naming import printable
from training.common.ranges import check_ranges
from training.data.clips import Clip, Sample
from training.data.sources import PACKED_NAMES, Source, open_source


class Row(NamedTuple):
    """A clip of a corpus: its number in the order of all sources, the source's name, its labels."""

    number: int
    source: str
    clip: Clip
    labels: dict[str, str | None]


class Corpus:
    """
    The clips of sources in their order, in shards of `clips_per_shard`.

    Args:
        specs, streaming, audio_column: as in `open_source`.
        columns: columns of the sources that are carried along.
        clips_per_shard: how many clips a shard has; the last one may have fewer.

    Attributes:
        size: number of clips; None for streams, which nobody has counted.

    Raises:
        ValueError: if a source cannot be opened, has no clip, or lacks a column.
    """

    def __init__(
        self,
        specs: Sequence[str],
        clips_per_shard: int,
        columns: Sequence[str] = (),
        streaming: bool = False,
        audio_column: str | None = None,
    ):
        options = {"streaming": streaming, "audio_column": audio_column, "labels": tuple(columns)}
        self.specs, self.columns, self.clips_per_shard = list(specs), tuple(columns), clips_per_shard
        self.audio_column = audio_column
        self.sources = [open_source(spec, **options) for spec in specs]
        sizes = [source.size for source in self.sources]
        self.size = None if None in sizes else sum(sizes)
        if self.size == 0:
            raise ValueError(f"{', '.join(specs)} holds no clip.")

    @property
    def settings(self) -> dict:
        """What is read, in what order, and how it is cut: for the record of what is made of it."""
        return {
            "data": list(map(printable, self.specs)),
            "data as it was": [source.identity for source in self.sources],
            "audio_column": self.audio_column,
            "columns": list(self.columns),
            "clips_per_shard": self.clips_per_shard,
        }

    def shards(self) -> Iterator[tuple[int, Iterator[Row]]]:
        """
        Number and rows of each shard in turn; a row is opened when it is asked for, but read by then in a stream.

        Raises:
            ValueError: if a stream breaks off, or has no clip.
        """
        size = self.clips_per_shard
        if self.size is not None:
            for number, first in enumerate(range(0, self.size, size)):
                yield number, map(self.row, range(first, min(first + size, self.size)))
            return
        rows = enumerate((source.name, *sample) for source in self.sources for sample in _streamed(source))
        for number in count():
            taken = list(islice(rows, size))
            if not taken:
                break
            yield number, (Row(place, *row) for place, row in taken)
        if number == 0:
            raise ValueError(f"{', '.join(self.specs)} holds no clip.")

    def row(self, number: int) -> Row:
        """One clip by its number; not of streams."""
        place = number
        for source in self.sources:
            if place < source.size:
                return Row(number, source.name, *source.sample(source.dataset[place], place))
            place -= source.size
        raise IndexError(number)


@dataclass
class CorpusArguments:
    """Which clips are read, how they are cut into shards, and where what is made of them goes."""

    data: list[str] = field(
        metadata={"help": "Sources, as in pretraining: folders, JSONL manifests, Parquet, tar archives, Hub."}
    )
    output: str = field(metadata={"help": "The folder to write, or one to go on with."})
    columns: list[str] = field(default_factory=list, metadata={"help": "Columns of the data that are carried along."})
    streaming: bool = field(default=False, metadata={"help": "Read from front to back: Hub, Parquet, tar archives."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    clips_per_shard: int = field(default=1000, metadata={"help": "Clips in a file. Held in memory, encoded."})
    max_bad_fraction: float = field(default=0.05, metadata={"help": "Stop when more of the clips cannot be used."})
    threads: int = field(default=1, metadata={"help": "Clips that are decoded, and encoded if so, side by side."})

    def __post_init__(self):
        check_ranges(self, at_least_1="clips_per_shard threads", share="max_bad_fraction")

    def open(self) -> Corpus:
        """The clips. Raises as [`Corpus`] does."""
        return Corpus(self.data, self.clips_per_shard, self.columns, self.streaming, self.audio_column)


def check_names(columns: Sequence[str], written: Sequence[str]) -> None:
    """
    Raise a ValueError where a column of the data has the name of one that is written of every clip anyway. `name` and
    `source` of the data take the place of these: packed data say so what their clips were called before.
    """
    written = [name for name in written if name not in PACKED_NAMES]
    if taken := [name for name in columns if name in written]:
        raise ValueError(
            f"`columns` has '{taken[0]}', but {', '.join(written)} are the output's own: rename it in the data."
        )


def _streamed(source: Source) -> Iterator[Sample]:
    """The samples of a source from front to back."""
    count = 0
    try:
        for sample in source.samples():
            yield sample
            count += 1
    except Exception as error:  # of whatever library reads the format
        raise ValueError(
            f"'{source.name}' cannot be read any further after row {count}: {first_line(error)}"
        ) from error
