"""Heads, what is fine-tuned on top of the encoder: CTC, classification of clips and of frames, speaker embeddings.

Arguments and outputs are those of the WavLM heads of the same names; pooling, convolutions over time and losses read
real frames only.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
    XVectorOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_sjepa import SJepaConfig
from .float32 import without_autocast
from .frames import clip_mean, length_mask
from .input_checks import values_readable
from .modeling_sjepa import PRETRAINING_ONLY, SJepaModel, SJepaPreTrainedModel


LOSSES_OF_NUMBERS = {  # by `problem_type`, where labels are no classes
    "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
    "regression": nn.functional.mse_loss,
}


class SJepaEncoderWithHead(SJepaPreTrainedModel):
    """
    What the heads share: the encoder and a choice of features: the last layer's, or a learned average of all layers
    (`config.use_weighted_layer_sum`).
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_ONLY

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.sjepa = SJepaModel(config)
        if config.use_weighted_layer_sum:
            num_layers = config.num_hidden_layers + 1  # the input of the first layer counts
            self.layer_weights = nn.Parameter(torch.full((num_layers,), 1.0 / num_layers))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(getattr(module, "layer_weights", None), nn.Parameter):
            init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))

    def freeze_base_model(self):
        """Train the head alone."""
        self.sjepa.requires_grad_(False)

    def encode(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, Wav2Vec2BaseModelOutput]:
        """
        Features of a batch.

        Returns:
            features `(batch_size, sequence_length, hidden_size)`; which frames are real, bool
            `(batch_size, sequence_length)`; and the encoder's outputs as the caller asked for them.
        """
        all_layers = self.config.use_weighted_layer_sum
        if all_layers and kwargs.get("num_layers") is not None:
            raise ValueError("`num_layers` leaves out layers of which `use_weighted_layer_sum` takes the sum.")
        wants_hidden_states = kwargs.pop("output_hidden_states", None)
        wants_hidden_states = self.config.output_hidden_states if wants_hidden_states is None else wants_hidden_states
        outputs = self.sjepa(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=True if all_layers else wants_hidden_states,
            return_dict=True,
            **kwargs,
        )
        features = outputs.last_hidden_state
        if attention_mask is None:
            frame_mask = features.new_ones(features.shape[:2], dtype=torch.bool)
        else:
            frame_mask = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        if all_layers:
            weights = self.layer_weights.float().softmax(-1)
            features = sum(w * h for w, h in zip(weights, outputs.hidden_states, strict=True)).to(features.dtype)
        if not wants_hidden_states:
            outputs.hidden_states = None
        elif all_layers and wants_hidden_states is not True:  # some by their numbers, from the end if negative
            numbers = [wants_hidden_states] if isinstance(wants_hidden_states, int) else wants_hidden_states
            kept = {number % len(outputs.hidden_states) for number in numbers}
            outputs.hidden_states = tuple(layer for i, layer in enumerate(outputs.hidden_states) if i in kept)
        return features, frame_mask, outputs


class SJepaForCTC(SJepaEncoderWithHead):
    """S-JEPA encoder with a linear layer over its frames, for connectionist temporal classification."""

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        if config.pad_token_id is None:
            raise ValueError(
                "`pad_token_id` is None, but CTC needs a blank: set it to the id of the tokenizer's padding."
            )
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`): waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*): 1 for real samples.
            labels (`torch.LongTensor` of shape `(batch_size, target_length)`, *optional*):
                Token ids; -100 and the blank (`config.pad_token_id`) are left out.

        Returns:
            `CausalLMOutput` with `logits` `(batch_size, sequence_length, vocab_size)`, at padded frames those of a
            certain blank, so that whoever decodes the whole row writes no more than the clip alone gives; and, given
            labels, `loss`.

        Raises:
            ValueError: for labels that are no token ids of this head, of another shape or not integer.
        """
        if labels is not None:
            labels = check_labels(labels, self.config.vocab_size, "vocab_size", may_wait=True)
            if labels.ndim != 2 or len(labels) != len(input_values):
                raise ValueError(
                    f"`labels` must have shape ({len(input_values)}, target_length), one row a clip, but has"
                    f" {tuple(labels.shape)}: pad the rows with -100."
                )
        features, frame_mask, outputs = self.encode(input_values, attention_mask, **kwargs)
        logits = self.lm_head(self.dropout(features))
        if attention_mask is not None:
            logits = blank_where_padded(logits, frame_mask, self.config.pad_token_id)
        loss = None
        if labels is not None:
            device = "cpu" if logits.device.type == "mps" else logits.device  # torch has no CTC for an Apple GPU
            loss = self.loss_function(
                logits=logits.to(device),
                labels=labels.to(device),
                logit_lengths=frame_mask.sum(-1).to(device),
                blank_token_id=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            ).to(logits.device)
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SJepaForSequenceClassification(SJepaEncoderWithHead):
    """
    S-JEPA encoder, its frames projected and averaged, and a linear layer. By `config.problem_type` that tells classes
    (keywords, intents, speakers; the default), several labels that may hold together, or numbers (an age, a score).
    """

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`): waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*): 1 for real samples.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class of each clip; -100 leaves it out.
                With the `problem_type` "multi_label_classification" or "regression" a `torch.FloatTensor` of shape
                `(batch_size, num_labels)`: 1 for each label that holds, or the numbers.

        Returns:
            `SequenceClassifierOutput` with `logits` `(batch_size, num_labels)`; given labels, `loss`: cross-entropy of
            classes or binary cross-entropy of several labels (nats), or the squared error of numbers.

        Raises:
            ValueError: for labels that are no classes of this head, not one a clip or not integer; for several labels
                or numbers of another shape or type; for classes where `num_labels` is 1.
        """
        if labels is not None:
            labels = check_clip_targets(labels, self.config, len(input_values))
        features, frame_mask, outputs = self.encode(input_values, attention_mask, **kwargs)
        pooled = clip_mean(self.projector(features).float(), frame_mask)[:, 0]
        logits = self.classifier(pooled.to(features.dtype))
        loss_of = LOSSES_OF_NUMBERS.get(self.config.problem_type, nn.functional.cross_entropy)
        loss = None if labels is None else loss_of(logits.float(), labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SJepaForAudioFrameClassification(SJepaEncoderWithHead):
    """S-JEPA encoder with a linear classifier of every frame: phones, voice activity, who speaks when."""

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`): waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*): 1 for real samples.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)` or, one-hot,
                `(batch_size, sequence_length, num_labels)`, *optional*):
                Class of each frame; -100, or a row without a 1, leaves it out, and so does padding.

        Returns:
            `TokenClassifierOutput` with `logits` `(batch_size, sequence_length, num_labels)`; given labels, `loss`.
            As in HuBERT, padded frames have logits like any other: of a clip's, the first
            `config.num_frames(num_samples)` count.

        Raises:
            ValueError: for labels that are no classes of this head, not one a frame or not integer.
        """
        features, frame_mask, outputs = self.encode(input_values, attention_mask, **kwargs)
        logits = self.classifier(features)
        loss = None
        if labels is not None:
            if labels.shape not in (logits.shape, logits.shape[:2]):
                raise ValueError(
                    f"`labels` must have shape {tuple(logits.shape[:2])} (batch_size, frames) or, one-hot,"
                    f" {tuple(logits.shape)}, but has {tuple(labels.shape)}."
                )
            classes = from_one_hot(labels) if labels.ndim == 3 else labels
            classes = check_labels(classes.masked_fill(~frame_mask, -100), self.config.num_labels, "num_labels")
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), classes.flatten())
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SJepaTDNNLayer(nn.Module):
    """One time-delay layer: a dilated convolution over frames, then ReLU."""

    def __init__(self, config: SJepaConfig, layer_id: int):
        super().__init__()
        self.conv = nn.Conv1d(
            config.tdnn_dim[max(layer_id - 1, 0)],
            config.tdnn_dim[layer_id],
            kernel_size=config.tdnn_kernel[layer_id],
            dilation=config.tdnn_dilation[layer_id],
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden_states.transpose(1, 2)).transpose(1, 2).relu()


class SJepaAMSoftmaxLoss(nn.Module):
    """Additive-margin softmax (arXiv 1801.05599): cross-entropy of scaled cosines, the right one less a margin."""

    scale, margin = 30.0, 0.4

    def __init__(self, input_size: int, num_labels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(input_size, num_labels))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        classes = nn.functional.normalize(self.weight.float(), dim=0)
        with without_autocast(embeddings.device):
            cosines = nn.functional.normalize(embeddings.float(), dim=1) @ classes
        right = nn.functional.one_hot(labels.clamp_min(0), cosines.shape[-1])
        return nn.functional.cross_entropy(self.scale * (cosines - self.margin * right), labels)


class SJepaForXVector(SJepaEncoderWithHead):
    """S-JEPA encoder with a time-delay network and statistics pooling (x-vectors), for speaker verification."""

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList([SJepaTDNNLayer(config, i) for i in range(len(config.tdnn_dim))])
        self.feature_extractor = nn.Linear(config.tdnn_dim[-1] * 2, config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = SJepaAMSoftmaxLoss(config.xvector_output_dim, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, SJepaAMSoftmaxLoss):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XVectorOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`): waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*): 1 for real samples.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): speaker of each clip; -100 leaves it out.

        Returns:
            `XVectorOutput` with `embeddings` and `logits`, both `(batch_size, xvector_output_dim)`: compare clips by
            the cosine of their `embeddings`; given labels, `loss`.

        Raises:
            ValueError: for labels that are no speakers of this head, not one a clip or not integer.
        """
        if labels is not None:
            labels = check_clip_labels(labels, self.config.num_labels, len(input_values))
        features, frame_mask, outputs = self.encode(input_values, attention_mask, **kwargs)
        context = sum((k - 1) * d for k, d in zip(self.config.tdnn_kernel, self.config.tdnn_dilation, strict=True))
        hidden_states = self.projector(features) * frame_mask[:, :, None]
        # Clips shorter than what one output reads see zeros behind their end, alone as in a batch.
        hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, max(context + 1 - hidden_states.shape[1], 0)))
        for layer in self.tdnn:
            hidden_states = layer(hidden_states)
        lengths = (frame_mask.sum(-1) - context).clamp_min(1)
        real = length_mask(lengths, hidden_states.shape[1])
        statistics = torch.cat(masked_mean_and_std(hidden_states, real), dim=-1).to(features.dtype)
        embeddings = self.feature_extractor(statistics)
        logits = self.classifier(embeddings)
        return XVectorOutput(
            loss=None if labels is None else self.objective(logits, labels),
            logits=logits,
            embeddings=embeddings,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def from_one_hot(labels: torch.Tensor) -> torch.Tensor:
    """
    Classes of frames, `(batch_size, sequence_length, num_labels) -> (batch_size, sequence_length)`; -100 where nothing
    is 1, as in rows of 0 or -100.
    """
    return labels.float().argmax(-1).masked_fill((labels != 1).all(-1), -100)


def check_labels(labels: torch.Tensor, num_classes: int, size: str, may_wait: bool = False) -> torch.Tensor:
    """
    Labels as int64, or a ValueError that names what is wrong with them.

    Args:
        labels (`torch.Tensor`): classes from 0 to `num_classes - 1`, of any shape; -100 where one is left out.
        size (`str`): the field of the configuration that `num_classes` comes from.
        may_wait (`bool`): look at the values on an accelerator too, which waits for it. Without it they are looked at
            on a CPU alone; an accelerator has an assertion of its own. Neither is possible while compiling.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be integers, the numbers of classes, but are {labels.dtype}.")
    labels = labels.long()
    if values_readable(labels, may_wait):
        unknown = (labels >= num_classes) | ((labels < 0) & (labels != -100))
        if unknown.any():
            raise ValueError(
                f"`labels` hold {labels[unknown][0].item()}, but with `{size}` {num_classes} they go from 0 to"
                f" {num_classes - 1}, or are -100 where one is left out: give the model the `{size}` of the data."
            )
    return labels


def check_clip_labels(labels: torch.Tensor, num_classes: int, batch_size: int) -> torch.Tensor:
    """One class for each clip, `(batch_size,)` int64, or a ValueError that names what is wrong."""
    if labels.numel() != batch_size:
        raise ValueError(f"`labels` must have shape ({batch_size},), one class a clip, but has {tuple(labels.shape)}.")
    return check_labels(labels.reshape(-1), num_classes, "num_labels")


def check_clip_targets(labels: torch.Tensor, config: SJepaConfig, batch_size: int) -> torch.Tensor:
    """Labels as the loss of `config.problem_type` takes them, or a ValueError that names what is wrong."""
    count = config.num_labels
    if config.problem_type not in LOSSES_OF_NUMBERS:
        if count == 1:
            raise ValueError(
                "`num_labels` is 1, and a single class teaches nothing: give all classes, or for a number to each clip"
                ' set `problem_type` to "regression".'
            )
        return check_clip_labels(labels, count, batch_size)
    if count == 1 and labels.ndim == 1:
        labels = labels[:, None]
    if not labels.is_floating_point() or labels.shape != (batch_size, count):
        raise ValueError(
            f"`problem_type` is {config.problem_type!r}: `labels` must be floating point of shape"
            f" {(batch_size, count)}, but are {labels.dtype} of shape {tuple(labels.shape)}."
        )
    return labels.float()


def blank_where_padded(logits: torch.Tensor, frame_mask: torch.Tensor, blank: int) -> torch.Tensor:
    """
    Logits `(batch_size, sequence_length, vocab_size)` as they are where `frame_mask` is True, elsewhere those of a
    probability of 1 for the blank; finite in every dtype, and without a gradient.
    """
    is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank
    certain = torch.where(is_blank, 0.0, -1e4).to(logits.dtype)
    return torch.where(frame_mask[:, :, None], logits, certain)


def masked_mean_and_std(hidden_states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and (unbiased) standard deviation over the frames where `mask` `(batch_size, sequence_length)` is True, both
    `(batch_size, H)` in fp32. A clip without any such frame gives zeros, one with a single frame a deviation of zero.
    """
    hidden_states, count = hidden_states.float(), mask.sum(1)[:, None]
    mean = clip_mean(hidden_states, mask)
    variance = clip_mean((hidden_states - mean).square(), mask)[:, 0] * (count / (count - 1).clamp_min(1))
    return mean[:, 0], variance.clamp_min(1e-14).sqrt()  # the floor keeps the gradient finite where nothing varies


__all__ = [
    "SJepaForAudioFrameClassification",
    "SJepaForCTC",
    "SJepaForSequenceClassification",
    "SJepaForXVector",
]
