"""Layer features, what a mixture of phase 2 is over: one layer of the encoder or the mean of several, each clip
normalised or not, all dimensions or their whitened principal components.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .float32 import Float32Buffers, at_least_float32, without_autocast
from .frames import clip_mean


def read_layers(
    encoder: nn.Module,
    input_values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layers: Sequence[int],
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Mean of layers of an [`SJepaModel`], `(batch_size, sequence_length, hidden_size)`, fp32; later layers do not run.

    Args:
        encoder (`SJepaModel`): the encoder.
        input_values, attention_mask: of the batch, as the encoder takes them.
        layers (`Sequence[int]`): numbered as in `hidden_states`.
        real (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Real frames; given, each layer of each clip is normalised over them ([`instance_normalize`]).
    """
    states = [at_least_float32(state) for state in layer_states(encoder, input_values, attention_mask, layers)]
    if real is not None:
        states = [instance_normalize(state, real) for state in states]
    return torch.stack(states).mean(0) if len(states) > 1 else states[0]


def layer_states(
    encoder: nn.Module, input_values: torch.Tensor, attention_mask: torch.Tensor | None, layers: Sequence[int]
) -> list[torch.Tensor]:
    """
    Layers of an [`SJepaModel`], each `(batch_size, sequence_length, hidden_size)`, in the order of `layers`, which are
    numbered as in `hidden_states`. Later ones do not run, and no others are kept where one alone is read.
    """
    several = len(layers) > 1
    outputs = encoder(
        input_values, attention_mask, num_layers=max(layers), output_hidden_states=several, return_dict=True
    )
    return [outputs.hidden_states[layer] for layer in layers] if several else [outputs.last_hidden_state]


def instance_normalize(features: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """
    Each clip's features `(batch_size, sequence_length, H)` with mean 0 and variance 1 over its real frames
    `(batch_size, sequence_length)`, per dimension; zero at the others.
    """
    centred = (features - clip_mean(features, real)).masked_fill(~real[:, :, None], 0.0)
    return centred * (clip_mean(centred.square(), real) + 1e-5).rsqrt()


class SJepaWhitening(Float32Buffers):
    """
    Whitened principal components, `(..., hidden_size) -> (..., num_components)`, that a mixture is over.

    Buffers (persistent, fp32):
        mean `(hidden_size,)`, directions `(hidden_size, num_components)`.
    """

    mean: torch.Tensor
    directions: torch.Tensor

    def __init__(self, hidden_size: int, num_components: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size, dtype=torch.float32))
        self.register_buffer("directions", torch.zeros(hidden_size, num_components, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with without_autocast(features.device):
            return (features - self.mean) @ self.directions
