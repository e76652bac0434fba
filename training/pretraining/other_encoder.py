"""Encoders of other kinds (HuBERT, wav2vec 2.0, WavLM, data2vec-audio, UniSpeech-SAT), called as [`SJepaModel`] is."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sjepa_hf.float32 import at_least_float32
from sjepa_hf.frames import SAMPLING_RATE, check_frames, frame_lengths
from sjepa_hf.input_checks import check_values
from sjepa_hf.opening import open_feature_extractor, open_model


TAKES = ("input_values", "mask_time_indices")  # what pretraining gives to an encoder
ANY_SHARE = 0.05  # a `mask_time_prob` above 0, with which a model is made with a mask embedding


class OtherEncoder(nn.Module):
    """
    A model of Transformers that takes `input_values` and `mask_time_indices`, with the call of [`SJepaModel`].

    Hidden frames become the model's own mask embedding (`masked_spec_embed`), and waveforms are normed where its
    feature extractor says so (`do_normalize`). What the model would do by itself in training is off: it draws no
    masks, and its LayerDrop leaves a layer out for single clips, by value, so that every parameter has a gradient in
    each process.

    Args:
        model (`PreTrainedModel`): the encoder, as [`open_other_encoder`] makes it.
        extractor: its feature extractor.
        own_config (`PreTrainedConfig`): its configuration as it was published, and is saved again.

    Raises:
        ValueError: if it does not give one vector of `hidden_size` for each frame of 25 ms every 20 ms in all layers.
    """

    def __init__(self, model: PreTrainedModel, extractor: Any, own_config: PreTrainedConfig):
        super().__init__()
        self.model = model
        self.extractor = extractor
        self.own_config = own_config
        self.config = model.config
        with torch.device("meta"):  # each class has its own rule: UniSpeech-SAT always makes one
            self.lends_mask_embedding = not hasattr(type(model)(own_config), "masked_spec_embed")
        self._check_layout()
        if dropped := getattr(own_config, "layerdrop", 0.0):
            for layer in model.encoder.layers:
                layer.register_forward_hook(layer_drop(dropped))
        self._check_frames()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    def num_parameters(self) -> int:
        """How many weights it has."""
        return self.model.num_parameters()

    def freeze_feature_encoder(self) -> None:
        """Stop the gradient at the convolutions."""
        self.model.feature_extractor._freeze_parameters()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        num_layers: int | None = None,
        output_hidden_states: bool = False,
        **kwargs,
    ) -> BaseModelOutput:
        """
        As [`SJepaModel.forward`], in training mode too: without `mask_time_indices` nothing is hidden. With
        `num_layers` only these layers run and `last_hidden_state` is the last one's output, before the model's final
        layer norm; without, it is the model's own.
        """
        check_values(input_values, attention_mask)
        if self.extractor.do_normalize:
            input_values = normed(input_values, attention_mask)
        if mask_time_indices is None:
            shape = len(input_values), frame_lengths(input_values.shape[1])
            mask_time_indices = torch.zeros(shape, dtype=torch.bool, device=input_values.device)
        options = {"attention_mask": attention_mask, "mask_time_indices": mask_time_indices, **kwargs}
        if num_layers is None:
            return self.model(input_values, output_hidden_states=output_hidden_states, **options)
        with first_layers(self.model.encoder, max(num_layers, 1)):  # layer 0 is what enters the first
            layers = self.model(input_values, output_hidden_states=True, **options).hidden_states[: num_layers + 1]
        return BaseModelOutput(last_hidden_state=layers[-1], hidden_states=layers)

    def save_pretrained(self, directory: str | Path) -> None:
        """
        Save the encoder as one of its own kind, with its feature extractor and its configuration as it was; a mask
        embedding that goes with `mask_time_prob` above 0 alone is left out.
        """
        weights = self.model.state_dict()
        if self.lends_mask_embedding:
            del weights["masked_spec_embed"]
        self.model.save_pretrained(directory, state_dict=weights)
        self.own_config.architectures, self.own_config.dtype = self.config.architectures, self.config.dtype
        self.own_config.save_pretrained(directory)
        self.extractor.save_pretrained(directory)

    def _check_layout(self) -> None:
        layers = getattr(getattr(self.model, "encoder", None), "layers", None)
        if not isinstance(layers, nn.ModuleList) or not hasattr(self.model, "masked_spec_embed"):
            raise ValueError(
                f"{type(self.model).__name__} is not built like wav2vec 2.0 (`encoder.layers`,"
                " `masked_spec_embed`): pretraining cannot go on from it."
            )
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            raise ValueError(
                f"{type(self.model).__name__} has batch norms, whose running statistics would follow neither the EMA"
                " encoder nor the other processes, and whose batches see padding: pretraining cannot go on from it."
            )

    @torch.no_grad()
    def _check_frames(self) -> None:
        """All layers run here once, and from then on Transformers can record each of them."""
        training = self.model.training
        self.model.eval()
        outputs = self(torch.zeros(1, SAMPLING_RATE, device=self.device), output_hidden_states=True)
        self.model.train(training)
        found = [tuple(layer.shape) for layer in (*outputs.hidden_states, outputs.last_hidden_state)]
        wanted = (1, frame_lengths(SAMPLING_RATE), self.config.hidden_size)
        if found != [wanted] * (self.config.num_hidden_layers + 2):
            other = next((shape for shape in found if shape != wanted), "other layers")
            raise ValueError(
                f"{type(self.model).__name__} gives {other} where pretraining needs {wanted} (clips, frames, size) in"
                f" each of its {self.config.num_hidden_layers} layers: it cannot go on from such a model."
            )


def open_other_encoder(checkpoint: str | Path, own_config: PreTrainedConfig, **options) -> OtherEncoder:
    """
    The encoder of a checkpoint in fp32, with or without a head of its own.

    Args:
        own_config: the checkpoint's configuration.
        options: of `from_pretrained`.

    Raises:
        ValueError: if it cannot be opened, takes other input, or makes other frames.
    """
    check_kind(checkpoint, own_config)
    extractor = open_feature_extractor(checkpoint)
    config = copy.deepcopy(own_config)
    config.apply_spec_augment = True  # else the masks that are given are ignored
    config.mask_time_prob = own_config.mask_time_prob or ANY_SHARE
    config.mask_feature_prob = config.layerdrop = 0.0
    config.return_dict = True
    model = open_model(AutoModel, checkpoint, config=config, dtype=torch.float32, **options)
    return OtherEncoder(model, extractor, own_config)


def check_kind(checkpoint: str | Path, config: PreTrainedConfig) -> None:
    """Raise a ValueError for a model that cannot be pretrained here, as far as its configuration tells."""
    forward = getattr(MODEL_MAPPING.get(type(config), None), "forward", None)
    taken = inspect.signature(forward).parameters if forward else {}
    if not all(name in taken for name in TAKES):
        raise ValueError(
            f"{checkpoint} is of type {config.model_type}, which does not take `{TAKES[0]}` and `{TAKES[1]}`:"
            " pretraining goes on from S-JEPA and from encoders of wav2vec 2.0's family (HuBERT, WavLM,"
            " data2vec-audio, UniSpeech-SAT)."
        )
    check_frames(config, str(checkpoint))


def normed(input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Waveforms `(batch_size, num_samples)` of mean 0 and variance 1 over their real samples, 0 elsewhere."""
    waves = at_least_float32(input_values)
    real = torch.ones_like(waves) if attention_mask is None else attention_mask.to(waves.dtype)
    count = real.sum(1, keepdim=True).clamp_min(1)
    centred = (waves - (waves * real).sum(1, keepdim=True) / count) * real
    return centred * (centred.square().sum(1, keepdim=True) / count + 1e-7).rsqrt()


def layer_drop(probability: float) -> Callable:
    """A forward hook that, in training, skips a Transformer layer for each clip with that probability."""

    def hook(layer: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple | None:
        if not layer.training:
            return None
        states, *rest = output if isinstance(output, tuple) else (output,)
        kept = torch.rand(len(states), 1, 1, device=states.device) >= probability
        states = torch.where(kept, states, inputs[0])
        return (states, *rest) if isinstance(output, tuple) else states

    return hook


@contextmanager
def first_layers(encoder: nn.Module, count: int) -> Iterator[None]:
    """Within it, an encoder has its first `count` layers alone."""
    layers = encoder.layers
    encoder.layers = layers[:count]
    try:
        yield
    finally:
        encoder.layers = layers
