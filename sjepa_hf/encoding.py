"""Encoding: hidden states of chosen layers of any frozen audio encoder of Transformers, and a hash of its weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BatchFeature, PreTrainedConfig, PreTrainedModel

from .frames import SAMPLING_RATE, real_samples
from .input_checks import check_right_padded
from .layer_features import layer_states
from .opening import open_model


# Encoders that leave padding out wherever frames meet, given `feat_extract_norm` layer, which norms each by itself.
LEAVE_PADDING_OUT = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")


def open_audio_encoder(checkpoint: str | Path, **options) -> PreTrainedModel:
    """
    The encoder of a checkpoint, in evaluation mode and, unless `options` name a `dtype`, in fp32 however it was saved.

    Raises:
        ValueError: as [`sjepa_hf.opening.open_model`] does, or if it does not read waveforms.
    """
    options = {"dtype": torch.float32} | options
    model = open_model(AutoModel, checkpoint, **options).eval().requires_grad_(False)
    check_audio_encoder(model, checkpoint)
    return model


def check_audio_encoder(model: PreTrainedModel, name: str | Path) -> None:
    """Raise a ValueError for a model that does not read waveforms."""
    if model.main_input_name != "input_values" or not hasattr(model, "_get_feat_extract_output_lengths"):
        raise ValueError(f"{name} reads {model.main_input_name}: only encoders of waveforms can be read here.")


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise a ValueError for a layer that an encoder does not have; they are numbered as in `hidden_states`."""
    last = model.config.num_hidden_layers
    for layer in layers:
        if not 0 <= layer <= last:
            raise ValueError(f"`layers` has {layer}, but the encoder has layers 0 to {last}.")
    if not layers:
        raise ValueError(f"`layers` is empty: name at least one layer from 0 to {last}.")


def pad_waveforms(extractor, waveforms: Sequence[np.ndarray]) -> BatchFeature:
    """
    `BatchFeature` of 16 kHz waveforms, each `(num_samples,)`: `input_values` as the checkpoint's feature extractor
    wants them, zero-padded, and `attention_mask`, both `(batch_size, longest)`.
    """
    return extractor(
        list(waveforms), sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
    )


def reads_padding(config: PreTrainedConfig) -> bool:
    """
    Whether padding changes what an encoder makes of a clip, by its configuration: through a group norm over the
    clip (HuBERT and wav2vec 2.0 base), a batch norm of the positions, or convolutions behind the front end
    (data2vec-audio, Wav2Vec2-Conformer, adapters). Taken to be so of kinds that are not known.
    """
    if config.model_type == "sjepa":
        return False
    norms_frames = config.model_type in LEAVE_PADDING_OUT and config.feat_extract_norm == "layer"
    return not norms_frames or getattr(config, "conv_pos_batch_norm", False) or getattr(config, "add_adapter", False)


@torch.no_grad()
def hidden_layers(
    model: PreTrainedModel,
    input_values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layers: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Hidden states of a padded batch, each clip getting what it gets alone: encoders that read padding too are given one
    clip at a time.

    Args:
        model: an encoder, in evaluation mode.
        input_values, attention_mask (`(batch_size, num_samples)`): as the encoder takes them.
        layers: numbered as in `hidden_states`; later ones do not run in S-JEPA. None gives all.

    Returns:
        `(batch_size, num_layers, sequence_length, hidden_size)`, and real frames of each clip, `(batch_size,)`.

    Raises:
        ValueError: for padding on the left, and for an encoder whose hidden states are not one a frame.
    """
    samples = torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
    if attention_mask is not None:
        check_right_padded(attention_mask)
        samples = real_samples(attention_mask)
    lengths = model._get_feat_extract_output_lengths(samples)
    padded = bool((samples < input_values.shape[1]).any())
    if padded and reads_padding(model.config):
        alone = [
            _read(model, clip[None, :size], None, layers)[0] for clip, size in zip(input_values, samples.tolist())
        ]
        states = alone[0].new_zeros(len(alone), len(alone[0]), int(lengths.max()), alone[0].shape[-1])
        for row, of_clip in zip(states, alone):
            row[:, : of_clip.shape[1]] = of_clip
        return states, lengths
    return _read(model, input_values, attention_mask if padded else None, layers), lengths


def _read(model, input_values, attention_mask, layers: Sequence[int] | None) -> torch.Tensor:
    if layers is not None and model.config.model_type == "sjepa":
        return torch.stack(layer_states(model, input_values, attention_mask, layers), dim=1)
    states = model(input_values, attention_mask, output_hidden_states=True, return_dict=True).hidden_states
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(input_values.shape[1])))
    if states[0].shape[1] != frames:
        raise ValueError(
            f"The encoder gives {states[0].shape[1]} hidden states where it counts {frames} frames"
            f" ({type(model).__name__}, {input_values.shape[1]} samples): take one without pooling or adapters over"
            " time."
        )
    return torch.stack(states if layers is None else [states[layer] for layer in layers], dim=1)


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of names, shapes and values of all weights and saved buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        value = value.detach().cpu().contiguous().flatten()  # of no dimension, it has no bytes to view
        digest.update(value.view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()[:32]
