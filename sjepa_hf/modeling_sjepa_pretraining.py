"""S-JEPA pretraining model: encoder, predictor, cluster head, mixture and loss (arXiv 2606.19398, section 3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_sjepa import SJepaConfig
from .float32 import at_least_float32
from .frame_features import FRAME_FEATURES
from .frames import check_frames, real_samples
from .hmm import TransitionModel
from .hmm_mixture import HmmMixture
from .input_checks import check_input, check_mask, check_values, nothing_padded
from .layer_features import SJepaWhitening, read_layers
from .mixture import DiagonalGaussianMixture
from .modeling_sjepa import SJepaModel, SJepaPreTrainedModel, VisibleFrames, pick
from .predictor import SJepaClusterHead, SJepaPredictor, sinusoids
from .soft_targets import check_distributions, check_posteriors, soft_target_divergence
from .units import SJepaUnitsOutput, units_of


logger = logging.get_logger(__name__)

SOURCES = ("mixture", "prediction")  # of units


@dataclass
class SJepaForPreTrainingOutput(ModelOutput):
    """
    Output of [`SJepaForPreTraining`].

    Args:
        loss (`torch.Tensor` of shape `()`): mean over the frames that count of `KL(target || prediction)`, in nats;
            with frozen targets beside the others, the weighted mean of both.
        masked_loss (`torch.Tensor` of shape `()`): the same over masked frames alone.
        visible_loss (`torch.Tensor` of shape `()`): the same over visible frames alone; `None` when they do not count.
        frozen_loss (`torch.Tensor` of shape `()`): the divergence from the frozen targets, over all of these frames.
        num_masked_frames (`int`): masked frames in the batch: `masked_loss * num_masked_frames` is their sum.
        num_visible_frames (`int`): visible real frames that count (0 when they do not).
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, num_mixture_components)`):
            Cluster logits: from the predictor at masked frames, from the encoder at visible ones. Zero where nothing
            was computed: padding, and visible frames while the loss does not read them.
        hidden_states, attentions: of the encoder, on request.
    """

    loss: torch.Tensor | None = None
    masked_loss: torch.Tensor | None = None
    visible_loss: torch.Tensor | None = None
    frozen_loss: torch.Tensor | None = None
    num_masked_frames: int | None = None
    num_visible_frames: int | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SJepaForPreTraining(SJepaPreTrainedModel):
    """
    Encoder (`sjepa`), predictor, cluster head and the mixture whose posteriors they learn to predict. The mixture's
    buffers travel in the checkpoint; [`SJepaModel.from_pretrained`] takes the encoder out of it.
    """

    encoder_class: type[nn.Module] = SJepaModel  # a subclass may have another encoder

    def __init__(self, config: SJepaConfig):
        super().__init__(config)
        self.sjepa = self.encoder_class(config)
        self.predictor = SJepaPredictor(config)
        self.cluster_head = SJepaClusterHead(config)
        self.mixture = new_mixture(config, config.num_mixture_components, config.mixture_feature_size)
        if config.mixture_whitened:
            self.mixture_whitening = SJepaWhitening(config.hidden_size, config.mixture_feature_size)
        if config.num_frozen_components is not None:
            self.frozen_mixture = new_mixture(config, config.num_frozen_components, config.frozen_feature_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, SJepaPredictor):
            init.normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):  # the predictor's positions
            init.copy_(module.weight, sinusoids(*module.weight.shape))
        elif isinstance(module, SJepaWhitening):
            init.zeros_(module.mean)
            init.zeros_(module.directions)
        elif isinstance(module, DiagonalGaussianMixture):
            init.constant_(module.weights, 1.0 / module.num_components)
            init.normal_(module.means)
            init.ones_(module.variances)
            init.constant_(module.variance_floor, 1e-6)
        elif isinstance(module, TransitionModel):
            init.constant_(module.initial, 1 / module.num_states)
            init.constant_(module.pairs, module.num_states**-2)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        target_posteriors: torch.Tensor | None = None,
        include_visible: bool = True,
        masked_positions: torch.Tensor | None = None,
        visible_positions: torch.Tensor | None = None,
        longest_visible: int | None = None,
        frozen_posteriors: torch.Tensor | None = None,
        frozen_weight: float = 0.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SJepaForPreTrainingOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)`): waveforms at 16 kHz, right-padded.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)`, *optional*): 1 for real samples.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                True for hidden frames; padded ones do not count.
            target_posteriors (`torch.Tensor` of shape `(batch_size, sequence_length, num_mixture_components)`,
                *optional*): soft targets, each row a distribution (hard labels: one-hot); with them there is a loss.
            include_visible (`bool`, *optional*, defaults to `True`):
                Whether visible frames count in the loss beside the masked ones (phase 1), or not (late phase 2).
            masked_positions, visible_positions (`torch.LongTensor`, *optional*):
                Flat indices `b * sequence_length + t` of the masked and the visible real frames. Without them they are
                looked up, which waits for the device and does not compile into one graph.
            longest_visible (`int`, *optional*):
                With `config.encode_visible_only`: most visible real frames of any clip, or more. Without it they are
                counted, which waits for the device and does not compile into one graph either.
            frozen_posteriors (`torch.Tensor` of shape `(batch_size, sequence_length, num_frozen_components)`,
                *optional*): posteriors of the frozen mixture, a second target beside `target_posteriors`.
            frozen_weight (`float`, *optional*, defaults to 0.0):
                Their share in the loss, from 0 to 1.
            kwargs: go to the encoder, `mask_mel_indices` of [`SJepaModel`] among them.

        Raises:
            ValueError: for input that [`SJepaModel`] refuses, for targets of another shape than frames and clusters
                have, without a mask or (on a CPU) that are no distributions, and for clips beyond the predictor's
                table of positions.
        """
        check_input(self.config, input_values, attention_mask)
        shape = input_values.shape[0], self.config.num_frames(input_values.shape[1])  # [B, T]
        self._check_targets(shape, mask_time_indices, target_posteriors, frozen_posteriors, frozen_weight)
        if "labels" in kwargs:
            raise ValueError("This model has no `labels`: give `target_posteriors`, for hard labels one-hot in float.")
        if mask_time_indices is None:
            # Nothing is hidden; without a mask SpecAugment would draw one.
            none_hidden = input_values.new_zeros(shape, dtype=torch.bool)
            outputs = self.sjepa(
                input_values, attention_mask, mask_time_indices=none_hidden, return_dict=True, **kwargs
            )
            logits = self.cluster_head(outputs.last_hidden_state)
            return SJepaForPreTrainingOutput(
                logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            )

        frame_mask, visible = None, mask_time_indices.logical_not()
        if attention_mask is not None and not nothing_padded(attention_mask):
            frame_mask = self._get_feature_vector_attention_mask(shape[1], attention_mask)
            mask_time_indices, visible = frame_mask & mask_time_indices, frame_mask & visible
        if masked_positions is None:
            masked_positions = mask_time_indices.flatten().nonzero().squeeze(1)
        if target_posteriors is not None and not include_visible:
            visible_positions = masked_positions[:0]
        elif visible_positions is None:
            visible_positions = visible.flatten().nonzero().squeeze(1)
        positions, num_masked = torch.cat([masked_positions, visible_positions]), len(masked_positions)

        outputs = self._encode(input_values, attention_mask, mask_time_indices, visible, longest_visible, **kwargs)
        hidden_states = outputs.last_hidden_state  # [B, T, H]
        predicted = self.predictor(hidden_states, mask_time_indices, masked_positions, frame_mask)
        head_states = self.cluster_head.layers(torch.cat([predicted, pick(hidden_states, visible_positions)]))
        logits = self.cluster_head.output(head_states)  # [N, K]
        losses = {}
        if target_posteriors is not None:
            losses = target_losses(logits, pick(target_posteriors, positions), num_masked, include_visible)
        if frozen_posteriors is not None:
            frozen = pick(frozen_posteriors, positions)
            frozen_logits = self.cluster_head.frozen_output(head_states)
            losses["frozen_loss"] = soft_target_divergence(frozen_logits, frozen).sum() / max(len(positions), 1)
            losses["loss"] = torch.lerp(losses["loss"], losses["frozen_loss"], frozen_weight)
        scattered = logits.new_zeros(hidden_states.shape[:2].numel(), logits.shape[-1]).index_copy(
            0, positions, logits
        )
        return SJepaForPreTrainingOutput(
            **losses,
            num_masked_frames=num_masked,
            num_visible_frames=len(visible_positions),
            logits=scattered.view(*hidden_states.shape[:2], -1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_targets(self, shape, mask_time_indices, target_posteriors, frozen_posteriors, frozen_weight) -> None:
        """Raise a ValueError for a mask or posteriors that do not go with frames of this shape, or with each other."""
        if mask_time_indices is not None:
            check_mask("mask_time_indices", mask_time_indices, shape, "frames")
        elif target_posteriors is not None:
            raise ValueError("`target_posteriors` need `mask_time_indices`: the loss is taken at hidden frames.")
        check_posteriors("target_posteriors", target_posteriors, shape, self.config.num_mixture_components)
        check_posteriors("frozen_posteriors", frozen_posteriors, shape, self.config.num_frozen_components)
        if frozen_posteriors is not None and target_posteriors is None:
            raise ValueError("`frozen_posteriors` are a second target: give `target_posteriors` too.")
        if frozen_posteriors is None and frozen_weight:
            raise ValueError("`frozen_weight` has no effect without `frozen_posteriors`: give both or neither.")

    def _encode(self, input_values, attention_mask, mask_time_indices, visible, longest_visible, **kwargs):
        """Output of the encoder, whose layers with `encode_visible_only` run over `visible` frames alone."""
        kwargs |= {"mask_time_indices": mask_time_indices, "return_dict": True}
        if not self.config.encode_visible_only:
            return self.sjepa(input_values, attention_mask, **kwargs)
        frames = VisibleFrames.find(visible, int(visible.sum(1).max()) if longest_visible is None else longest_visible)
        outputs = self.sjepa(input_values, attention_mask, visible_frames=frames, **kwargs)
        if outputs.hidden_states is not None:
            count = outputs.last_hidden_state.shape[1]
            earlier = (h if h is None else frames.scatter(h, count) for h in outputs.hidden_states[:-1])
            outputs.hidden_states = (*earlier, outputs.hidden_states[-1])
        return outputs

    def replace_mixture(self, num_components: int, num_features: int, keep_frozen: bool = False) -> None:
        """
        Start on another set of clusters (the phase boundary): a new, unfitted mixture of `num_components` over
        `num_features` dimensions and a freshly initialised last layer of the cluster head. All else stays.
        `keep_frozen` keeps the present mixture and last layer beside them, as `frozen_mixture` and `frozen_output`.
        """
        if keep_frozen:
            self.config.num_frozen_components = self.mixture.num_components
            self.config.frozen_feature_size = self.mixture.num_features
            self.frozen_mixture, self.cluster_head.frozen_output = self.mixture, self.cluster_head.output
        elif self.config.num_frozen_components is not None:
            self.config.num_frozen_components = None
            del self.frozen_mixture, self.cluster_head.frozen_output
        self.describe_mixture(None)
        self.config.num_mixture_components = num_components
        self.config.mixture_feature_size = num_features
        device, dtype = self.mixture.means.device, self.predictor.mask_token.dtype
        self.mixture = new_mixture(self.config, num_components, num_features).to(device, dtype)
        self.cluster_head.output = nn.Linear(self.config.hidden_size, num_components).to(device, dtype)
        self.reset_last_layer()

    def describe_mixture(
        self,
        features: str | None,
        layers: Sequence[int] | None = None,
        instance_norm: bool = False,
        whitening: tuple[torch.Tensor, torch.Tensor] | None = None,
        temperature: float = 1.0,
    ) -> None:
        """
        Have the configuration say what the mixture is over, so that a checkpoint alone gives its posteriors.

        Args:
            features (`str`, *optional*): as `config.mixture_features`; `None`: not known, or it is unfitted.
            layers, instance_norm, temperature: as in the configuration, where their names begin with `mixture_`.
            whitening: mean `(hidden_size,)` and directions `(hidden_size, num_components)` of principal components.
        """
        config = self.config
        config.mixture_features, config.mixture_layers = features, None if layers is None else list(layers)
        config.mixture_instance_norm, config.mixture_temperature = instance_norm, temperature
        config.mixture_whitened = whitening is not None
        if whitening is None:
            self._modules.pop("mixture_whitening", None)
            return
        self.mixture_whitening = SJepaWhitening(*whitening[1].shape).to(whitening[1].device)
        self.mixture_whitening.mean.copy_(whitening[0])
        self.mixture_whitening.directions.copy_(whitening[1])

    @torch.no_grad()
    def reset_last_layer(self, generator: torch.Generator | None = None) -> None:
        """Initialise the last layer of the cluster head anew, by a CPU generator: what it knew were other clusters."""
        weight = torch.empty(self.cluster_head.output.weight.shape)
        self.cluster_head.output.weight.copy_(weight.normal_(std=self.config.initializer_range, generator=generator))
        nn.init.zeros_(self.cluster_head.output.bias)

    @torch.no_grad()
    def units(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        source: str = "mixture",
        top_k: int = 0,
    ) -> SJepaUnitsOutput:
        """
        The cluster of each frame as a number, and on request the likeliest few with their posteriors.

        Args:
            input_values, attention_mask: as in [`~SJepaForPreTraining.forward`].
            source (`str`, *optional*, defaults to `"mixture"`): see [`~SJepaForPreTraining.unit_posteriors`].
            top_k (`int`, *optional*, defaults to 0): components to give for each frame with their posteriors.

        Raises:
            ValueError: as there, and for a `top_k` above the number of components.
        """
        posteriors = self.unit_posteriors(input_values, attention_mask, source)
        lengths = None if attention_mask is None else self.config.num_frames(real_samples(attention_mask))
        return units_of(posteriors, lengths, top_k)

    @torch.no_grad()
    def unit_posteriors(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, source: str = "mixture"
    ) -> torch.Tensor:
        """
        Posterior of each cluster at each frame, `(batch_size, sequence_length, num_mixture_components)`, fp32; padded
        frames hold anything. The encoder runs in evaluation mode while the model is trained, too.

        Args:
            source (`str`, *optional*, defaults to `"mixture"`):
                `"mixture"`: of the mixture over what it was fitted to (`config.mixture_features`); with MFCC the
                encoder does not run. In phase 2 targets are read from an EMA copy of the encoder, here from the
                encoder itself; `sjepa_hf.opening.open_with_ema` puts the one in the other's place.
                `"prediction"`: of the cluster head over the encoder, nothing being hidden.

        Raises:
            ValueError: if the configuration does not say what the mixture is over, for another `source`, and for an
                encoder whose frames are not of 400 samples every 320.
        """
        config = self.config
        if source not in SOURCES:
            raise ValueError(f"`source` is {source!r}; choose one of {', '.join(SOURCES)}.")
        check_frames(config, "The encoder")
        check_input(config, input_values, attention_mask)
        if source == "prediction":
            with evaluating(self):
                logits = self(input_values, attention_mask, return_dict=True).logits
            return at_least_float32(logits).softmax(-1)
        if config.mixture_features is None:
            raise ValueError(
                "The configuration does not say what the mixture is over (`mixture_features`), as in checkpoints"
                " before there were units: set `model.config.mixture_features` to `phase1_features` of the run's"
                ' training.json and save it anew, or take source="prediction".'
            )
        if not self.mixture.is_fitted():
            logger.warning_once("The mixture has never been fitted: its posteriors are those of random clusters.")
        if attention_mask is not None and nothing_padded(attention_mask):
            attention_mask = None
        samples = None if attention_mask is None else real_samples(attention_mask)
        num_frames = config.num_frames(input_values.shape[1])
        if config.mixture_features == "encoder":
            real = None
            if config.mixture_instance_norm:
                whole = torch.ones_like(input_values, dtype=torch.bool) if attention_mask is None else attention_mask
                real = self._get_feature_vector_attention_mask(num_frames, whole)
            with evaluating(self.sjepa):
                features = read_layers(self.sjepa, input_values, attention_mask, config.mixture_layers, real)
            if config.mixture_whitened:
                features = self.mixture_whitening(features)
        else:
            check_values(input_values, attention_mask)
            features = FRAME_FEATURES[config.mixture_features]().to(input_values.device)(input_values, samples)
        if features.shape[-1] != self.mixture.num_features:
            raise ValueError(
                f"`mixture_features` is {config.mixture_features!r}, which has {features.shape[-1]} values a frame,"
                f" but the mixture is over {self.mixture.num_features}."
            )
        lengths = None if samples is None else config.num_frames(samples)
        return self.mixture.clip_posteriors(features, lengths, config.mixture_temperature)


def target_losses(logits: torch.Tensor, targets: torch.Tensor, num_masked: int, include_visible: bool) -> dict:
    """
    The losses by their names in [`SJepaForPreTrainingOutput`], from logits and targets `(num_frames, num_components)`,
    whose first `num_masked` rows are masked frames and the others visible ones.
    """
    check_distributions("target_posteriors", targets)
    divergence = soft_target_divergence(logits, targets)  # [N]
    masked, visible = divergence[:num_masked], divergence[num_masked:]
    losses = {"loss": divergence.sum() / max(len(divergence), 1), "masked_loss": masked.sum() / max(num_masked, 1)}
    if include_visible:
        losses["visible_loss"] = visible.sum() / max(len(visible), 1)
    return losses


def new_mixture(config: SJepaConfig, num_components: int, num_features: int) -> DiagonalGaussianMixture:
    """An unfitted mixture, of the kind that the configuration asks for."""
    kind = HmmMixture if config.mixture_transitions else DiagonalGaussianMixture
    return kind(num_components, num_features)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module, and all in it, in evaluation mode; what was in training mode is so again afterwards."""
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


__all__ = ["SJepaForPreTraining", "SJepaForPreTrainingOutput"]
