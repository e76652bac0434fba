"""Batches of similar clips: planned from headers, decoded when due, padded and masked on the CPU.

A reader (one worker of one rank) draws its clips of an epoch in random order, collects them in a buffer, sorts the
buffer by length and cuts it into batches. Only headers are read for this, so a resumed run finds its place without
decoding anything.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from training.audio import SAMPLING_RATE, BadAudio, BadAudioError, Clip, Source, audio_length, check_samples
from training.features import frame_lengths
from training.masking import compute_span_mask


logger = logging.getLogger(__name__)

LENGTH_JITTER = 0.05  # clips up to 5 % apart in length are shuffled before they are batched
LONGEST_CACHED = 4  # times max_seconds; of longer clips only the crop is decoded, and nothing cached
OPEN_SHARDS = 8  # files of a streamed source that are read at a time
HOPELESS = 50  # unusable clips in a row, at the end of an epoch without a usable one, that end the run
ORDER, OWNER, SHUFFLE, MIX, BUCKET, CROP, MASK = range(7)  # independent random streams of one seed


def _random_state(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


class _Planned(NamedTuple):
    key: int
    item: object
    length: int  # samples of the whole clip, as the header says


class _Plan(NamedTuple):
    epoch: int
    number: int  # of the batch within this reader's epoch
    clips: list[_Planned]  # none: the epoch is over
    skipped: list[tuple[str, str]]


def cut_batches(
    lengths: np.ndarray, max_samples: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Group clips of similar length into batches of at most `max_samples` samples with padding.

    Args:
        lengths: samples of each clip `(num_clips,)`, none above `max_samples`.
        max_samples: bound on `batch_size * longest clip`.
        rng: orders clips of nearly the same length, the batches, and the end at which cutting begins.

    Returns:
        The full batches in random order, and the clips that did not fill one, each as indices into `lengths`.
    """
    order = np.argsort(lengths * rng.uniform(1.0, 1.0 + LENGTH_JITTER, len(lengths)))
    if rng.random() < 0.5:
        order = order[::-1]
    starts, longest = [0], 0
    for position, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if (position + 1 - starts[-1]) * longest > max_samples:
            starts.append(position)
            longest = length
    groups = np.split(order, starts[1:])
    return [groups[i] for i in rng.permutation(len(groups) - 1)], groups[-1]


def collate(
    clips: list[np.ndarray], *, mask_prob: float, mask_span: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Pad clips to the longest one and draw the span masks.

    Args:
        clips: at least one clip `(num_samples,)`, each of at least 400 samples at 16 kHz.
        mask_prob: share of each clip's frames to mask.
        mask_span: frames per masked span.
        generator: source of randomness of the masks.

    Returns:
        `input_values` float32 and `attention_mask` int64 `(batch_size, num_samples)`, `lengths` int64 `(batch_size,)`
        in samples, `mask_time_indices` bool `(batch_size, num_frames)`, and `masked_positions` and
        `visible_positions`, int64, the ascending flat indices `clip * num_frames + frame` of masked and of visible
        real frames.
    """
    lengths = torch.tensor([len(clip) for clip in clips])
    input_values = torch.zeros(len(clips), int(lengths.max()))  # [B, S]
    for row, clip in zip(input_values, clips):
        row[: len(clip)] = torch.from_numpy(clip)
    frames = frame_lengths(lengths)
    num_frames = int(frames.max())
    masked = compute_span_mask(frames, num_frames, mask_prob, mask_span, generator)  # [B, T]
    real = torch.arange(num_frames) < frames[:, None]
    return {
        "input_values": input_values,
        "attention_mask": (torch.arange(input_values.shape[1]) < lengths[:, None]).long(),
        "lengths": lengths,
        "mask_time_indices": masked,
        "masked_positions": masked.flatten().nonzero()[:, 0],
        "visible_positions": (real & ~masked).flatten().nonzero()[:, 0],
    }


class ClipIndex:
    """All clips of sources that can be read at any place.

    `size` is their number. `epoch` gives one reader's share of them in random order, each as a key, which names clip
    and repetition (`key % size` is the clip), and as what `get` turns into a `Clip`.

    Without weights an epoch is every clip once. With weights it is as many draws as there are clips; within a source
    each clip comes once before any comes again.

    Args:
        sources: opened sources.
        weights: relative frequency of each source, or None.
        seed: decides the order.
        fixed_readers: give a clip to the same reader in every epoch, as caches need it.
    """

    def __init__(self, sources: list[Source], weights: list[float] | None, seed: int, fixed_readers: bool = False):
        self.sources = sources
        self.weights = None if weights is None else np.array(weights) / sum(weights)
        self.seed = seed
        self.fixed_readers = fixed_readers
        self.sizes = [len(source.dataset) for source in sources]
        self.starts = np.cumsum([0, *self.sizes])
        self.size = int(self.starts[-1])

    def epoch(self, epoch: int, reader: int, num_readers: int) -> Iterator[tuple[int, int]]:
        order = self._order(epoch)
        if self.fixed_readers:
            owner = np.random.default_rng([self.seed, OWNER]).permutation(self.size) % num_readers
            order = order[owner[order % self.size] == reader]
        else:
            order = order[reader::num_readers]
        return ((key, key % self.size) for key in map(int, order))

    def get(self, item: int) -> Clip:
        source = int(np.searchsorted(self.starts, item, side="right")) - 1
        number = item - int(self.starts[source])
        return self.sources[source].clip(self.sources[source].dataset[number], number)

    def _order(self, epoch: int) -> np.ndarray:
        """Keys `index + size * repetition` of all clips of an epoch."""
        rng = np.random.default_rng([self.seed, ORDER, epoch])
        if self.weights is None:
            return rng.permutation(self.size)
        drawn = rng.choice(len(self.sources), size=self.size, p=self.weights)
        order = np.empty(self.size, dtype=np.int64)
        for source, size in enumerate(self.sizes):
            places = np.flatnonzero(drawn == source)
            rounds = [
                rng.permutation(size) + self.starts[source] + self.size * repetition
                for repetition in range(math.ceil(len(places) / size))
            ]
            if rounds:
                order[places] = np.concatenate(rounds)[: len(places)]
        return order


class ClipStream:
    """The clips of sources that are read from front to back; used like `ClipIndex`, with `size` 0 for unknown.

    Sources take turns at random: equally often until they are used up, or by their weights, being repeated, until each
    has been read once. A source with at least as many shards (files) as there are readers is shared out by shards; of
    any other each reader goes through all rows and keeps its own. Shards come in random order, several at a time, and
    their clips through a shuffle buffer. (`IterableDataset.shuffle` of datasets 5 reads shards in threads, and waits
    five seconds at the end of each pass.)
    """

    size = 0

    def __init__(self, sources: list[Source], weights: list[float] | None, seed: int, buffer_size: int):
        self.sources = sources
        self.weights = weights
        self.seed = seed
        self.buffer_size = buffer_size

    def epoch(self, epoch: int, reader: int, num_readers: int) -> Iterator[tuple[int, Clip]]:
        rng = np.random.default_rng([self.seed, MIX, epoch, reader])
        weights = np.array(self.weights or [1.0] * len(self.sources))
        passes = [0] * len(self.sources)  # finished ones
        running = [self._read(source, epoch, 0, reader, num_readers) for source in range(len(self.sources))]
        given = [0] * len(self.sources)
        while weights.any() and (self.weights is None or not all(passes)):
            source = int(rng.choice(len(weights), p=weights / weights.sum()))
            clip = next(running[source], None)
            if clip is not None:
                yield sum(given) * num_readers + reader, clip
                given[source] += 1
                continue
            passes[source] += 1
            if self.weights is None or not given[source]:
                weights[source] = 0.0
            running[source] = self._read(source, epoch, passes[source], reader, num_readers)

    def get(self, item: Clip) -> Clip:
        return item

    def _read(self, number: int, epoch: int, repetition: int, reader: int, num_readers: int) -> Iterator[Clip]:
        source = self.sources[number]
        dataset = source.dataset
        words = (self.seed, SHUFFLE, epoch, number, repetition)
        if isinstance(dataset, Dataset):
            order = np.random.default_rng(words).permutation(len(dataset))[reader::num_readers]
            yield from (source.clip(dataset[row], row) for row in map(int, order))
            return
        rng = np.random.default_rng(words)
        shards = rng.permutation(dataset.num_shards)
        first, step = reader, num_readers
        if len(shards) >= num_readers:
            shards, first, step = shards[reader::num_readers], 0, 1
        # `iter`, because `__iter__` would share the rows out among the workers a second time.
        parts = (dataset.shard(dataset.num_shards, int(shard)).iter(batch_size=1) for shard in shards)
        rows = ({source.column: row[source.column][0]} for row in islice(_interleave(parts), first, None, step))
        yield from (source.clip(row, i) for i, row in enumerate(_shuffle(rows, self.buffer_size, rng)))


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


def _shuffle(elements: Iterator, buffer_size: int, rng: np.random.Generator) -> Iterator:
    buffer = []
    for element in elements:
        if len(buffer) < buffer_size:
            buffer.append(element)
            continue
        place = int(rng.integers(buffer_size))
        yield buffer[place]
        buffer[place] = element
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


class BatchStream(IterableDataset):
    """Ready batches of one rank, epoch after epoch, the same for the same seed, ranks and workers.

    An epoch takes every clip of this rank once. A batch all of whose clips turn out bad is replaced by the reader's
    next one
    under another mask: the number of batches thus follows from the headers alone, which makes `start_batch` exact.

    Args:
        corpus: the clips.
        seed: decides order, crops and masks.
        rank, world_size: the share of the clips that this process reads.
        start_batch: batches of this rank to pass over, as many as an earlier run with as many workers has used.
        max_epochs: None never ends.
        batch_seconds: padded seconds a batch may hold.
        buffer_size: clips sorted by length at a time.
        max_seconds: longer clips are cropped at random.
        min_seconds: shorter clips are bad.
        cache_gb: GiB per worker for decoded clips.
        mask_prob, mask_span: as in `compute_span_mask`.

    Yields:
        The tensors of `collate`, `seconds` of real audio, and `skipped`, the `(name, reason)` of bad clips met since
        this worker's previous batch.

    Raises:
        BadAudioError: when an epoch gives a reader no usable clip.
    """

    def __init__(
        self,
        corpus: ClipIndex | ClipStream,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        max_epochs: int | None = None,
        batch_seconds: float,
        buffer_size: int,
        max_seconds: float,
        min_seconds: float,
        cache_gb: float = 0.0,
        mask_prob: float = 0.65,
        mask_span: int = 10,
    ):
        super().__init__()
        self.corpus = corpus
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.max_epochs = max_epochs
        self.max_batch = round(batch_seconds * SAMPLING_RATE)
        self.buffer_size = buffer_size
        self.max_seconds = max_seconds
        self.min_seconds = min_seconds
        self.max_samples = round(max_seconds * SAMPLING_RATE)
        self.cache = _ClipCache(cache_gb) if cache_gb > 0 else None
        self.mask_prob = mask_prob
        self.mask_span = mask_span

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        # The loader asks worker 0 first: let it stand in for the worker whose turn it was.
        role = (worker + self.start_batch) % workers
        to_pass = (self.start_batch - role + workers - 1) // workers
        reader, num_readers = self.rank * workers + role, self.world_size * workers

        skipped: list[tuple[str, str]] = []
        due: list[tuple[int, int]] = []  # planned batches not given yet: epoch and number
        epoch_usable, unusable = False, Counter()
        for plan in self._plans(reader, num_readers):
            skipped += plan.skipped
            unusable.update(reason for _, reason in plan.skipped)
            if not plan.clips:
                if not epoch_usable:
                    self._check_hopeless(plan.epoch, unusable, num_readers)
                epoch_usable = False
                continue
            if to_pass:
                to_pass -= 1
                skipped, epoch_usable, unusable = [], True, Counter()
                continue
            clips, bad = self._read(plan)
            skipped += bad
            unusable.update(reason for _, reason in bad)
            due.append((plan.epoch, plan.number))
            if not clips:
                continue
            epoch_usable, unusable = True, Counter()
            for place in due:
                generator = torch.Generator().manual_seed(_random_state(self.seed, MASK, *place, reader))
                batch = collate(clips, mask_prob=self.mask_prob, mask_span=self.mask_span, generator=generator)
                yield batch | {"seconds": sum(map(len, clips)) / SAMPLING_RATE, "skipped": skipped}
                skipped = []
            due = []
        for name, reason in skipped[:20]:
            logger.warning("Skipped %s: %s (after the last batch, %d such clips).", name, reason, len(skipped))

    def _plans(self, reader: int, num_readers: int) -> Iterator[_Plan]:
        """This reader's batches as lists of clips, and an empty list at each epoch's end; reads headers only."""
        known_lengths = np.zeros(self.corpus.size, dtype=np.int32)
        for epoch in count() if self.max_epochs is None else range(self.max_epochs):
            rng = np.random.default_rng([self.seed, BUCKET, epoch, reader])
            buffer: list[_Planned] = []
            skipped: list[tuple[str, str]] = []
            number = 0
            for key, item in self.corpus.epoch(epoch, reader, num_readers):
                length = int(known_lengths[key % self.corpus.size]) if self.corpus.size else 0
                if not length:
                    clip = self.corpus.get(item)
                    try:
                        length = self._header_length(clip)
                    except BadAudio as error:
                        skipped.append((clip.name, error.reason))
                        continue
                    if self.corpus.size:
                        known_lengths[key % self.corpus.size] = length
                buffer.append(_Planned(key, item, length))
                if len(buffer) < self.buffer_size:
                    continue
                batches, buffer = self._cut(buffer, rng)
                for clips in batches:
                    yield _Plan(epoch, number, clips, skipped)
                    number, skipped = number + 1, []
            batches, rest = self._cut(buffer, rng)
            for clips in batches + [rest] if rest else batches:
                yield _Plan(epoch, number, clips, skipped)
                number, skipped = number + 1, []
            yield _Plan(epoch, number, [], skipped)

    def _header_length(self, clip: Clip) -> int:
        if clip.duration is not None:  # no need to open the file
            length = round(clip.duration * SAMPLING_RATE)
        else:
            length = audio_length(clip.audio, offset=clip.offset)
        if length < self.min_seconds * SAMPLING_RATE:
            raise BadAudio("too_short")
        return min(length, np.iinfo(np.int32).max)

    def _cut(self, buffer: list[_Planned], rng: np.random.Generator) -> tuple[list[list[_Planned]], list[_Planned]]:
        lengths = np.array([min(clip.length, self.max_samples) for clip in buffer], dtype=np.int64)
        batches, rest = cut_batches(lengths, self.max_batch, rng)
        return [[buffer[i] for i in batch] for batch in batches], [buffer[i] for i in rest]

    def _read(self, plan: _Plan) -> tuple[list[np.ndarray], list[tuple[str, str]]]:
        """Decode the clips of a batch; returns the good ones, and name and reason of the bad ones."""
        clips, bad = [], []
        for planned in plan.clips:
            try:
                clips.append(self._decode(planned, np.random.default_rng([self.seed, CROP, plan.epoch, planned.key])))
            except BadAudio as error:
                bad.append((self.corpus.get(planned.item).name, error.reason))
        return clips, bad

    def _decode(self, planned: _Planned, rng: np.random.Generator) -> np.ndarray:
        limit = min(planned.length, self.max_samples)  # headers can promise less than comes
        if self.cache is None or planned.length > LONGEST_CACHED * self.max_samples:
            clip = self.corpus.get(planned.item)
            return clip.read(max_seconds=self.max_seconds, min_seconds=self.min_seconds, rng=rng)[:limit]
        # Every clip that could be cached is decoded this way, cached yet or not: a resumed run gets the same samples.
        index = planned.key % self.corpus.size
        stored = self.cache.get(index)
        if stored is None:
            stored = self.cache.put(index, self.corpus.get(planned.item).read(min_seconds=self.min_seconds))
        start = int(rng.integers(max(len(stored) - limit, 0) + 1))
        samples = stored[start : start + limit].astype(np.float32) / 32767
        check_samples(samples)
        return samples

    def _check_hopeless(self, epoch: int, unusable: Counter, num_readers: int) -> None:
        """Called after an epoch in which this reader found nothing usable; in a small share this may be chance."""
        count = unusable.total()
        if count == 0 and self.max_epochs is None:
            raise BadAudioError(
                f"Epoch {epoch} has no clip for one of {num_readers} readers (ranks x workers): lower num_workers."
            )
        if count >= HOPELESS or (count and num_readers == 1):
            reasons = ", ".join(f"{number} {reason}" for reason, number in unusable.most_common())
            raise BadAudioError(
                f"Epoch {epoch} gave no usable clip, {count} were skipped ({reasons}): check train_data."
            )


class _ClipCache:
    """Decoded clips as 16-bit samples, up to a budget in GiB; clips beyond it are decoded each time."""

    def __init__(self, gib: float):
        self.free = int(gib * 2**30)
        self.clips: dict[int, np.ndarray] = {}

    def get(self, index: int) -> np.ndarray | None:
        return self.clips.get(index)

    def put(self, index: int, samples: np.ndarray) -> np.ndarray:
        stored = np.rint(samples.clip(-1.0, 1.0) * 32767).astype(np.int16)
        if stored.nbytes <= self.free:
            self.free -= stored.nbytes
            self.clips[index] = stored
        return stored
