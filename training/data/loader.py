"""Loader of pretraining: any sources behind one stream of ready batches.

args = DataArguments(train_data=["/data/librivox", "openslr/librispeech_asr::clean::train.100"])
for batch in build_loader(args, mask=SpanMask(prob=0.65, span=10), seed=0): ...
"""

import atexit
import logging
import math
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import replace

import fsspec.asyn
import torch
from torch.utils.data import DataLoader

from sjepa_hf.command import first_line
from training.data.arguments import DataArguments
from training.data.batches import BatchStream
from training.data.coloured_noise import ColouredNoise
from training.data.masking import PUBLISHED_MASK, Mask
from training.data.noise import Noise
from training.data.order import ClipIndex, ClipStream, DataPosition, Position
from training.data.shared_memory import SharedMemoryPool
from training.data.sources import Source, open_source
from training.data.workers import die_when_stuck, start_method


logger = logging.getLogger(__name__)

IGNORED_BY_WORKERS = (signal.SIGINT, signal.SIGTERM)  # sent to the whole group; see `_kill_workers`


def open_sources(args: DataArguments) -> list[Source]:
    """The sources of `train_data`. Raises ValueError if one cannot be opened, or has no audio."""
    sources = [open_source(spec, streaming=args.streaming, audio_column=args.audio_column) for spec in args.train_data]
    for source in sources:
        if source.size == 0:
            raise ValueError(f"train_data '{source.name}' holds no clip.")
    return sources


class BatchLoader(DataLoader):
    """A `DataLoader` of a `BatchStream`, whose workers ignore signals and send batches through shared memory."""

    def __iter__(self) -> Iterator[dict]:
        pool = None
        if self.num_workers:
            try:
                pool = SharedMemoryPool(self.num_workers, self.dataset.batch_bytes, self.pin_memory)
            except RuntimeError as error:  # shared memory may still suffice for one batch after another
                logger.info("No shared memory is kept for batches: %s.", first_line(error))
        self.dataset.memory_pool = pool
        # A new process begins with its parent's mask: what comes while one starts is held back until it ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_WORKERS)
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.dataset.memory_pool = None
        batches.memory_pool = pool  # which lives as long as they do: each pass has its own
        return batches


def reading_settings(args: DataArguments, corpus: ClipIndex | ClipStream, seed: int) -> dict:
    """
    What decides the order of the clips (`order`), how they are read and cut into batches (`cut`), and which they are
    (`identities`, of each source). For JSON.
    """
    sources = [source.name for source in corpus.sources] if args.streaming else corpus.sizes.tolist()
    order = {"sources": sources, "weights": args.train_data_weights, "seed": seed, "streaming": args.streaming}
    names = ("audio_column", "bucket_buffer_size", "batch_seconds", "max_seconds", "min_seconds")
    cut = {name: getattr(args, name) for name in names}
    return {"order": order, "cut": cut, "identities": [source.identity for source in corpus.sources]}


def changed_sources(position: DataPosition, settings: dict) -> list[int]:
    """Numbers, from 1, of the sources that hold other clips than those that `position` was reached in."""
    pairs = zip(position.settings.get("identities", settings["identities"]), settings["identities"])
    return [number for number, (before, now) in enumerate(pairs, start=1) if before != now]


def is_same_order(position: DataPosition, settings: dict) -> bool:
    """Whether the clips come in the order that `position` was reached in, so that a place in it is the same one."""
    return position.settings.get("order") == settings["order"] and not changed_sources(position, settings)


def first_place_not_read_by_all(position: DataPosition) -> tuple[int, int, int]:
    """
    Epoch and place in it (both as `DataPosition.first`) from which on some clips may be unread, and the most clips
    beyond it that were read already. For `ClipIndex`; streams have no places.
    """
    section_size, size = position.settings["cut"]["bucket_buffer_size"], sum(position.settings["order"]["sources"])
    ats = [position.positions.get(reader, Position(position.first[0])) for reader in range(position.readers)]
    epoch = min(at.epoch for at in ats)
    behind = min(at.section for at in ats if at.epoch == epoch)
    start = position.first[1] if epoch == position.first[0] else 0
    sections = math.ceil((size - start) / (section_size * position.readers))
    ahead = sum((at.epoch - epoch) * sections + at.section + (at.batch > 0) - behind for at in ats)
    return epoch, start + behind * section_size * position.readers, ahead * section_size


def position_for(position: DataPosition, readers: int, settings: dict) -> tuple[DataPosition, str]:
    """
    Where another number of readers, or other settings, go on from `position`; and a sentence about what that means.

    Where the order of the clips is the same, the new readers begin at the first place of the epoch that not all clips
    before have been read: none is lost, a few come again. Else a new epoch begins.
    """
    changed = "the number of readers (processes x workers)" if position.readers != readers else "a data setting"
    if is_same_order(position, settings) and not settings["order"]["streaming"]:
        epoch, place, again = first_place_not_read_by_all(position)
        note = (
            f"{changed} is another: this pass over the data goes on in its order, no clip is left out, at most"
            f" {again} come again; batches, crops and masks are others"
        )
    else:
        epoch, place = max([position.first[0], *(at.epoch for at in position.positions.values())]) + 1, 0
        why = f"{changed} is another" if is_same_order(position, settings) else "the data or their order are others"
        if numbers := changed_sources(position, settings):
            why = f"the contents of source {', '.join(map(str, numbers))} of train_data have changed"
        note = f"{why}: a new pass over the data begins (number {epoch}); what was left of the last one is not read"
    return DataPosition(readers, batches=position.batches, first=(epoch, place), settings=settings), note


def build_loader(
    args: DataArguments,
    *,
    mask: Mask = PUBLISHED_MASK,
    noise: Noise | ColouredNoise | None = None,
    seed: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    position: DataPosition | None = None,
    max_epochs: int | None = None,
    pin_memory: bool = False,
    sources: list[Source] | None = None,
) -> DataLoader:
    """The loader of one process's batches; `loader.dataset.position` is where it begins.

    The batches depend on `seed`, `num_processes * args.num_workers` and the data alone; each call is an independent
    pass. See `BatchStream` for what a batch holds.

    Args:
        args: sources and batch shape.
        mask: draws the masks, as `SpanMask` does.
        noise: what augmentation may add to the clips. It changes neither their order nor their masks.
        seed: non-negative; decides order, crops and masks.
        process_index, num_processes: this process and their number; processes share no clip.
        position: where an earlier run has stopped; with as many readers and the same data settings its batches go on
            exactly, else as `position_for` says, which is logged.
        max_epochs: passes over the data; None never ends.
        pin_memory: as in `DataLoader`.
        sources: what [`open_sources`] gives, where they are open already.

    Raises:
        ValueError: if a source cannot be opened, has no audio, or has fewer clips than there are readers.
    """
    sources = open_sources(args) if sources is None else sources
    readers = num_processes * max(1, args.num_workers)
    if args.streaming:
        corpus = ClipStream(sources, args.train_data_weights, seed, args.shuffle_buffer_size)
    else:
        corpus = ClipIndex(sources, args.train_data_weights, seed)
    if not args.streaming and max_epochs is None and corpus.size < readers:
        raise ValueError(
            f"train_data holds {corpus.size} clips for {readers} readers (processes x num_workers): lower num_workers."
        )
    settings, heard = reading_settings(args, corpus, seed), noise.identities if noise else []
    position, notes = _start(position, readers, settings, heard)
    for note in notes if process_index == 0 else ():
        logger.warning("Data: %s.", note)
    corpus.first_epoch, corpus.first_place = position.first
    batches = BatchStream(
        corpus,
        args,
        seed=seed,
        process_index=process_index,
        num_processes=num_processes,
        position=position,
        max_epochs=max_epochs,
        mask=mask,
        noise=noise,
    )
    return BatchLoader(
        batches,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=args.num_workers,
        worker_init_fn=_start_worker,
        multiprocessing_context=start_method() if args.num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # leaves the global generator alone
    )


def _start(
    position: DataPosition | None, readers: int, settings: dict, heard: list[str]
) -> tuple[DataPosition, list[str]]:
    """Where the readers begin, and sentences about what is not as it was before; `heard` identifies the noise."""
    notes = []
    if position is None:
        position = DataPosition(readers, settings=settings)
    else:
        before = {name: value for name, value in position.settings.items() if name != "noise"}
        if position.settings.get("noise", []) != heard:
            notes.append("`noise_data` is another than before: the noise is drawn from it from here on")
        if (position.readers, before) != (readers, settings):
            position, note = position_for(position, readers, settings)
            notes.append(note)
    return replace(position, settings=settings | ({"noise": heard} if heard else {})), notes


def _as_is(batch: dict) -> dict:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_BY_WORKERS)
    fsspec.asyn.reset_lock()  # a forked lock would hang remote reads
    die_when_stuck()


@atexit.register
def _kill_workers() -> None:
    """Python would end the workers that are left with SIGTERM, which they ignore, and wait for them for ever."""
    if hasattr(signal, "SIGCHLD"):  # on Windows there is none
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would complain of each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join(timeout=2)
            if child.is_alive():  # in a read that hangs, out of reach of signals: Python is not to wait for it
                multiprocessing.process._children.discard(child)
