"""Where a program waits for the GPU: values that it brings to the CPU, and copies that it stands by."""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode


ROOT = Path(__file__).parents[2]
READ = {  # operators that need a value, or the size of their result, on the CPU
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
}


class Waits(TorchDispatchMode):
    """
    Context that counts waits by the lines of this project that they come from.

    Attributes:
        places (`Counter[tuple[str, ...]]`):
            How often was waited, by the lines of this project that were being run, the innermost first, as
            `path:line function`.
    """

    def __init__(self):
        super().__init__()
        self.places: Counter[tuple[str, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode, operators that are made of others come here whole
            if (result := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if waits(func._schema.name, args, result):
            self.places[lines_of_ours()] += 1
        return result

    def table(self) -> str:
        """A line for each place, the most frequent first."""
        rows = (f"{count:6d}  {' < '.join(lines[:3])}" for lines, count in self.places.most_common())
        return "\n".join(["waits for the GPU, by place:", *rows])


def waits(name: str, args: tuple, result) -> bool:
    """Whether an operator of that name, of these arguments and result, keeps the CPU waiting for the GPU."""
    first = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if first is None:
        return False
    if name in READ:
        return first.is_cuda
    if name == "aten::index":
        return first.is_cuda and any(index is not None and index.dtype == torch.bool for index in args[1])
    if name == "aten::_to_copy":
        return first.is_cuda and not result.is_cuda
    return name == "aten::copy_" and args[1].is_cuda and not first.is_cuda


def lines_of_ours() -> tuple[str, ...]:
    """The lines of this project that are being run, the innermost first, as `path:line function`."""
    own = []
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("sjepa_hf", "training"):
            own.append(f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}")
    return tuple(own)
