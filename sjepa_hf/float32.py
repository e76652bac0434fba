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
        weight, bias = self.weight.float(), self.bias.float()
        if lengths is None:
            normed = nn.functional.group_norm(hidden_states.float(), 1, weight, bias, self.eps)
            return normed.to(hidden_states.dtype)
        real = torch.arange(hidden_states.shape[-1], device=hidden_states.device) < lengths[:, None]  # [B, T]
        # Sums to one over the real frames and all channels of an utterance.
        share = real / (lengths.clamp(min=1)[:, None] * hidden_states.shape[1])
        return _MaskedGroupNorm.apply(hidden_states, share, weight, bias, self.eps)


class _MaskedGroupNorm(torch.autograd.Function):
    """
    `(x - mean) / sqrt(variance + eps) * weight + bias` with statistics weighted by `share` `(batch_size, frames)`.

    Written out because the first convolution's output is the largest tensor of the model: autograd would keep four
    copies of it and pass over it twice as often.
    """

    @staticmethod
    def forward(ctx, hidden_states, share, weight, bias, eps):
        values = hidden_states.float()  # [B, C, T]
        mean = torch.bmm(values, share[:, :, None]).sum(1, keepdim=True)  # [B, 1, 1]
        centred = values - mean
        variance = torch.bmm(centred.square(), share[:, :, None]).sum(1, keepdim=True)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(hidden_states, share, weight, mean, scale)
        return torch.addcmul(bias[:, None], centred, scale * weight[:, None]).to(hidden_states.dtype)

    @staticmethod
    def backward(ctx, gradient):
        hidden_states, share, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.float()
        normed = (hidden_states.float() - mean).mul_(scale)  # [B, C, T]
        by_channel = (gradient * normed).sum(2)  # [B, C]
        bias_by_channel = gradient.sum(2)
        # How the loss moves with the utterance's mean and variance, spread over the frames that made them.
        through_mean = (bias_by_channel @ weight)[:, None, None]
        through_variance = (by_channel @ weight)[:, None, None]
        spread = normed.mul_(through_variance).add_(through_mean).mul_(share[:, None])
        grad_input = spread.neg_().addcmul_(gradient, weight[:, None]).mul_(scale)
        return grad_input.to(hidden_states.dtype), None, by_channel.sum(0), bias_by_channel.sum(0), None
