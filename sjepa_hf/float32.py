"""Float32 whatever the model's dtype and autocast: norms, and tables and mixtures in buffers."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which products on `device` are formed in the dtype of their factors, within autocast too."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # the meta device, for one, knows no autocast


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or in float64 if it is that: half precision is raised, double precision is left alone."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def zero_tiny_(probabilities: torch.Tensor) -> torch.Tensor:
    """
    Set what is at most 1e-30 to zero, in place: products with subnormal numbers, which sharp posteriors are full of,
    are forty times slower on a CPU.
    """
    return nn.functional.threshold_(probabilities, 1e-30, 0.0)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or fp32 where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Float32Buffers(nn.Module):
    """
    Module whose own buffers, floating point all, move between devices but stay in fp32 under `model.half()` or
    `model.bfloat16()`; `model.double()` makes them float64.
    """

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            dtype = torch.promote_types(new.dtype, torch.float32)
            if new.dtype != dtype:
                self._buffers[name] = new.to(dtype) if old.is_meta else old.to(new.device, dtype)
        return self


class SJepaLayerNorm(nn.LayerNorm):
    """Layer norm with fp32 weights, computed in fp32 (float64 for such input), returned in its input's dtype."""

    def __init__(self, size: int, eps: float = 1e-5):
        super().__init__(size, eps=eps, dtype=torch.float32)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        values = at_least_float32(hidden_states)
        weight, bias = self.weight.to(values.dtype), self.bias.to(values.dtype)
        normed = nn.functional.layer_norm(values, self.normalized_shape, weight, bias, self.eps)
        return normed.to(hidden_states.dtype)


class SJepaGroupNorm(nn.GroupNorm):
    """
    Group norm with a single group (all channels and frames of an utterance together) with fp32 weights, computed
    in fp32, whose statistics read some frames only.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__(num_groups=1, num_channels=num_channels, eps=eps, dtype=torch.float32)

    def forward(self, hidden_states: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, num_channels)`): frames.
            counted (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*): True for frames that
                count in mean and variance; without it, all do.
        """
        if counted is None:
            counted = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        # [B, T]; with all channels it sums to one
        share = counted.to(dtype) / (counted.sum(1, keepdim=True).clamp(min=1) * hidden_states.shape[2])
        values, share = at_least_float32(hidden_states), share[:, :, None]  # [B, T, C], [B, T, 1]
        centred = values - (values * share).sum(1, keepdim=True).sum(2, keepdim=True)
        variance = (centred.square() * share).sum(1, keepdim=True).sum(2, keepdim=True)
        scale = torch.rsqrt(variance + self.eps) * self.weight.to(dtype)
        return torch.addcmul(self.bias.to(dtype), centred, scale).to(hidden_states.dtype)
