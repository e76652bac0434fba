"""What stays in fp32 whatever the model's dtype: norms, and the tables and mixtures held in buffers."""

import torch
from torch import nn


class Float32Buffers(nn.Module):
    """
    Module whose own buffers move between devices but keep their dtype under `model.half()` or `model.bfloat16()`.
    """

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new.dtype != old.dtype:
                self._buffers[name] = new.to(old.dtype) if old.is_meta else old.to(new.device)
        return self


class SJepaLayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 and returned in the dtype of its input."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = nn.functional.layer_norm(
            hidden_states.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.to(hidden_states.dtype)


class SJepaGroupNorm(nn.GroupNorm):
    """
    Group norm with a single group (all channels and frames of an utterance together), computed in fp32, whose
    statistics read real frames only.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__(num_groups=1, num_channels=num_channels, eps=eps)

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_channels, sequence_length)`): frames.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real frames; without it, all are real.
        """
        values = hidden_states.float()
        weight, bias = self.weight.float(), self.bias.float()
        if lengths is None:
            return nn.functional.group_norm(values, 1, weight, bias, self.eps).to(hidden_states.dtype)
        real = torch.arange(values.shape[-1], device=values.device) < lengths[:, None]  # [B, T]
        share = real / (lengths.clamp(min=1)[:, None] * values.shape[1])  # sums to one over real frames and channels
        mean = torch.bmm(values, share[:, :, None]).sum(1, keepdim=True)  # [B, 1, 1]
        centred = values - mean
        variance = torch.bmm(centred.square(), share[:, :, None]).sum(1, keepdim=True)
        scale = torch.rsqrt(variance + self.eps) * weight[:, None]  # [B, C, 1]
        return torch.addcmul(bias[:, None], centred, scale).to(hidden_states.dtype)
