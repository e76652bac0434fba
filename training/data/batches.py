"""Batches of similar clips: planned from headers, decoded when due, padded and masked on the CPU.

A reader (one worker of one process) takes a section of its clips of an epoch at a time, sorts it by length and cuts it
into batches. Every batch says where its reader goes on after it, so a resumed run plans that section once more.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sjepa_hf.frames import SAMPLING_RATE, frame_lengths, length_mask
from training.common.seeds import draw
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioError, counted
from training.data.clips import Clip
from training.data.coloured_noise import ColouredNoise
from training.data.masking import PUBLISHED_MASK, Mask
from training.data.noise import Noise
from training.data.order import BUCKET, CROP, DRAW, MASK, NOISE, ClipIndex, ClipStream, DataPosition, Position
from training.data.shared_memory import SharedMemoryPool
from training.data.waveforms import BadAudio
from training.data.workers import SAMPLE_BYTES


logger = logging.getLogger(__name__)

LENGTH_JITTER = 0.05  # clips up to 5 % apart in length are shuffled before they are batched
HOPELESS = 50  # unusable clips in a row, at the end of an epoch without a usable one, that end the run


class _Planned(NamedTuple):
    key: int
    item: object
    length: int  # samples of the whole clip, as manifest or header say
    clip: Clip | None  # the clip; None where it is opened again from `item` when due


def cut_batches(lengths: np.ndarray, max_samples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Group clips of similar length into batches of at most `max_samples` samples with padding.

    Args:
        lengths: samples of each clip `(num_clips,)`, none above `max_samples`.
        max_samples: bound on `batch_size * longest clip`.
        rng: orders clips of nearly the same length, the batches, and the end at which cutting begins.

    Returns:
        All batches in random order, each as indices into `lengths`; at most one is not full.
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
    return [groups[i] for i in rng.permutation(len(groups))]


def batches_by_length(lengths: dict[int, int], batch_seconds: float) -> list[list[int]]:
    """Numbers of clips of `lengths` in samples, longest first, in batches of at most `batch_seconds` with padding."""
    found: list[list[int]] = []
    for number in sorted(lengths, key=lambda number: (-lengths[number], number)):
        if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > batch_seconds * SAMPLING_RATE:
            found.append([])
        found[-1].append(number)
    return found


def with_masks(
    input_values: Tensor, lengths: Tensor, mask: Mask, generator: torch.Generator
) -> dict[str, Tensor | int | None]:
    """Draw which frames of padded clips are masked.

    Args:
        input_values: at least one clip, float32 `(batch_size, num_samples)`, zero-padded to the longest.
        lengths: int64 `(batch_size,)`, real samples of each at 16 kHz, at least 400.
        mask: draws the masks, as `SpanMask` does.
        generator: source of randomness of the masks.

    Returns:
        `input_values` and `lengths` as they are, `attention_mask` bool `(batch_size, num_samples)`, or None where
        nothing is padded, `mask_time_indices` bool `(batch_size, num_frames)`, `masked_positions` and
        `visible_positions`, int64, the ascending flat indices `clip * num_frames + frame` of masked and of visible
        real frames, and `longest_visible`, the most visible frames of any clip.
    """
    frames = frame_lengths(lengths)
    num_frames = int(frames.max())
    masked = mask(frames, num_frames, generator)  # [B, T]
    visible = length_mask(frames, num_frames) & ~masked
    return {
        "input_values": input_values,
        "attention_mask": attention_mask(lengths),
        "lengths": lengths,
        "mask_time_indices": masked,
        "masked_positions": masked.flatten().nonzero()[:, 0],
        "visible_positions": visible.flatten().nonzero()[:, 0],
        "longest_visible": int(visible.sum(1).max()),
    }


def attention_mask(lengths: Tensor) -> Tensor | None:
    """
    Which samples of clips of `lengths`, int64 `(batch_size,)`, are real: bool `(batch_size, longest)`. None where all
    are: without a mask, attention takes its fast kernels.
    """
    longest = int(lengths.max())
    return None if bool((lengths == longest).all()) else length_mask(lengths, longest)


class BatchStream(IterableDataset):
    """Ready batches of one process, epoch after epoch, the same for the same seed and number of readers.

    An epoch takes every clip of this process once. Processes and workers only decide who reads: micro-batch number m
    of all processes together comes from reader `m % num_readers`, so that 2 processes with 2 workers read in each step
    what 1 process with 4 workers reads in two micro-batches. A batch all of whose clips turn out bad is left out.

    Args:
        corpus: the clips.
        args: how they are cut into batches; `bucket_buffer_size` clips of a reader make a section.
        seed: decides order, crops and masks.
        process_index, num_processes: the share of the clips that this process reads.
        position: where the readers go on; None begins.
        max_epochs: None never ends.
        mask: draws the masks of a batch.
        noise: what augmentation may add; None gives none.

    Attributes:
        memory_pool: shared memory that workers send their batches through; None: as torch does it.

    Yields:
        What `with_masks` returns and, with noise, of `Noise.for_batch`; `seconds` of real audio; `skipped`, the
        `(name, reason)` of bad clips, and of bad noise, met since this reader's previous batch; `reader`, its number,
        and `position`, where it goes on; `seed`, an integer for random choices about this batch.

    Raises:
        BadAudioError: when an epoch gives a reader no usable clip.
    """

    def __init__(
        self,
        corpus: ClipIndex | ClipStream,
        args: DataArguments,
        *,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        position: DataPosition | None = None,
        max_epochs: int | None = None,
        mask: Mask = PUBLISHED_MASK,
        noise: Noise | ColouredNoise | None = None,
    ):
        super().__init__()
        self.corpus = corpus
        self.args = args
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.position = position
        self.max_epochs = max_epochs
        self.max_batch = round(args.batch_seconds * SAMPLING_RATE)
        self.max_samples = round(args.max_seconds * SAMPLING_RATE)
        self.mask = mask
        self.noise = noise
        self.memory_pool: SharedMemoryPool | None = None
        self._lengths: np.ndarray | None = None  # of clips whose header had to be read, by number; 0: not yet

    @property
    def batch_bytes(self) -> int:
        """Bytes that the tensors of a batch may take, unless its clips are extremely short."""
        sample = SAMPLE_BYTES + (4 * self.noise.share if self.noise else 0)
        return round(self.max_batch * sample) + 4 * self.max_samples

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        # The loader asks worker 0 first: let it stand in for the worker whose turn it is.
        role = (worker + (self.position.batches // self.num_processes if self.position else 0)) % workers
        reader, num_readers = self.process_index + self.num_processes * role, self.num_processes * workers
        at = Position(epoch=self.corpus.first_epoch)
        if self.position:
            at = self.position.positions.get(reader, at)
        room, pack = torch.empty, dict
        if info and self.memory_pool:
            room, pack = partial(self.memory_pool.room, worker), partial(self.memory_pool.pack, worker)
        self._lengths = None
        skipped: list[tuple[str, str]] = []
        unusable = Counter()  # since the last usable clip
        while self.max_epochs is None or at.epoch < self.max_epochs:
            # What is left of an epoch may hold nothing for this reader.
            begun = at.epoch == self.corpus.first_epoch and self.corpus.first_place > 0
            usable = begun or at.section + at.batch > 0
            for batch, bad in self._epoch(at, reader, num_readers, room):
                skipped += bad
                unusable.update(reason for _, reason in bad)
                if batch is not None:
                    yield pack(batch | {"skipped": skipped})
                    usable, skipped, unusable = True, [], Counter()
            if not usable:
                self._check_hopeless(at.epoch, unusable, num_readers)
            at = Position(at.epoch + 1)
        for name, reason in skipped[:20]:
            logger.warning("Skipped %s: %s (after the last batch, %d such clips).", name, reason, len(skipped))

    def _epoch(
        self, at: Position, reader: int, num_readers: int, room: Callable[[int, int], Tensor]
    ) -> Iterator[tuple[dict | None, list[tuple[str, str]]]]:
        """
        A reader's batches of an epoch from `at` on, each what is yielded but for `skipped`, or None for one without a
        usable clip; with each, name and reason of what has been found unusable.
        """
        while True:
            clips, cursor = self.corpus.section(at, reader, num_readers, self.args.bucket_buffer_size)
            if not clips:
                return
            words = [self.seed, BUCKET, at.epoch, at.section, reader]
            batches, bad = self._plan(clips, np.random.default_rng(words))
            if not batches:
                yield None, bad
            # Every batch tells its share of them, so that what is counted so far is always of the same clips.
            ends = np.cumsum([len(batch) for batch in batches]) * len(bad) // max(1, len(clips) - len(bad))
            for number in range(at.batch, len(batches)):
                batch, broken = self._batch(batches[number], at._replace(batch=number), reader, room)
                yield batch, bad[ends[number - 1] if number else 0 : ends[number]] + broken
            at = Position(at.epoch, at.section + 1, 0, cursor)

    def _plan(
        self, clips: Sequence[tuple[int, object]], rng: np.random.Generator
    ) -> tuple[list[list[_Planned]], list[tuple[str, str]]]:
        """A section as batches, and name and reason of what is unusable by its header; reads headers only."""
        planned, skipped = [], []
        for key, item in clips:
            length, clip = 0 if self._lengths is None else int(self._lengths[key % self.corpus.size]), None
            if not length:
                clip = self.corpus.get(item)
                try:
                    length = self._length(clip, key)
                except BadAudio as error:
                    skipped.append((clip.name, error.reason))
                    continue
                if isinstance(clip.audio, bytes):
                    clip = None
            planned.append(_Planned(key, item, length, clip))
        if not planned:
            return [], skipped
        lengths = np.array([min(clip.length, self.max_samples) for clip in planned], dtype=np.int64)
        return [[planned[i] for i in batch] for batch in cut_batches(lengths, self.max_batch, rng)], skipped

    def _batch(
        self, planned: list[_Planned], at: Position, reader: int, room: Callable[[int, int], Tensor]
    ) -> tuple[dict | None, list[tuple[str, str]]]:
        """As `_epoch` gives it."""
        input_values, lengths, bad = self._read(planned, at.epoch, room)
        if not len(lengths):
            return None, bad
        place = (at.epoch, at.section, at.batch, reader)
        generator = torch.Generator().manual_seed(draw(self.seed, MASK, *place))
        batch = with_masks(input_values, lengths, self.mask, generator)
        if self.noise is not None:
            rng = np.random.default_rng([self.seed, NOISE, *place])
            noise, bad_noise = self.noise.for_batch(*input_values.shape, rng)
            batch, bad = batch | noise, bad + bad_noise
        return batch | {
            "seconds": int(lengths.sum()) / SAMPLING_RATE,
            "reader": reader,
            "position": at._replace(batch=at.batch + 1),
            "seed": draw(self.seed, DRAW, *place) >> 1,  # fits into a signed integer
        }, bad

    def _length(self, clip: Clip, key: int) -> int:
        """Samples of a clip. Headers are read once: what they say is kept, which manifests with durations spare."""
        length = clip.listed_length()
        if length < self.args.min_seconds * SAMPLING_RATE:
            raise BadAudio("too_short")
        length = min(length, np.iinfo(np.int32).max)
        if clip.duration is None and self.corpus.size:
            if self._lengths is None:
                self._lengths = np.zeros(self.corpus.size, dtype=np.int32)
            self._lengths[key % self.corpus.size] = length
        return length

    def _read(
        self, batch: list[_Planned], epoch: int, room: Callable[[int, int], Tensor]
    ) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        """Decode the clips of a batch: the good ones, padded, and their lengths; name and reason of the bad ones."""
        memory = room(len(batch), max(min(planned.length, self.max_samples) for planned in batch))
        rows, lengths, bad = memory.numpy(), [], []
        for planned in batch:
            clip, seed = planned.clip or self.corpus.get(planned.item), [self.seed, CROP, epoch, planned.key]
            try:
                samples = clip.read(max_seconds=self.args.max_seconds, min_seconds=self.args.min_seconds, rng=seed)
            except BadAudio as error:
                bad.append((clip.name, error.reason))
                continue
            samples = samples[: planned.length]  # headers can promise less than comes
            row = rows[len(lengths)]
            row[: len(samples)], row[len(samples) :] = samples, 0.0
            lengths.append(len(samples))
        # A copy only where all clips are shorter than their headers say.
        return memory[: len(lengths), : max(lengths, default=0)].contiguous(), torch.tensor(lengths), bad

    def _check_hopeless(self, epoch: int, unusable: Counter, num_readers: int) -> None:
        """Called after an epoch in which this reader found nothing usable; in a small share this may be chance."""
        count = unusable.total()
        if count == 0 and self.max_epochs is None:
            raise BadAudioError(
                f"Epoch {epoch} has no clip for one of {num_readers} readers (processes x workers): lower num_workers."
            )
        if count >= HOPELESS or (count and num_readers == 1):
            raise BadAudioError(
                f"Epoch {epoch} gave no usable clip, {count} were skipped ({counted(unusable)}): check train_data."
            )


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
