"""S-JEPA encoder (arXiv 2606.19398)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_sjepa import SJepaConfig, is_ours
from .float32 import SJepaLayerNorm, at_least_float32, without_autocast
from .frames import real_frames, real_samples
from .front_end import SJepaLogMelFrontEnd, SJepaStem, build_front_end
from .input_checks import check_input, check_mask, check_values, nothing_padded
from .spec_augment import spec_augment


# Parts of a pretraining checkpoint that the encoder does without.
PRETRAINING_ONLY = [r"^predictor\.", r"^cluster_head\.", r"^mixture\.", r"^mixture_whitening\.", r"^frozen_mixture\."]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # [B, heads, T, T]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def pick(hidden_states: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """
    Rows of `(batch_size, sequence_length, H)` at flat `positions`, `b * sequence_length + t`: `(len(positions), H)`;
    all of them if None. Used to skip frames nobody reads: in the predictor's last layer, and with [`VisibleFrames`] in
    the encoder.
    """
    return hidden_states if positions is None else hidden_states.flatten(0, 1).index_select(0, positions)


class SJepaAttention(nn.Module):
    """Multi-headed self-attention."""

    is_causal = False

    def __init__(self, config: SJepaConfig, num_heads: int, dropout: float):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # [B, heads, T, H / heads]
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(pick(output.reshape(hidden_states.shape), positions)), weights


class SJepaFeedForward(nn.Module):
    def __init__(self, config: SJepaConfig, intermediate_size: int, activation: str, activation_dropout: float):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, intermediate_size)
        self.intermediate_act_fn = ACT2FN[activation]
        self.intermediate_dropout = nn.Dropout(activation_dropout)
        self.output_dense = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.intermediate_act_fn(self.intermediate_dense(hidden_states))
        return self.output_dense(self.intermediate_dropout(hidden_states))


class SJepaTransformerLayer(GradientCheckpointingLayer):
    """
    Post-norm Transformer layer, of the encoder and of the predictor.

    `positions` restricts everything after the attention to these frames ([`pick`]); the output is then
    `(len(positions), hidden_size)`.
    """

    def __init__(
        self,
        config: SJepaConfig,
        num_heads: int,
        intermediate_size: int,
        activation: str,
        hidden_dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ):
        super().__init__()
        self.attention = SJepaAttention(config, num_heads, attention_dropout)
        self.dropout = nn.Dropout(hidden_dropout)
        self.layer_norm = SJepaLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = SJepaFeedForward(config, intermediate_size, activation, activation_dropout)
        self.final_layer_norm = SJepaLayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = pick(hidden_states, positions)
        attended, _ = self.attention(hidden_states, attention_mask, positions, **kwargs)
        output = self.layer_norm(residual + self.dropout(attended))
        output = self.final_layer_norm(output + self.dropout(self.feed_forward(output)))
        return output


class SJepaEncoderLayer(SJepaTransformerLayer):
    def __init__(self, config: SJepaConfig):
        super().__init__(
            config,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            activation=config.hidden_act,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
        )
        self.layerdrop = config.layerdrop

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        output = super().forward(hidden_states, attention_mask, **kwargs)
        if self.training and self.layerdrop > 0:
            # Dropped per utterance and by value, so that every parameter has a gradient on every rank.
            kept = torch.rand(len(output), 1, 1, device=output.device) >= self.layerdrop
            output = torch.where(kept, output, hidden_states)
        return output


class SJepaFeatureProjection(nn.Module):
    """Linear, then layer norm (HuBERT norms first: a different network), then dropout."""

    def __init__(self, config: SJepaConfig, input_size: int):
        super().__init__()
        self.projection = nn.Linear(input_size, config.hidden_size)
        self.layer_norm = SJepaLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer_norm(self.projection(hidden_states)))


class SJepaPositionalConv(nn.Conv1d):
    """
    Convolution that is formed in fp32 on a CPU where its groups are no multiple of 16 channels wide: oneDNN's bf16
    convolution returns noise for such groups (oneDNN 3.12, AMX).
    """

    def _conv_forward(self, channels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if channels.device.type != "cpu" or (self.in_channels // self.groups) % 16 == 0:
            return super()._conv_forward(channels, weight, bias)
        with without_autocast(channels.device):
            bias = None if bias is None else at_least_float32(bias)
            found = super()._conv_forward(at_least_float32(channels), at_least_float32(weight), bias)
            return found.to(channels.dtype)


class SJepaPositionalConvEmbedding(nn.Module):
    """Relative positions from a wide grouped convolution, weight-normed over its kernel."""

    def __init__(self, config: SJepaConfig):
        super().__init__()
        conv = SJepaPositionalConv(
            config.hidden_size,
            config.hidden_size,
            kernel_size=config.num_conv_pos_embeddings,
            padding=config.num_conv_pos_embeddings // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = self.conv(hidden_states.transpose(1, 2))
        return self.activation(positions[:, :, : hidden_states.shape[1]]).transpose(1, 2)


class VisibleFrames(NamedTuple):
    """
    Places of the visible frames of each clip, for layers that run over them alone.

    Attributes:
        positions (`torch.LongTensor` of shape `(batch_size, num_kept)`):
            Flat, as [`pick`] takes them: a clip's visible frames in order, then others that fill the row.
        real (`torch.BoolTensor` of shape `(batch_size, num_kept)`): False at what fills the row.
    """

    positions: torch.Tensor
    real: torch.Tensor

    @classmethod
    def find(cls, visible: torch.Tensor, num_kept: int) -> "VisibleFrames":
        """From `visible`, bool `(batch_size, sequence_length)`, with at most `num_kept` True in a row."""
        frames = visible.byte().argsort(dim=1, descending=True, stable=True)[:, : max(num_kept, 1)]
        first = torch.arange(len(visible), device=visible.device)[:, None] * visible.shape[1]
        return cls(first + frames, visible.gather(1, frames))

    def gather(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch_size, sequence_length, H) -> (batch_size, num_kept, H)`."""
        return pick(hidden_states, self.positions.flatten()).view(*self.positions.shape, -1)

    def scatter(self, kept: torch.Tensor, sequence_length: int) -> torch.Tensor:
        """`(batch_size, num_kept, H) -> (batch_size, sequence_length, H)`, zero where nothing was visible."""
        rows = (kept * self.real[:, :, None]).flatten(0, 1)
        whole = rows.new_zeros(len(kept) * sequence_length, rows.shape[-1])
        return whole.index_copy(0, self.positions.flatten(), rows).view(len(kept), sequence_length, -1)


class SJepaEncoder(nn.Module):
    """Positional convolution, layer norm and the Transformer layers."""

    def __init__(self, config: SJepaConfig):
        super().__init__()
        self.config = config
        self.pos_conv_embed = SJepaPositionalConvEmbedding(config)
        self.layer_norm = SJepaLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([SJepaEncoderLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        num_layers: int | None = None,
        visible_frames: VisibleFrames | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.layer_norm(hidden_states + self.pos_conv_embed(hidden_states))
        sequence_length = hidden_states.shape[1]
        if visible_frames is not None:
            hidden_states, frame_mask = visible_frames.gather(hidden_states), visible_frames.real
        attention_mask = attention_mask_4d(self.config, hidden_states, frame_mask)
        for layer in self.layers[:num_layers]:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states if visible_frames is None else visible_frames.scatter(hidden_states, sequence_length)


class SJepaPreTrainedModel(PreTrainedModel):
    config: SJepaConfig
    base_model_prefix = "sjepa"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SJepaEncoderLayer", "SJepaTransformerLayer"]
    _keep_in_fp32_modules_strict = ["layer_norm", "final_layer_norm"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # losses are means over a batch: the Trainer divides accumulated ones itself
    _can_record_outputs = {"hidden_states": SJepaEncoderLayer, "attentions": SJepaAttention}

    def __init__(self, config: SJepaConfig, *args, **kwargs):
        config.validate_architecture()  # `from_pretrained` sets what it is given after the configuration was checked
        super().__init__(config, *args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight matrices: the weights of norms stay in fp32."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point() and p.ndim > 1), super().dtype)

    def get_input_embeddings(self) -> None:
        """None: waveforms go in, no tokens. PEFT asks when it saves adapters, torchao when it quantises."""

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises NotImplementedError: there are none; says how a CTC head gets another vocabulary."""
        raise NotImplementedError(
            "This model has no embeddings of tokens. For another vocabulary open it with a new head:"
            " `AutoModelForCTC.from_pretrained(..., vocab_size=..., ignore_mismatched_sizes=True)`."
        )

    def freeze_feature_encoder(self):
        """Stop the gradient at the convolutions, or at the log-mel frames: a stem over these goes on learning."""
        self.base_model.feature_extractor.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv1d) and hasattr(module, "parametrizations"):  # the positional convolution
            direction = module.parametrizations.weight.original1
            init.normal_(direction, mean=0.0, std=math.sqrt(4 / (module.kernel_size[0] * module.in_channels)))
            init.copy_(module.parametrizations.weight.original0, direction.norm(dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SJepaLogMelFrontEnd):
            for buffer, table in zip((module.fourier, module.mel_filters), module.tables()):
                init.copy_(buffer, table)
        else:
            super()._init_weights(module)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """As in Transformers for a class of your own; the code of ours is always saved ([`SJepaConfig`])."""
        if not is_ours(f"auto_classes.{cls.__name__}"):
            super().register_for_auto_class(auto_class)

    def _get_feat_extract_output_lengths(self, input_lengths: torch.Tensor | int) -> torch.Tensor | int:
        """Frames of clips of `input_lengths` samples."""
        return self.config.num_frames(input_lengths)

    def _get_feature_vector_attention_mask(self, feature_vector_length: int, attention_mask: torch.Tensor):
        """Which of `feature_vector_length` frames are real, `(batch_size, feature_vector_length)` bool."""
        window, hop = self.config.receptive_field, self.config.inputs_to_logits_ratio
        return real_frames(real_samples(attention_mask), feature_vector_length, window, hop)


class SJepaModel(SJepaPreTrainedModel):
    """
    The S-JEPA encoder: frames of 25 ms every 20 ms from a 16 kHz waveform.

    With an `attention_mask`, every statistic and every attention reads real samples only: a padded batch gives each
    clip what it gets alone.
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_ONLY

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.feature_extractor = build_front_end(config)
        self.stem = SJepaStem(config) if config.stem_kernel_size else None
        self.feature_projection = SJepaFeatureProjection(config, self.feature_extractor.output_size)
        self.encoder = SJepaEncoder(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        mask_feature_indices: torch.Tensor | None = None,
        mask_mel_indices: torch.Tensor | None = None,
        num_layers: int | None = None,
        visible_frames: VisibleFrames | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Wav2Vec2BaseModelOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`):
                Waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*):
                1 for real samples, 0 for padding. Without it, padded samples are speech like any other.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                True for the frames that are hidden from the encoder. Without it, SpecAugment draws some while
                training (`config.apply_spec_augment`); a mask without any True hides nothing.
            mask_feature_indices (`torch.BoolTensor` of shape `(batch_size, hidden_size)`, *optional*):
                True for the dimensions of the projected features that are hidden in all frames (fine-tuning only).
                Drawn together with the frames where neither is given.
            mask_mel_indices (`torch.BoolTensor` of shape `(batch_size, sequence_length, num_mel_bins)`, *optional*):
                True for what is hidden of the log-mel frames themselves; `"log_mel"` front end only.
            num_layers (`int`, *optional*):
                Run only the first `num_layers` Transformer layers; `last_hidden_state` is then theirs.
            visible_frames (`VisibleFrames`, *optional*):
                Run the Transformer layers over these frames alone; `last_hidden_state` is zero at all others, while
                earlier `hidden_states` and `attentions` hold these frames only.

        Returns:
            `Wav2Vec2BaseModelOutput` with `last_hidden_state` `(batch_size, sequence_length, hidden_size)`,
            `extract_features` (output of the front end), and on request `hidden_states` and `attentions`.

        Raises:
            ValueError: for layers that are not there, a wrong rank or dtype, clips shorter than one frame (400
                samples), and on a CPU for padding on the left and for NaN or infinite samples.
        """
        if num_layers is not None and not 0 <= num_layers <= self.config.num_hidden_layers:
            raise ValueError(
                f"`num_layers` is {num_layers}: it must lie between 0 and {self.config.num_hidden_layers}."
            )
        check_input(self.config, input_values, attention_mask)
        check_values(input_values, attention_mask)
        if attention_mask is not None and nothing_padded(attention_mask):
            attention_mask = None
        lengths = None if attention_mask is None else real_samples(attention_mask)
        extract_features = self.feature_extractor(input_values, lengths)  # [B, T, C]
        if self.training and self.config.feature_grad_mult != 1:
            scale = self.config.feature_grad_mult
            extract_features = extract_features * scale + extract_features.detach() * (1 - scale)
        batch_size, sequence_length, _ = extract_features.shape
        frame_mask = None
        if attention_mask is not None:
            frame_mask = self._get_feature_vector_attention_mask(sequence_length, attention_mask)
        if self.training and self.config.apply_spec_augment and mask_time_indices is None:
            whole = torch.full((batch_size,), sequence_length, device=extract_features.device)
            real = whole if frame_mask is None else frame_mask.sum(-1)
            mask_time_indices, dimensions = spec_augment(self.config, real, sequence_length)
            mask_feature_indices = dimensions if mask_feature_indices is None else mask_feature_indices
        if mask_time_indices is not None:
            check_mask("mask_time_indices", mask_time_indices, (batch_size, sequence_length), "frames")

        # The model's dtype is that of its convolutions: quantised linear layers hold integers, or no weight at all.
        features = extract_features.to(self.encoder.pos_conv_embed.conv.bias.dtype)
        if mask_mel_indices is not None:
            if self.config.front_end != "log_mel":
                raise ValueError('`mask_mel_indices` go with `front_end` "log_mel": this model reads the waveform.')
            check_mask("mask_mel_indices", mask_mel_indices, features.shape, "frames, num_mel_bins")
            features = features * ~mask_mel_indices
        if self.stem is not None:
            features = self.stem(features, frame_mask, mask_time_indices)
        hidden_states = self.feature_projection(features)  # [B, T, H]
        if frame_mask is not None:
            hidden_states = hidden_states.masked_fill(~frame_mask[:, :, None], 0.0)
        if mask_time_indices is not None:
            hidden_states = hidden_states * ~mask_time_indices[:, :, None]
        if mask_feature_indices is not None:
            shape = batch_size, self.config.hidden_size
            check_mask("mask_feature_indices", mask_feature_indices, shape, "hidden_size")
            hidden_states = hidden_states * ~mask_feature_indices[:, None, :]
        hidden_states = self.encoder(hidden_states, frame_mask, num_layers, visible_frames, **kwargs)
        return Wav2Vec2BaseModelOutput(last_hidden_state=hidden_states, extract_features=extract_features)


def attention_mask_4d(config: SJepaConfig, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None):
    """The mask `frame_mask` `(batch_size, sequence_length)` as the configured attention implementation takes it."""
    if frame_mask is None:
        return None
    # A clip without a single real frame attends to its first one, so that no softmax runs over nothing. The mask is
    # always made: asking whether it could be left out would wait for the device.
    frame_mask = frame_mask | (torch.arange(frame_mask.shape[1], device=frame_mask.device) == 0)
    mask = create_bidirectional_mask(config, hidden_states, frame_mask, allow_is_bidirectional_skip=False)
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        mask = mask[:, :, :1]  # one row for all queries: an attention over an hour has 32 billion pairs of frames
    return mask


__all__ = ["SJepaModel", "SJepaPreTrainedModel"]
