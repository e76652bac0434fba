"""What a GPU would run where fake tensors on a CPU stand in for it: CUDA's casts under autocast, dropout, attention.

A build of torch without CUDA cannot run a backward pass over fake CUDA tensors, so the tensors are fake CPU ones, and
what differs by device is put in its place here:

- autocast on CUDA computes norms, sums, powers, logarithms, softmax and losses in fp32; on a CPU it leaves them alone;
- dropout on CUDA is one kernel that keeps a mask of bytes; on a CPU it is four operations;
- attention on CUDA is one kernel each way: flash in half precision without a mask, else the memory-efficient one. (An
  H100 may prefer cuDNN's; it reads and writes the same.)
- clipping takes tensors on CUDA all at once, fake ones by themselves;
- on a CPU the model asks whether nothing is padded; on a GPU it does not, and takes some to be: every question of the
  host has the answer no.

One difference stays: groups whose channels are no multiple of 16 (`small` has 24, `base` 48) take the positional
convolution of a CPU, in fp32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


# CUDA's fp32 list (docs of torch.amp), as far as models for speech use it.
FP32 = set(
    "layer_norm group_norm softmax log_softmax logsumexp exp expm1 log log10 log1p log2 pow __pow__ square reciprocal"
    " rsqrt softplus sum cumsum cumprod prod norm dist cosine_similarity cross_entropy nll_loss kl_div mse_loss"
    " l1_loss smooth_l1_loss".split()
)
MASK_ALIGNMENT = 8  # columns; the memory-efficient kernel reads a mask whose rows begin at such multiples


@contextmanager
def cuda_rules() -> Iterator[None]:
    """Context in which functions on fake CPU tensors are made of the operations, and in the dtypes, that CUDA has."""
    with CudaFunctions(), patch("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: True):
        yield


class CudaFunctions(TorchFunctionMode):
    """The part of it that lies in single functions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.__bool__:
            return False
        if func is nn.functional.dropout:
            return dropout(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func.__name__ in FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, raised, (args, kwargs))
        return func(*args, **kwargs)


def raised(tensor: Tensor) -> Tensor:
    """The tensor in fp32 if it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `nn.functional.dropout`."""
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `nn.functional.scaled_dot_product_attention`."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    if attn_mask is None and query.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
    if attn_mask is not None:
        attn_mask = bias_of(attn_mask, query, key.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def bias_of(mask: Tensor, query: Tensor, num_keys: int) -> Tensor:
    """What the kernel adds to its scores: 0 or minus infinity, in rows that are padded to the alignment."""
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -torch.inf).to(query.dtype)
    if num_keys % MASK_ALIGNMENT:
        mask = nn.functional.pad(mask, (0, -num_keys % MASK_ALIGNMENT))[..., :num_keys]
    return mask.expand(*query.shape[:-1], num_keys)
