"""Waiting for batches: workers that die, stop or hang, signals that come meanwhile, too little shared memory."""

import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.common.signals import Interrupted, Interruption
from training.data import workers
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioError
from training.data.loader import _as_is, _start_worker, open_sources
from training.data.order import DataPosition, Position
from training.pretraining import training_data
from training.pretraining.training_data import RestartingLoader


class Numbers(IterableDataset):
    """Batches 0, 1, 2, ... up to `last`, of one reader; `trouble` is called with each number before it is given."""

    def __init__(self, position: DataPosition, last: int, trouble):
        self.position, self.last, self.trouble = position, last, trouble

    def __iter__(self):
        assert get_worker_info().num_workers == 1
        start = self.position.positions[0].batch if self.position.positions else 0
        for number in range(start, self.last + 1):
            yield {"reader": 0, "number": torch.tensor(number), "position": Position(batch=number + 1)} | (
                self.trouble(number) or {}
            )


@pytest.fixture
def read():
    """The batches of one worker, which is ended behind the test."""
    opened = []

    def read_(trouble, last: int = 5) -> RestartingLoader:
        def open_loader(position=None):
            dataset = Numbers(position or DataPosition(1), last, trouble)
            options = {"collate_fn": _as_is, "num_workers": 1, "worker_init_fn": _start_worker, "prefetch_factor": 1}
            return DataLoader(dataset, batch_size=None, multiprocessing_context=workers.start_method(), **options)

        opened.append(RestartingLoader(open_loader, processes=1))
        return opened[-1]

    yield read_
    for batches in opened:
        batches.close()


def numbers(batches: RestartingLoader) -> list[int]:
    found = []
    while (batch := batches.next()) is not None:
        found.append(int(batch["number"]))
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(training_data, "POLL", 0.1)


def test_closing_ends_the_workers(read):
    batches = read(lambda _: None, last=100)
    batches.next()
    (worker,) = batches._batches._workers
    batches.close()
    assert not worker.is_alive()


def test_a_worker_that_cannot_hand_its_batch_over_is_not_waited_for(read, caplog):
    def unsendable(number: int) -> dict | None:
        return {"lock": threading.Lock()} if number == 2 else None

    batches = read(unsendable)
    with pytest.raises(BadAudioError, match=r"died 4 times in a row: shared memory .* --shm-size"):
        numbers(batches)
    assert batches.position.positions[0].batch == 2, "what was given before is kept"


def test_no_batch_for_long_is_told_and_ends_the_wait(read, monkeypatch, caplog):
    monkeypatch.setattr(workers, "TELL_EVERY", 0.2)
    monkeypatch.setattr(workers, "IDLE_LIMIT", 0.5)
    with pytest.raises(BadAudioError, match=r"No batch came for .*1 sleeping\): does a disk or a source hang"):
        read(lambda number: time.sleep(600)).next()
    assert "Waiting for a batch for" in caplog.text


def test_a_stopped_worker_is_named_and_ended(read, monkeypatch):
    """With SIGSTOP; what was given before is kept."""
    monkeypatch.setattr(workers, "IDLE_LIMIT", 0.5)
    batches = read(lambda number: os.kill(os.getpid(), signal.SIGSTOP) if number == 3 else None)
    found = [int(batches.next()["number"]) for _ in range(3)]
    (worker,) = batches._batches._workers
    with pytest.raises(BadAudioError, match=r"No batch came for .*1 stopped\): .* Go on from the last checkpoint"):
        batches.next()
    assert found == [0, 1, 2] and batches.position.positions[0].batch == 3 and not worker.is_alive()


def test_workers_at_work_are_waited_for_longer(read, monkeypatch):
    monkeypatch.setattr(workers, "IDLE_LIMIT", 0.5)
    monkeypatch.setattr(workers, "BUSY", 0.01)

    def work(number: int) -> None:
        end = time.process_time() + 1.5
        while number == 0 and time.process_time() < end:
            pass

    assert numbers(read(work, last=1)) == [0, 1]


def test_a_worker_that_replaces_another_is_the_one_that_is_watched(read, tmp_path, monkeypatch):
    """It is at work and so is waited for, as long as the dead one was idle."""
    monkeypatch.setattr(workers, "IDLE_LIMIT", 0.6)
    monkeypatch.setattr(workers, "BUSY", 0.01)

    def die_once_then_work(number: int) -> None:
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            time.sleep(0.3)  # for a first look at it
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass

    assert numbers(read(die_once_then_work, last=0)) == [0]


def test_an_error_of_a_source_is_told_in_its_own_words(read):
    def gone(number: int) -> None:
        raise ValueError("list.jsonl has changed since it was opened")

    with pytest.raises(ValueError, match="^list.jsonl has changed since it was opened$"):
        read(gone).next()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once(read, number):
    batches = read(lambda _: time.sleep(600))
    with Interruption() as interruption:
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        with pytest.raises(Interrupted), interruption.waiting():
            batches.next()
        assert interruption.stop.status == 128 + number
        with pytest.raises(Interrupted), interruption.waiting():
            pytest.fail("what is to stop does not begin to wait")


def test_what_is_wrong_with_the_data_ends_a_wait_with_its_sentence():
    interruption = Interruption()
    for error, said in ((ValueError("no clip."), "no clip"), (FileNotFoundError(2, "Gone", "a.tar"), "a.tar: Gone")):
        interruption.stop = None
        with pytest.raises(Interrupted), interruption.waiting():
            raise error
        assert interruption.stop.status == 1 and interruption.stop.reason.startswith(said)
    interruption.stop = None
    with pytest.raises(KeyError), interruption.waiting():
        raise KeyError("ours")


def test_folders_may_lie_elsewhere_in_other_processes(noise, tmp_path, monkeypatch):
    def seen(folder) -> list:
        return open_sources(DataArguments(train_data=[str(folder)]))

    copy = shutil.copytree(noise, tmp_path / "copy")
    (other := shutil.copytree(noise, tmp_path / "other")).joinpath("7.wav").rename(tmp_path / "other" / "x.wav")
    for theirs, refused in ((copy, False), (other, True)):
        found = []
        monkeypatch.setattr(training_data, "gather_object", lambda here, found=found: found.append(here[0]) or here)
        two = SimpleNamespace(num_processes=2)
        for folder in (noise, theirs):
            training_data.check_same_data(seen(folder), two)
        monkeypatch.setattr(training_data, "gather_object", lambda _, found=found: found)
        with pytest.raises(ValueError, match="other clips in process 1") if refused else nullcontext():
            training_data.check_same_data(seen(noise), two)
