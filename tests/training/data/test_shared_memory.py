"""Batches arrive as they were sent, in memory of their own, and slots are used again once they are empty."""

import pickle

import pytest
import torch
from clip_streams import assert_same, write_clips

from training.data import loader, shared_memory
from training.data.arguments import DataArguments
from training.data.loader import build_loader
from training.data.shared_memory import SharedBatch, SharedMemoryPool


def batch(number: int, num_samples: int = 1000) -> dict:
    """Numbers of every kind that a batch holds."""
    return {
        "input_values": torch.full((2, num_samples), float(number)),
        "attention_mask": None if number % 2 else torch.rand(2, num_samples) < 0.5,
        "lengths": torch.tensor([num_samples, number]),
        "skipped": [("name", "reason")],
        "seconds": 0.5,
    }


def sent(packed):
    return pickle.loads(pickle.dumps(packed))


@pytest.mark.parametrize("in_a_slot", [True, False])
def test_a_batch_arrives_as_it_was_sent(in_a_slot):
    slots = SharedMemoryPool(3, 20_000)
    for number in range(6):
        given = batch(number)
        if in_a_slot:
            given["input_values"] = slots.room(1, 2, 1000).copy_(given["input_values"])
        packed = slots.pack(1, given)
        assert isinstance(packed, SharedBatch) and slots._in_use.sum(1).tolist() == [0, 1, 0]
        expected = {name: value.clone() if torch.is_tensor(value) else value for name, value in given.items()}
        assert len(pickle.dumps(packed)) < 1000
        assert_same([sent(packed)], [expected])
        assert not slots._in_use.any()


def test_what_has_arrived_is_not_written_over():
    slots = SharedMemoryPool(1, 20_000)
    both = [slots.pack(0, batch(number)) for number in (1, 2)]
    arrived = [sent(packed) for packed in both]
    for number in (3, 5):
        slots.pack(0, batch(number))
    assert [received["input_values"].unique().tolist() for received in arrived] == [[1.0], [2.0]]


def test_waveforms_that_are_made_in_a_slot_are_not_copied():
    slots = SharedMemoryPool(2, 20_000)
    slots.pack(1, batch(0))
    rows = slots.room(1, 2, 1000)
    rows[:] = 7.0
    packed = slots.pack(1, batch(1) | {"input_values": rows[:1]})
    rows[:] = 8.0  # as nobody does
    assert sent(packed)["input_values"].tolist() == [[8.0] * 1000]


def test_a_slot_that_is_freed_while_the_next_is_filled_changes_nothing():
    slots = SharedMemoryPool(1, 20_000)
    first = slots.pack(0, batch(1))
    rows = slots.room(0, 2, 1000).fill_(2.0)
    sent(first)
    second = slots.pack(0, batch(3) | {"input_values": rows})
    third = slots.pack(0, batch(3))
    assert [sent(packed)["input_values"].unique().tolist() for packed in (second, third)] == [[2.0], [3.0]]


def test_without_a_free_slot_or_a_large_enough_one_batches_go_as_they_are():
    slots = SharedMemoryPool(1, 20_000)
    large = batch(0, num_samples=3000)
    assert slots.pack(0, large) is large
    assert slots.room(0, 2, 3000).shape == (2, 3000)
    both = [slots.pack(0, batch(number)) for number in (1, 2)]
    more = batch(3)
    assert slots.pack(0, more) is more and slots.room(0, 2, 1000).shape == (2, 1000)
    sent(both[1])
    assert isinstance(slots.pack(0, more), SharedBatch)


def test_a_batch_too_large_for_its_slot_is_not_overwritten_by_the_next():
    """Its waveforms fit, and lie in the slot; all of it does not."""
    slots = SharedMemoryPool(1, 20_000)
    large = slots.pack(0, batch(1) | {"input_values": slots.room(0, 2, 1000).fill_(1.0), "more": torch.zeros(5000)})
    slots.room(0, 2, 1000).fill_(2.0)
    assert isinstance(large, dict) and large["input_values"].unique().tolist() == [1.0]


def test_what_nobody_waits_for_any_more_is_nothing():
    slots = SharedMemoryPool(1, 20_000)
    content = pickle.dumps(slots.pack(0, batch(1)))
    del slots
    assert pickle.loads(content) is None


def test_a_batch_is_copied_into_pinned_memory_where_that_is_asked_for(monkeypatch):
    """As far as this can be seen without a GPU."""
    pools = [SharedMemoryPool(1, 20_000, pin_memory) for pin_memory in (True, False)]
    made, empty = [], torch.empty
    monkeypatch.setattr(
        shared_memory.torch,
        "empty",
        lambda *shape, pin_memory=False, **options: made.append(pin_memory) or empty(*shape, **options),
    )
    for slots in pools:
        sent(slots.pack(0, batch(1)))
    assert made == [True] * 2 + [False] * 2


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "in").mkdir()
    write_clips(tmp_path / "in")

    def make(num_workers: int) -> DataArguments:
        return DataArguments([str(tmp_path / "in")], num_workers=num_workers, batch_seconds=2.0, max_seconds=1.0)

    return make


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_what_the_process_itself_reads(arguments, monkeypatch, start):
    unpacked, unpack = [], SharedMemoryPool.unpack
    monkeypatch.setattr(SharedMemoryPool, "unpack", lambda *given: unpacked.append(given[0]) or unpack(*given))
    expected = list(build_loader(arguments(0), max_epochs=2))
    read = build_loader(arguments(1), max_epochs=2)
    read.multiprocessing_context = start
    assert_same(list(read), expected)
    assert len(unpacked) == len(expected) > 10 and not unpacked[0]._in_use.any()


def test_passes_at_the_same_time_do_not_share_slots(arguments):
    read = build_loader(arguments(1), max_epochs=1)
    first, second = zip(*zip(read, read))
    assert_same(list(first), list(second))
    assert_same(list(first), list(build_loader(arguments(0), max_epochs=1)))


def test_without_shared_memory_to_keep_batches_come_as_torch_sends_them(arguments, monkeypatch, caplog):
    caplog.set_level("INFO")

    def full(*_):
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(loader, "SharedMemoryPool", full)
    assert_same(list(build_loader(arguments(1), max_epochs=1)), list(build_loader(arguments(0), max_epochs=1)))
    assert "No shared memory is kept for batches: unable" in caplog.text
