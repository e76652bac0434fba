"""Processes sum what they hold, and those that have drifted apart are found before anything is saved."""

import errno
import platform
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.common import processes
from training.common.processes import (
    ProcessesDisagree,
    bits,
    check_processes_agree,
    end_group,
    local_processes,
    summed,
    summed_numbers,
)


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
