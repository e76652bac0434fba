"""Operations of a step as they are dispatched: how many, their bytes and FLOP, and the part of the model they are of.

Bytes are those that an operation has to move when nothing stays in a cache: each tensor it reads, once, and each that
it writes; what is changed in place is read and written. A tensor that is broadcast or a window over another counts
with the memory it lies in. Views, and memory that is taken without being filled, move nothing. Look-ups read what
they return, not their table. FLOP are those of convolutions, matrix products and attention.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry


aten = torch.ops.aten
# What an H100 reaches: bytes a second of a long copy, FLOP a second of large products in half precision and in fp32.
BANDWIDTH, HALF_PRECISION, FULL_PRECISION = 2.7e12, 550e12, 50e12

FREE = {  # neither views nor kernels
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.lift_fresh,
    aten.scalar_tensor,
    aten.is_same_size,
    torch.ops.prim.device,
}
FILLS = {  # write their first tensor without reading it, or what they return in its likeness
    *(aten.fill_, aten.zero_, aten.copy_, aten.index_copy_),
    *(aten.uniform_, aten.normal_, aten.bernoulli_, aten.random_),
    *(aten.new_zeros, aten.new_ones, aten.new_full),
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
}
LOOKUPS = {aten.index_select, aten.embedding, aten.gather, aten.index, aten.take}  # of their first tensor
SCATTERS = {aten.index_copy_, aten.index_add_, aten.scatter_, aten.scatter_add_}  # into their first tensor
IN_PLACE = {aten.addmm_: aten.addmm, aten.baddbmm_: aten.baddbmm}  # products that torch has no formula for


@dataclass
class Count:
    """
    What some operations need.

    Attributes:
        flops: floating-point operations of convolutions, matrix products and attention.
        bytes: bytes read and written.
        operations: how many there are; on a GPU, about as many kernels.
        roof: seconds on an H100 if each takes the longer of its bytes and its FLOP.
    """

    flops: int = 0
    bytes: int = 0
    operations: int = 0
    roof: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.operations + other.operations,
            self.roof + other.roof,
        )


class OperationCounter(TorchDispatchMode):
    """
    Context that counts every operation in it, fake or real.

    An operation is of the innermost watched module whose forward pass it runs in (`watch`); in a backward pass, of
    the module whose forward pass made the node of the graph.

    Attributes:
        counts (`dict`): a `Count` for each (phase, part, operation's name).
    """

    def __init__(self):
        super().__init__()
        self.counts: dict[tuple[str, str, str], Count] = defaultdict(Count)
        self._phase, self._parts = "", [""]
        self._part_of_node: dict[int, str] = {}  # by the node's sequence number
        self._next_node = torch.autograd._get_sequence_nr()
        self._latest = ""

    @contextmanager
    def phase(self, name: str, part: str = "") -> Iterator[None]:
        """Operations within are of this phase, and of `part` where no watched module runs."""
        before = self._phase, self._parts
        self._note_nodes()
        self._phase, self._parts = name, [part]
        yield
        self._note_nodes()
        self._phase, self._parts = before

    def watch(self, module: nn.Module, part: str) -> None:
        """From now on what runs in a module's forward pass is of `part`."""

        def begin(module, inputs):
            self._note_nodes()
            self._parts.append(part)

        def end(module, inputs, output):
            self._note_nodes()
            self._parts.pop()

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end, always_call=True)  # a checkpoint leaves the forward pass it runs anew early

    def _note_nodes(self) -> None:
        """The graph's nodes that were made since the last call are of the present part."""
        following = torch.autograd._get_sequence_nr()
        for node in range(self._next_node, following):
            self._part_of_node[node] = self._parts[-1]
        self._next_node = following

    def _part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None and len(self._parts) == 1:  # else a checkpointed forward pass runs anew
            # Where gradients are accumulated there is no number: they are of the node before.
            self._latest = self._part_of_node.get(node._sequence_nr(), self._latest)
            return self._latest
        self._note_nodes()
        return self._parts[-1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet in FREE or func.namespace == "profiler":
            return func(*args, **kwargs)
        with self:
            if packet in (aten.slice_backward, aten.select_backward):
                return zeros_around(packet, *args)
            if packet not in flop_registry:
                made_of = func.decompose(*args, **kwargs)
                if made_of is not NotImplemented:
                    return made_of
        output = func(*args, **kwargs)
        moved = 0 if func.is_view else moved_bytes(func, args, kwargs, output)
        if moved:
            flops = counted_flops(packet, args, kwargs, output)
            peak = HALF_PRECISION if tensors_in((args, kwargs, output))[0].itemsize == 2 else FULL_PRECISION
            count = Count(flops, moved, 1, max(moved / BANDWIDTH, flops / peak))
            self.counts[self._phase, self._part(), packet.__name__] += count
        return output


def zeros_around(packet, gradient: Tensor, sizes: list[int], *place: int) -> Tensor:
    """Backward pass of a slice or of a selection: zeros, and the gradient copied into its place."""
    whole = gradient.new_zeros(sizes)
    (aten.slice if packet is aten.slice_backward else aten.select)(whole, *place).copy_(gradient)
    return whole


def tensors_in(tree) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def footprint(tensor: Tensor) -> int:
    """Bytes of memory that a tensor's elements lie in."""
    kept = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride()) if stride != 0]
    if 0 in tensor.shape:
        return 0
    span = 1 + sum((size - 1) * stride for size, stride in kept)
    return min(math.prod(size for size, _ in kept), span) * tensor.itemsize


def moved_bytes(func, args: tuple, kwargs: dict, output) -> int:
    """Bytes that an operation reads and writes."""
    packet, reads, writes = func._overloadpacket, {}, {}  # bytes by the tensor's id
    results, given = tensors_in(output), {id(tensor) for tensor in tensors_in((args, kwargs))}
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        if packet is aten._fused_adamw_ and argument.name == "grads":
            written = False  # only where it scales them
        for tensor in tensors_in(value):
            size = footprint(tensor)
            if position == 0 and packet in LOOKUPS:
                size = min(size, footprint(results[0]))
            if position == 0 and packet in SCATTERS:
                size = min(size, footprint(tensors_in(args)[-1]))
            if written:
                writes[id(tensor)] = size
            if not (argument.is_out or position == 0 and packet in FILLS):
                reads[id(tensor)] = size
    made = sum(footprint(tensor) for tensor in results if id(tensor) not in given)
    return sum(reads.values()) + sum(writes.values()) + made


def counted_flops(packet, args: tuple, kwargs: dict, output) -> int:
    """FLOP of an operation, a multiplication with its addition as two; 0 for what is no product."""
    if packet is aten.convolution_backward:
        # Torch's formula takes a grouped convolution for a dense one. Each gradient costs a forward pass.
        gradient, inputs, weight, transposed, wanted = (*args[:3], args[7], args[10])
        return sum(wanted[:2]) * conv_flop_count(inputs.shape, weight.shape, gradient.shape, transposed)
    formula = flop_registry.get(IN_PLACE.get(packet, packet))
    return formula(*args, **kwargs, out_val=output) if formula else 0
