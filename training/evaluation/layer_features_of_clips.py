"""For probes, in memory: features of chosen frames, or means over whole clips, of every layer in one pass."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from sjepa_hf.frames import frame_lengths
from training.data.labelled import LabelledClips
from training.evaluation.encoders import Encoder


ReadLayers = Callable[[np.ndarray], np.ndarray]
"""Samples `(num_samples,)` at 16 kHz -> features `(num_layers, num_frames, num_features)` in float32."""

WHOLE_CLIP = -1


class Rows(NamedTuple):
    """
    Where features are wanted: row n is frame `frames[n]` of clip `clips[n]`, or the mean over the clip's frames where
    that is `WHOLE_CLIP`. Both are integers `(num_rows,)`.
    """

    clips: np.ndarray
    frames: np.ndarray


def features_of_layers(encoder: Encoder, layers: Sequence[int] | None = None) -> ReadLayers:
    """
    Features of an encoder's layers in one pass.

    Args:
        encoder: from `training.evaluation.encoders.open_encoder`.
        layers: numbers of the layers to give, 0 being what enters the first Transformer layer; None gives all.

    Raises:
        ValueError: (when called) a layer does not exist, or the encoder gives no frame of 25 ms every 20 ms.
    """

    def extract(samples: np.ndarray) -> np.ndarray:
        states = encoder([samples])[0]
        if states.shape[1] != frame_lengths(len(samples)):
            raise ValueError(
                f"{encoder.name} gives {states.shape[1]} frames for {len(samples)} samples where a frame of 25 ms"
                f" every 20 ms gives {frame_lengths(len(samples))}: only encoders with those frames can be compared"
                " here."
            )
        missing = [layer for layer in layers or () if layer >= len(states)]
        if missing:
            raise ValueError(f"`layers` has {missing[0]}, but {encoder.name} has layers 0 to {len(states) - 1}.")
        return (states if layers is None else states[list(layers)]).float().cpu().numpy()

    return extract


def readable_clips(clips: LabelledClips, max_clips: int | None, seed: int) -> tuple[LabelledClips, np.ndarray]:
    """
    At most `max_clips` of the clips, drawn at random, without those that cannot be used; and the frames that each
    really has.

    Raises:
        BadAudioError: if too many of them, or all, cannot be used.
    """
    order = np.random.default_rng(seed).permutation(len(clips))[:max_clips]
    kept, lengths = clips.select(sorted(order.tolist())).readable()
    return kept, frame_lengths(np.array(lengths))


def features_at(
    extract: ReadLayers, clips: LabelledClips, rows: dict[str, Rows], description: str
) -> dict[str, np.ndarray]:
    """
    Run every clip that is needed once.

    Returns:
        Features of each set of rows, `(num_layers, num_rows, num_features)` in float32.
    """
    gathered: dict[str, np.ndarray] = {}
    needed = np.unique(np.concatenate([wanted.clips for wanted in rows.values()]))
    for clip in tqdm(needed.tolist(), desc=description, leave=False, disable=None):
        features = extract(clips[clip]["input_values"])  # [layers, T, D]
        mean = features.mean(axis=1, dtype=np.float64, keepdims=True)
        for name, wanted in rows.items():
            if name not in gathered:
                gathered[name] = np.empty((len(features), len(wanted.clips), features.shape[2]), np.float32)
            here = np.flatnonzero(wanted.clips == clip)
            pooled = wanted.frames[here] == WHOLE_CLIP
            gathered[name][:, here[pooled]] = mean
            gathered[name][:, here[~pooled]] = features[:, wanted.frames[here[~pooled]]]
    return gathered
