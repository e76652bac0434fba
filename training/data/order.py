"""Order of the clips of all sources, random, a section at a time: what each reader is given, and where it goes on.

A reader is one worker of one process; `reader` is its number. It reads its share of an epoch in sections of a fixed
size. Any section can be asked for without reading those before it: a resumed run begins where it stopped.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import NamedTuple

import fsspec
import numpy as np
from datasets import IterableDataset
from pyarrow.parquet import ParquetFile

from training.data.archives import MOST_LOST, TarArchives
from training.data.clips import Clip
from training.data.permutation import Permutation
from training.data.sources import Source
from training.data.waveforms import BadAudio


MIX_BLOCK = 4096  # places of a weighted epoch whose sources are drawn together
OPEN_SHARDS = 8  # files of a streamed source that are read, and shuffled, together: a chapter
LARGEST_BUFFER = 1 << 31  # bytes of encoded clips that are held to be shuffled, and in a section
ASKED = 8  # other files that are asked for the usual number of rows
# Independent random streams of one seed; a run that is resumed draws on from those of its number.
ORDER, MIX, SHUFFLE, BUCKET, CROP, MASK, DRAW, NOISE = 1, 3, 4, 5, 6, 7, 8, 9


class SourcePlace(NamedTuple):
    """
    Where a reader stands in one streamed source.

    Attributes:
        passes: passes over the source that are finished.
        chapter: number of the chapter in the pass, from 0.
        given: clips given of the chapter.
        given_in_epoch: clips given in the epoch.
    """

    passes: int = 0
    chapter: int = 0
    given: int = 0
    given_in_epoch: int = 0


Cursor = tuple[SourcePlace, ...]


class Position(NamedTuple):
    """
    The batch that a reader gives next.

    Attributes:
        epoch, section, batch: numbers, from 0: of the pass over the data, of the section in it, of the batch in that.
        cursor: where the section begins in each streamed source (`ClipStream`); empty for other corpora.
    """

    epoch: int = 0
    section: int = 0
    batch: int = 0
    cursor: Cursor = ()


@dataclass
class DataPosition:
    """
    Where all readers of a run stand in its data: what a resumed run needs to read on.

    Args:
        readers (`int`): processes times workers.
        positions (`dict[int, Position]`): where each reader goes on; missing ones have not given a batch.
        batches (`int`): micro-batches of all processes so far.
        first (`tuple[int, int]`): epoch and place in it where the readers began, as `ClipIndex` takes them.
        settings (`dict`): what the meaning of a position depends on: `reading_settings` of `training/data/loader.py`.
    """

    readers: int
    positions: dict[int, Position] = field(default_factory=dict)
    batches: int = 0
    first: tuple[int, int] = (0, 0)
    settings: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self) | {"positions": {reader: list(at) for reader, at in self.positions.items()}}

    @classmethod
    def from_dict(cls, values: dict) -> "DataPosition":
        """The reverse of `to_dict`, after JSON too."""
        positions = {
            int(reader): Position(epoch, section, batch, tuple(SourcePlace(*place) for place in cursor))
            for reader, (epoch, section, batch, cursor) in values["positions"].items()
        }
        return cls(**values | {"positions": positions, "first": tuple(values["first"])})


class ClipIndex:
    """
    All clips of sources that can be read at any place; nothing that grows with their number is kept in memory.

    Without weights an epoch is every clip once. With weights it is as many draws as there are clips; within an
    epoch each clip of a source comes once before any of it comes again. The next epoch begins in another order: what
    did not come in one may stay away from the next as well.

    Args:
        sources: opened sources.
        weights: relative frequency of each source, or None.
        seed: decides the order.

    Attributes:
        size: number of clips.
        first_epoch, first_place: set to begin there; the clips of earlier places of that epoch are left out.
    """

    first_epoch = first_place = 0

    def __init__(self, sources: list[Source], weights: list[float] | None, seed: int):
        self.sources = sources
        self.weights = None if weights is None else np.array(weights, dtype=float)
        self.seed = seed
        self.sizes = np.array([source.size for source in sources])
        self.starts = np.cumsum([0, *self.sizes])
        self.size = int(self.starts[-1])

    def section(
        self, position: Position, reader: int, num_readers: int, size: int
    ) -> tuple[list[tuple[int, int]], Cursor]:
        """
        The next at most `size` clips of a reader, none when the epoch is over, and the cursor of the next section.

        Returns:
            pairs of a key, which names clip and repetition (`key % self.size` is the clip), and what `get` turns into
            a `Clip`.
        """
        epoch, number = position.epoch, position.section
        within = np.arange(number * size, (number + 1) * size)
        first = self.first_place if epoch == self.first_epoch else 0
        places = first + reader + num_readers * within
        places = places[places < self.size]
        if not len(places):
            return [], ()
        source, item, repetition = self._at(places, (self.seed, ORDER, epoch))
        keys = self.starts[source] + item + self.size * repetition
        return [(key, key % self.size) for key in keys.tolist()], ()

    def get(self, item: int) -> Clip:
        """The clip with that number."""
        source = int(np.searchsorted(self.starts, item, side="right")) - 1
        number = item - int(self.starts[source])
        return self.sources[source].clip(self.sources[source].dataset[number], number)

    def _at(self, places: np.ndarray, words: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, number within it and repetition of the clip at each of `places` of an epoch."""
        if self.weights is None:
            numbers = Permutation(self.size, *words)(places)
            source = np.searchsorted(self.starts[1:], numbers, side="right")
            return source, numbers - self.starts[source], np.zeros_like(numbers)
        source, number = _mixed(places, self.size, self.weights * (self.sizes > 0), (*words, MIX))
        repetition, item = np.divmod(number, self.sizes[source])
        for n, again in np.unique(np.stack([source, repetition]), axis=1).T.tolist():
            here = (source == n) & (repetition == again)
            item[here] = Permutation(int(self.sizes[n]), *words, n, again)(item[here])
        return source, item, repetition


def _mixed(
    places: np.ndarray, total: int, weights: np.ndarray, words: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Sources drawn by weight for each place of an epoch of `total` places: at each of `places` the source, and how many
    earlier places have the same one. Only the blocks that hold `places` are drawn one by one.
    """
    counts = np.random.default_rng(words).multinomial(MIX_BLOCK, weights / weights.sum(), size=-(-total // MIX_BLOCK))
    earlier = np.cumsum(counts, axis=0) - counts  # [blocks, sources]
    source, number = np.empty_like(places), np.empty_like(places)
    for block in np.unique(places // MIX_BLOCK):
        drawn = np.random.default_rng([*words, block + 1]).permutation(
            np.repeat(np.arange(len(weights)), counts[block])
        )
        numbers = np.empty_like(drawn)
        for n in range(len(weights)):
            numbers[drawn == n] = earlier[block, n] + np.arange(counts[block, n])
        here = places // MIX_BLOCK == block
        source[here], number[here] = drawn[places[here] % MIX_BLOCK], numbers[places[here] % MIX_BLOCK]
    return source, number


class ClipStream:
    """
    The clips of sources that are read from front to back; used like `ClipIndex`, with `size` 0 for unknown.

    Sources take turns at random: equally often until they are used up, or by their weights, being repeated, until each
    has been read once; in the place of a source that has no clip for it, a reader gives one of the others. A source
    with at least as many shards (files) as there are readers is shared out by shards; of any other each reader goes
    through all rows and keeps its own. Shards come in random order; eight at a time are read in turn and shuffled
    through a buffer, which is emptied before the next eight. So a section that is asked for out of turn costs at most
    eight shards of each source. (`IterableDataset.shuffle` of datasets 5 reads shards in threads, and waits five
    seconds at the end of each pass.)
    """

    size = 0
    first_epoch = first_place = 0

    def __init__(self, sources: list[Source], weights: list[float] | None, seed: int, buffer_size: int):
        self.sources = sources
        self.weights = weights
        self.seed = seed
        self.buffer_size = buffer_size
        self._running: list[Iterator[Clip]] = []
        self._stands_at: tuple | None = None

    def section(
        self, position: Position, reader: int, num_readers: int, size: int
    ) -> tuple[list[tuple[int, Clip]], Cursor]:
        """
        As `ClipIndex.section`, but with fewer clips where they are large.
        """
        epoch = position.epoch
        cursor = list(position.cursor) or [SourcePlace()] * len(self.sources)
        if self._stands_at != (epoch, position.section, cursor, reader, num_readers):
            self._running = [self._chapter(n, epoch, at, reader, num_readers) for n, at in enumerate(cursor)]
        rng = np.random.default_rng([self.seed, MIX, epoch, reader, position.section])
        clips: list[tuple[int, Clip]] = []
        held = 0
        while len(clips) < size and held <= LARGEST_BUFFER:
            weights = self._weights(cursor)
            if not weights.any():
                break
            source = int(rng.choice(len(weights), p=weights / weights.sum()))
            at = cursor[source]
            while (clip := next(self._running[source], None)) is None:
                at = at._replace(chapter=at.chapter + 1, given=0)
                if at.chapter >= self._num_chapters(source, num_readers):
                    at = at._replace(passes=at.passes + 1, chapter=0)
                cursor[source] = at
                self._running[source] = self._chapter(source, epoch, at, reader, num_readers)
                if not self._weights(cursor)[source]:
                    break
            if clip is None:
                continue
            clips.append((sum(each.given_in_epoch for each in cursor) * num_readers + reader, clip))
            held += _size(clip)
            cursor[source] = at._replace(given=at.given + 1, given_in_epoch=at.given_in_epoch + 1)
        self._stands_at = (epoch, position.section + 1, cursor, reader, num_readers)
        return clips, tuple(cursor)

    def get(self, item: Clip) -> Clip:
        """The clip itself."""
        return item

    def _weights(self, cursor: Sequence[SourcePlace]) -> np.ndarray:
        """How likely each source is to give the next clip of an epoch, not summing to 1; all 0 where that is over."""
        if self.weights is None:
            return np.array([0.0 if at.passes else 1.0 for at in cursor])
        if all(at.passes for at in cursor):
            return np.zeros(len(cursor))
        is_empty = [at.passes and not at.given_in_epoch for at in cursor]
        return np.where(is_empty, 0.0, self.weights)

    def _num_chapters(self, source: int, num_readers: int) -> int:
        if self.sources[source].size is not None:
            return 1
        shards = self.sources[source].dataset.num_shards
        own = shards // num_readers if shards >= num_readers else shards
        return max(1, -(-own // OPEN_SHARDS))

    def _chapter(self, number: int, epoch: int, at: SourcePlace, reader: int, num_readers: int) -> Iterator[Clip]:
        """The clips of a chapter but for those that have been given."""
        source = self.sources[number]
        dataset = source.dataset
        passes, chapter, given, _ = at
        words = (self.seed, SHUFFLE, epoch, number, passes)
        if source.size is not None:
            order = Permutation(source.size, *words)
            for place in range(reader + given * num_readers, source.size, num_readers):
                row = int(order(np.array([place]))[0])
                yield source.clip(dataset[row], row)
            return
        shards = np.random.default_rng(words).permutation(dataset.num_shards)
        first, step = reader, num_readers
        if len(shards) >= num_readers:
            shards, first, step = shards[reader::num_readers], 0, 1
        last = chapter == self._num_chapters(number, num_readers) - 1
        shards = shards[chapter * OPEN_SHARDS : None if last else (chapter + 1) * OPEN_SHARDS]
        parts = (_shard(source, int(shard)) for shard in shards)
        clips = islice(_interleave(parts), first, None, step)
        rng = np.random.default_rng([*words, chapter, reader])
        yield from islice(_shuffle(clips, self.buffer_size, rng), given, None)


def _shard(source: Source, shard: int) -> Iterator[Clip]:
    """The clips of one file of a streamed source; where reading fails, bad clips stand for those lost."""
    if isinstance(source.dataset, TarArchives):
        yield from source.dataset.clips(shard)
        return
    row = 0
    part = source.dataset.shard(source.dataset.num_shards, shard)
    try:
        # `iter`, because `__iter__` would share the rows out among the workers a second time.
        for row, columns in enumerate(part.iter(batch_size=1), 1):
            yield source.clip({source.column: columns[source.column][0]}, f"shard {shard}, row {row - 1}")
    except Exception as error:  # of whatever library reads the format
        name, rows = _file_and_rows(source.dataset, part)
        bad = Clip(
            f"{name or f'{source.name}, shard {shard}'} after row {row}",
            BadAudio("corrupt", f"cannot be read any further ({error})"),
        )
        for _ in range(min(max(1, rows - row), MOST_LOST)):
            yield bad


def _file_and_rows(dataset: IterableDataset, part: IterableDataset) -> tuple[str, int]:
    """
    The Parquet file that a shard `part` of a data set is, and its rows: by its footer, or where that is gone by the
    first whole one among the other files. ("", 0) for formats that do not tell.
    """
    file = next(iter(_files(part)), "")
    for other in [file, *_files(dataset)[:ASKED]]:
        try:
            with fsspec.open(other, "rb") as opened:
                return file, ParquetFile(opened).metadata.num_rows
        except Exception:  # of any file system or format
            continue
    return file, 0


def _files(dataset: IterableDataset) -> list[str]:
    """The files that a streamed data set reads, one a shard; none where its format does not tell."""
    examples = dataset._ex_iterable
    while hasattr(examples, "ex_iterable"):
        examples = examples.ex_iterable
    files = (getattr(examples, "kwargs", None) or {}).get("files", [])
    return [file for file in files if isinstance(file, str)]


def _interleave(parts: Iterator[Iterator]) -> Iterator:
    """Elements of the first few parts in turn, each exhausted one being followed by the next part."""
    running = deque(islice(parts, OPEN_SHARDS))
    while running:
        element = next(running[0], None)
        if element is None:
            running.popleft()
            running.extend(islice(parts, 1))
        else:
            running.rotate(-1)
            yield element


def _size(clip: Clip) -> int:
    """Bytes that a clip holds in memory."""
    return len(clip.audio) if isinstance(clip.audio, bytes) else 0


def _shuffle(clips: Iterator[Clip], buffer_size: int, rng: np.random.Generator) -> Iterator[Clip]:
    """Through a buffer of so many clips, or of fewer where they are large."""
    buffer, held = [], 0
    for clip in clips:
        held += _size(clip)
        if len(buffer) < buffer_size and held <= LARGEST_BUFFER:
            buffer.append(clip)
            continue
        place = int(rng.integers(len(buffer)))
        held -= _size(buffer[place])
        yield buffer[place]
        buffer[place] = clip
        while held > LARGEST_BUFFER and len(buffer) > 1:
            clip = buffer.pop(int(rng.integers(len(buffer))))
            held -= _size(clip)
            yield clip
    yield from (buffer[place] for place in rng.permutation(len(buffer)))
