"""Processes sum what they hold, and those that have drifted apart are found before anything is saved."""

import errno
import platform
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sjepa_hf.command import UserError
from training.common import processes
from training.common.processes import (
    Coordinator,
    ProcessesDisagree,
    ProcessMissing,
    all_or_none,
    bits,
    check_processes_agree,
    end_group,
    is_lost_connection,
    local_processes,
    of_first,
    summed,
    summed_numbers,
)
from training.common.signals import Interrupted, Stop


class TwoProcesses:
    num_processes, device = 2, torch.device("cpu")


class Exchange(TwoProcesses):
    """The other process holds the same, and all travels at once."""

    def __init__(self):
        self.times = 0

    def reduce(self, values, reduction):
        assert reduction == "sum"
        self.times += 1
        return 2 * values


def test_tensors_of_any_shape_are_summed_at_once():
    parts, exchange = [torch.randn(3), torch.randn(2, 4), torch.randn(())], Exchange()
    for part, total in zip(parts, summed(iter(parts), exchange), strict=True):
        assert total.equal(2 * part)
    assert exchange.times == 1


def test_numbers_are_summed_at_once_and_whole_ones_exactly():
    exchange = Exchange()
    assert summed_numbers([2**40 + 1, 0.25], exchange) == [2**41 + 2, 0.5] and exchange.times == 1


def test_processes_of_one_machine_are_counted_by_its_name(monkeypatch):
    assert local_processes(Accelerator(cpu=True)) == 1
    for other, here in (("there", 1), (platform.node(), 2)):
        monkeypatch.setattr(processes, "gather_object", lambda own, other=other: [*own, other])
        assert local_processes(TwoProcesses()) == here


def test_a_tracker_that_cannot_end_leaves_the_group_ended(monkeypatch, caplog):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    accelerator, ended = Accelerator(cpu=True), []
    accelerator.trackers = [SimpleNamespace(finish=full)]
    monkeypatch.setattr(accelerator.state, "destroy_process_group", lambda: ended.append(1))
    end_group(accelerator)
    assert ended == [1] and "`report_to` lacks its last values: [Errno 28] No space left" in caplog.text


def test_a_signal_ends_the_sum_of_one_process_or_of_any():
    alone = Coordinator(Accelerator(cpu=True))
    assert alone.sum(1.0, 2.0) == [1.0, 2.0]
    alone.interruption.ask(143, "SIGTERM came")
    with pytest.raises(Interrupted):
        alone.sum(1.0)
    one_of_two = Coordinator(TwoProcesses())
    for stops in (0.0, 1.0):
        one_of_two._exchange = lambda numbers, stops=stops: [6.0, 8.0, 0.0, stops]
        if not stops:
            assert one_of_two.sum(3.0, 4.0) == [6.0, 8.0]
            continue
        with pytest.raises(Interrupted):
            one_of_two.sum(3.0, 4.0)


def test_why_a_run_ends_is_known_to_the_processes_that_were_not_asked(monkeypatch):
    theirs, coordinator = Stop(143, "SIGTERM came"), Coordinator(TwoProcesses())
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, theirs])
    assert coordinator.reason() == theirs
    coordinator.interruption.ask(1, "the disk is full", OSError())
    assert coordinator.reason() is coordinator.interruption.stop, "that of the first that has one"


def test_the_process_that_did_not_come_is_named(monkeypatch):
    store = SimpleNamespace(check=lambda keys: keys == ["sjepa/5/0"])
    monkeypatch.setattr(processes, "_get_default_store", lambda: store)
    coordinator = Coordinator(TwoProcesses())
    coordinator.count = 5
    assert coordinator._missing() == "Process 1"


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_what_the_first_process_does_not_find_all_are_told(kind):
    def fail():
        raise kind("it is not there")

    assert of_first(lambda: "here", Accelerator(cpu=True)) == "here"
    with pytest.raises(ValueError, match="it is not there"):
        of_first(fail, Accelerator(cpu=True))


def test_what_one_process_refuses_the_others_refuse_with_its_words(monkeypatch):
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, ("node7", "no such file")])
    with pytest.raises(UserError, match=r"^process 1 \(on node7\) cannot start: no such file$"):
        with all_or_none(TwoProcesses()):
            pass
    with pytest.raises(ValueError, match="^my own reason$"):
        with all_or_none(TwoProcesses()):
            raise ValueError("my own reason")


def test_a_lost_connection_is_told_from_a_fault_of_this_process():
    assert is_lost_connection(RuntimeError("[Gloo] Connection closed by peer"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_connection(ProcessMissing("Process 1 did not come: look for Gloo's log"))


def checked(monkeypatch, other: nn.Module, other_layer: int = 1) -> None:
    """Compare a layer with what the other process holds in its place."""
    torch.manual_seed(0)
    own = nn.Linear(4, 3)
    theirs = {"model": sum(int(bits(p)) for p in other.parameters()), "active layer": other_layer}
    monkeypatch.setattr(processes, "gather_object", lambda objects: [*objects, theirs])
    check_processes_agree(TwoProcesses(), {"model": own.parameters()}, 1)


def test_the_last_bit_of_one_number_is_enough(monkeypatch):
    torch.manual_seed(0)
    other = nn.Linear(4, 3)
    checked(monkeypatch, other)
    with torch.no_grad():
        other.weight[1, 2] = torch.nextafter(other.weight[1, 2], torch.tensor(9.0))
    with pytest.raises(ProcessesDisagree, match="Process 1 holds another model than process 0"):
        checked(monkeypatch, other)


def test_so_is_another_layer(monkeypatch):
    torch.manual_seed(0)
    with pytest.raises(ProcessesDisagree, match="Process 1 holds another active layer"):
        checked(monkeypatch, nn.Linear(4, 3), other_layer=2)
