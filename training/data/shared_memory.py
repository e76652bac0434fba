"""Shared memory through which workers send batches to the process that trains; the same memory serves every batch.

torch allocates new shared memory for each tensor of each batch. The system then clears it page by page, and both
processes open and map it: more work than reading the WAV files that fill it.
"""

import itertools
import math
import weakref

import torch
from torch import Tensor

from training.data.workers import AHEAD


ALIGNED = 64  # bytes
Slot = tuple[int, int]  # worker, number
Layout = tuple[int, torch.dtype, torch.Size]  # of a tensor; the first number is its first byte in the slot


class SharedMemoryPool:
    """
    Slots in shared memory, two for each worker. A worker fills a slot and sends its number; the slot is free again
    when the batch has been copied out of it. Make the pool before the workers start, and keep it as long as they run.

    Args:
        num_workers: of one pass over the data.
        num_bytes: of the tensors of a batch. Those of a larger one are sent as torch does it.
        pin_memory: copy into memory that a GPU reads by itself.

    Raises:
        RuntimeError: if there is too little shared memory.
    """

    def __init__(self, num_workers: int, num_bytes: int, pin_memory: bool = False):
        size = _aligned(num_bytes)
        memory = torch.UntypedStorage._new_shared(num_workers * AHEAD * size)
        self._slots = torch.empty(0, dtype=torch.uint8).set_(memory, 0, (num_workers, AHEAD, size))
        self._in_use = torch.zeros(num_workers, AHEAD, dtype=torch.bool).share_memory_()
        self._number, self._pin_memory = next(_numbers), pin_memory
        _open[self._number] = self

    def room(self, worker: int, *shape: int) -> Tensor:
        """Memory for the waveforms of a worker's next batch, float32: in a slot, if one is free and large enough."""
        free = self._free(worker)
        if free is None or 4 * math.prod(shape) > self._slots.shape[2]:
            return torch.empty(shape)
        return self._tensor(free, 0, torch.float32, torch.Size(shape))

    def pack(self, worker: int, batch: dict) -> "SharedBatch | dict":
        """A worker's batch as it is sent; its waveforms must come first. The receiver gets a dict of its own."""
        layouts, end = {}, 0
        for name, value in batch.items():
            if torch.is_tensor(value):
                layouts[name] = end, value.dtype, value.shape
                end += _aligned(value.nbytes)
        own = self._slot_of(batch["input_values"])
        slot = own or self._free(worker)
        if slot is None or end > self._slots.shape[2]:
            # The slot is free still: the next batch will be written into it.
            return batch if own is None else {**batch, "input_values": batch["input_values"].clone()}
        self._in_use[slot] = True
        for name, layout in layouts.items():
            target = self._tensor(slot, *layout)
            if target.data_ptr() != batch[name].data_ptr():
                target.copy_(batch[name])
        return SharedBatch(self._number, slot, layouts, {name: batch[name] for name in batch if name not in layouts})

    def unpack(self, slot: Slot, layouts: dict[str, Layout], rest: dict) -> dict:
        """The batch in a slot, which is free then."""
        tensors = {
            name: torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)
            for name, (_, dtype, shape) in layouts.items()
        }
        for name, layout in layouts.items():
            tensors[name].copy_(self._tensor(slot, *layout))
        self._in_use[slot] = False
        return tensors | rest

    def _free(self, worker: int) -> Slot | None:
        return next(((worker, number) for number in range(AHEAD) if not self._in_use[worker, number]), None)

    def _slot_of(self, tensor: Tensor) -> Slot | None:
        """The slot that a tensor from `room` lies in."""
        number = (tensor.data_ptr() - self._slots.data_ptr()) // self._slots.shape[2]
        return divmod(number, AHEAD) if 0 <= number < self._in_use.numel() else None

    def _tensor(self, slot: Slot, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        return self._slots[slot][start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


class SharedBatch:
    """A batch in a slot. Unpickled by the process that has made the pool, it is the batch itself."""

    def __init__(self, pool: int, slot: Slot, layouts: dict[str, Layout], rest: dict):
        self._content = pool, slot, layouts, rest

    def __reduce__(self):
        return _unpack, self._content


_numbers = itertools.count()
_open: weakref.WeakValueDictionary[int, SharedMemoryPool] = weakref.WeakValueDictionary()


def _unpack(pool: int, *content) -> dict | None:
    found = _open.get(pool)
    return None if found is None else found.unpack(*content)  # None: nobody waits for it any more


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNED) * ALIGNED
