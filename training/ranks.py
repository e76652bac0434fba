"""What the ranks of a run have to agree on: totals of a step, and that all still hold the same."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sjepa_hf.command import UserError


class StepTotals:
    """
    Sums a few numbers over all ranks at the start of a step, without making the host wait for a GPU.

    `frames` is used on the device. Whether any rank wants to stop is read by `stop_asked` at the end of the step, when
    the sum is long there.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._host = torch.zeros(2, pin_memory=accelerator.device.type == "cuda")
        self._copied = torch.cuda.Event() if accelerator.device.type == "cuda" else None

    def sum(self, frames: int, stop: bool) -> torch.Tensor:
        """`frames` over all ranks (at least 1), a tensor of shape `()` on the device."""
        here = torch.tensor([float(frames), float(stop)], pin_memory=self._copied is not None)
        total = self.accelerator.reduce(here.to(self.accelerator.device, non_blocking=True), reduction="sum")
        self._host.copy_(total, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return total[0].clamp(min=1)

    def stop_asked(self) -> bool:
        """Whether any rank wanted to stop when the step began: the same answer on every rank."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host[1] > 0)


class RanksDisagree(UserError):
    """The ranks of a run hold different models or mixtures."""


@torch.no_grad()
def check_ranks_agree(accelerator: Accelerator, parts: dict[str, Iterable[torch.Tensor]], active_layer: int) -> None:
    """
    Compare sums over the bits of everything that must be the same on every rank; a few numbers travel.

    Args:
        parts: names and tensors, e.g. `{"mixture": model.mixture.buffers()}`.
        active_layer: layer that the targets are read from.

    Raises:
        RanksDisagree: on every rank alike, naming what differs and where.
    """
    if accelerator.num_processes == 1:
        return
    sums = {name: sum(int(bits(tensor)) for tensor in tensors) for name, tensors in parts.items()}
    found = gather_object([sums | {"active layer": active_layer}])
    for name in found[0]:
        others = [rank for rank, digest in enumerate(found) if digest[name] != found[0][name]]
        if others:
            raise RanksDisagree(
                f"Rank {', '.join(map(str, others))} holds another {name} than rank 0. Nothing was saved: resume from"
                " the last checkpoint, and look for a faulty device or differing versions if it happens again."
            )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor's bit patterns as integers."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone, rather than for a fault of this one."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
