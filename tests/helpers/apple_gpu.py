"""An Apple GPU, as far as a CPU can play it: tensors that say `mps`, have no float64 and lack the kernels it lacks."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


LACKING = ("aten::_linalg_svd", "aten::_ctc_loss")  # kernels, as of torch 2.13


class AppleTensor(torch.Tensor):
    """Says that it lies on `mps`, to torch itself on `meta`; its values, `.there`, lie on the CPU."""

    device = property(lambda self: torch.device("mps:0"))

    @staticmethod
    def __new__(cls, there: torch.Tensor):
        like = {"dtype": there.dtype, "device": "meta", "requires_grad": there.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, there.shape, there.stride(), there.storage_offset(), **like)

    def __init__(self, there: torch.Tensor):
        self.there = there

    def new_tensor(self, data, **options) -> torch.Tensor:  # torch asks no mode for it
        return AppleTensor(self.there.new_tensor(data, **options))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class AppleGpu(TorchDispatchMode):
    """Context in which `mps` is a device. It raises what torch raises there: TypeError, RuntimeError."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args: tuple, kwargs: dict):
    """Do on the CPU what is asked of `mps`, where it could be done there."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    apple = [each for each in tensors if isinstance(each, AppleTensor)]
    asked = kwargs.get("device")
    on_apple = bool(apple) if asked is None else torch.device(asked).type in ("mps", "meta")
    moves = func._schema.name in ("aten::_to_copy", "aten::copy_")
    if apple and not moves:
        if func._schema.name in LACKING:
            raise NotImplementedError(f"The operator '{func._schema.name}' is not currently implemented for mps.")
        if any(each.ndim and not isinstance(each, AppleTensor) for each in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got mps and cpu.")
    on_cpu = tree_map(lambda each: torch.device("cpu") if isinstance(each, torch.device) else each, kwargs)
    args_there, kwargs_there = tree_map(lambda each: getattr(each, "there", each), (args, on_cpu))
    found = func(*args_there, **kwargs_there)
    own = {id(getattr(each, "there", each)): each for each in tensors}  # what is written into and handed back

    def wrapped(each):
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in own:
            return own[id(each)]
        if not on_apple:
            return each
        if each.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a MPS Tensor to {each.dtype}: the MPS framework does not support it.")
        return AppleTensor(each)

    return tree_map(wrapped, found)
