"""`torch.cuda` without CUDA: what it is told, so that torch, Accelerate and Transformers take the device."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch


NAME = "simulated GPU"
MEMORY = 16 * 2**30  # bytes; nothing counts them


class Stream:
    """The one stream, on which everything is always done."""

    device = torch.device("cuda", 0)

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, other) -> None: ...

    def wait_event(self, event) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event=None) -> "Event":
        return Event()

    def query(self) -> bool:
        return True


class Event:
    """A moment that has passed."""

    def __init__(self, *args, **kwargs):
        pass

    def record(self, stream=None) -> None: ...

    def wait(self, stream=None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other) -> float:
        return 0.0


def announce() -> None:
    """Have `torch.cuda` know the device, for as long as the process lives."""
    properties = SimpleNamespace(name=NAME, major=9, minor=0, total_memory=MEMORY, multi_processor_count=1)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "_lazy_init": None,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "memory_stats": {},
        "reset_peak_memory_stats": None,
        "current_stream": Stream(),
        "default_stream": Stream(),
        "stream": nullcontext(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch._C._cuda_getDevice = lambda: 0
    torch.cuda.default_generators = (torch.Generator(device="cuda"),)  # the first one is the default one
    torch.Tensor.pin_memory = lambda tensor, device=None: tensor
    torch.Tensor.record_stream = lambda tensor, stream: None
    go_by_the_dispatcher()


def go_by_the_dispatcher() -> None:
    """Have what asks for CUDA's kernels by itself, attention, recurrent networks, storages, use the device's."""
    fused, plain = torch.nn.functional.scaled_dot_product_attention, torch._scaled_dot_product_attention_math

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        more = {"scale": scale, "enable_gqa": enable_gqa}
        if query.device.type != "cuda":
            return fused(query, key, value, attn_mask, dropout_p, is_causal, **more)
        return plain(query, key, value, attn_mask, dropout_p, is_causal, **more)[0]

    torch.nn.functional.scaled_dot_product_attention = attention
    for name in ("lstm", "gru"):
        setattr(torch._VF, name, through_the_cpu(getattr(torch._VF, name)))

    storage = torch.storage.UntypedStorage
    cpu, clone, to = storage.cpu, storage.clone, storage.to
    storage.cpu = lambda self: moved(self, "cpu") if self.device.type == "cuda" else cpu(self)
    storage.clone = lambda self: moved(self, "cuda") if self.device.type == "cuda" else clone(self)
    storage.to = lambda self, *, device, **more: (
        moved(self, device) if "cuda" in (self.device.type, torch.device(device).type) else to(self, device=device)
    )


def through_the_cpu(function):
    """`function` of tensors in any nesting, computed on the CPU where they are on the GPU."""

    def move(value, device: str):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return type(value)(move(each, device) for each in value) if isinstance(value, tuple | list) else value

    def run(*args):
        if args[0].device.type != "cuda":
            return function(*args)
        others = [each for arg in args if isinstance(arg, tuple | list) for each in arg]
        if any(isinstance(each, torch.Tensor) and each.device.type != "cuda" for each in others):
            raise RuntimeError("Input, hidden and parameter tensors are not at the same device.")
        return move(function(*move(args, "cpu")), "cuda")

    return run


def moved(storage: torch.UntypedStorage, device) -> torch.UntypedStorage:
    """A copy of a storage on another device."""
    bytes_of = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return bytes_of.to(device, copy=True).untyped_storage()
