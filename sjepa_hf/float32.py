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
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, num_channels)`): frames.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real frames; without it, all are real.
        """
        batch_size, num_frames, num_channels = hidden_states.shape
        if lengths is None:
            share = hidden_states.new_full((batch_size, num_frames), 1 / (num_frames * num_channels)).float()
        else:
            real = torch.arange(num_frames, device=hidden_states.device) < lengths[:, None]
            share = real / (lengths.clamp(min=1)[:, None] * num_channels)  # [B, T]; with all channels it sums to one
        return _MaskedGroupNorm.apply(hidden_states, share, self.weight.float(), self.bias.float(), self.eps)


class _MaskedGroupNorm(torch.autograd.Function):
    """
    `(x - mean) / sqrt(variance + eps) * weight + bias` with statistics weighted by `share` `(batch_size, frames)`.

    Written out because the first convolution's output is the largest tensor of the model: autograd would keep four
    copies of it and pass over it twice as often.
    """

    @staticmethod
    def forward(ctx, hidden_states, share, weight, bias, eps):
        values = hidden_states.float()  # [B, T, C]
        mean = torch.bmm(share[:, None], values).sum(2, keepdim=True)  # [B, 1, 1]
        centred = values - mean
        variance = torch.bmm(share[:, None], centred.square()).sum(2, keepdim=True)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(hidden_states, share, weight, mean, scale)
        return torch.addcmul(bias, centred, scale * weight).to(hidden_states.dtype)

    @staticmethod
    def backward(ctx, gradient):
        hidden_states, share, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.float()
        normed = (hidden_states.float() - mean).mul_(scale)  # [B, T, C]
        by_channel = (gradient * normed).sum(1)  # [B, C]
        bias_by_channel = gradient.sum(1)
        # How the loss moves with the utterance's mean and variance, spread over the frames that made them.
        through_mean = (bias_by_channel @ weight)[:, None, None]
        through_variance = (by_channel @ weight)[:, None, None]
        spread = normed.mul_(through_variance).add_(through_mean).mul_(share[:, :, None])
        grad_input = spread.neg_().addcmul_(gradient, weight).mul_(scale)
        return grad_input.to(hidden_states.dtype), None, by_channel.sum(0), bias_by_channel.sum(0), None
