"""Processes that have drifted apart are found before anything is saved."""

import pytest
import torch
from torch import nn

from training.common import processes
from training.common.processes import ProcessesDisagree, bits, check_processes_agree


class TwoProcesses:
    num_processes = 2


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
