"""Extraction: units or features of the clips of a shard, batched by length and decoded ahead, long clips in pieces."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sjepa_hf.encoding import check_layers, hidden_layers, open_audio_encoder, pad_waveforms, weights_hash
from sjepa_hf.fitted_units import FittedUnits, holds_fitted_units
from sjepa_hf.frames import FRAMES_PER_SECOND, HOP, SAMPLING_RATE, WINDOW, frame_lengths
from sjepa_hf.opening import EMA_ENCODER, open_config, open_feature_extractor, open_pretraining, open_with_ema
from sjepa_hf.units import units_of
from training.corpus.reading import Row
from training.data.batches import batches_by_length
from training.data.clips import Clip
from training.data.waveforms import BadAudio


CONTEXT = 100  # frames (2 s) that a piece of a long clip reads beyond its ends, and does not give
AHEAD = 2  # batches that are decoded while one is encoded

Extract = Callable[[Sequence[np.ndarray], Sequence[str]], list[dict[str, torch.Tensor]]]
"""Waveforms `(num_samples,)` at 16 kHz, and names for messages -> for each clip tensors `(num_frames, ...)` by key."""


class Extractor(NamedTuple):
    """A function from clips to tensors, and its description in plain values: equal if it computes the same."""

    extract: Extract
    description: dict


class Clusters(NamedTuple):
    """What `unit_extractor` reads; `posteriors(input_values, attention_mask)` are `(batch_size, num_frames, size)`."""

    posteriors: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    model: torch.nn.Module
    extractor: Callable
    size: int
    description: dict
    ema: bool = False


def unit_extractor(checkpoint: str, source: str | None, top_k: int, device, precision: str = "fp32") -> Extractor:
    """
    Units of a pretraining checkpoint (`source`: its `"mixture"`, by default, or `"prediction"`), or of a directory of
    [`FittedUnits`]: `units` `(T,)`, and with `top_k` `top_units` and `posteriors` `(T, k)`.

    Raises:
        ValueError: if the checkpoint does not open, has no clusters, or fitted ones alone, where a `source` is named.
    """
    if holds_fitted_units(checkpoint):
        clusters = _fitted_clusters(checkpoint, source, device)
    else:
        clusters = _pretrained_clusters(checkpoint, source or "mixture", device)
    if not 0 <= top_k <= clusters.size:
        raise ValueError(f"`top_k` is {top_k}; it must lie between 0 and the {clusters.size} components.")

    @torch.inference_mode()
    def extract(waveforms: Sequence[np.ndarray], names: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        inputs = pad_waveforms(clusters.extractor, waveforms).to(device)
        with autocast(device, precision):
            posteriors = clusters.posteriors(inputs["input_values"], inputs["attention_mask"])
        lengths = torch.tensor([frame_lengths(len(waveform)) for waveform in waveforms], device=posteriors.device)
        units = units_of(posteriors.float(), lengths, top_k)
        rows = []
        for number, (length, name) in enumerate(zip(lengths.tolist(), names)):
            check_finite(name, posteriors[number, :length])
            row = {"units": units.units[number, :length].int().cpu()}
            if top_k:
                row["top_units"] = units.top_units[number, :length].int().cpu()
                row["posteriors"] = units.top_posteriors[number, :length].half().cpu()
            rows.append(row)
        return rows

    known = {"checkpoint": checkpoint, "weights": weights_hash(clusters.model), **clusters.description}
    known |= {"components": clusters.size, "top_k": top_k, "ema encoder": clusters.ema, "precision": precision}
    return Extractor(extract, known)


def _fitted_clusters(checkpoint: str, source: str | None, device) -> Clusters:
    if source is not None:
        raise ValueError(f"`clusters` is {source!r}, but those of {checkpoint} were fitted: leave it out.")
    fitted = FittedUnits.from_pretrained(checkpoint, device=device)
    described = {"clusters": "fitted", "layers": fitted.layers, "encoder weights": fitted.description["weights"]}
    model = fitted.mixture
    return Clusters(fitted.unit_posteriors, model, fitted.extractor, model.num_components, described)


def _pretrained_clusters(checkpoint: str, source: str, device) -> Clusters:
    model = open_pretraining(checkpoint) if open_config(checkpoint).model_type == "sjepa" else None
    if model is None:
        raise ValueError(
            f"{checkpoint} has no clusters that can be read, as S-JEPA's checkpoints of pretraining have: fit some"
            " to one of its layers (python -m training.fit_units) and give their directory."
        )
    over_encoder = source == "mixture" and model.config.mixture_features == "encoder"
    ema = over_encoder and (Path(checkpoint) / EMA_ENCODER).is_file()
    model = (open_with_ema(checkpoint) if ema else model).eval().to(device)
    described = {
        "clusters": source,
        "mixture features": model.config.mixture_features,
        "layers": model.config.mixture_layers if source == "mixture" else None,
    }
    extractor, size = open_feature_extractor(checkpoint), model.mixture.num_components
    clusters = Clusters(lambda *audio: model.unit_posteriors(*audio, source), model, extractor, size, described, ema)
    clusters.posteriors(torch.zeros(1, WINDOW, device=device), None)  # an error of the model comes at once
    return clusters


def layer_extractor(checkpoint: str, layers: Sequence[int], mean: bool, device, precision: str = "fp32") -> Extractor:
    """
    Hidden states of layers of any encoder: fp32 `features` `(T, num_layers, hidden_size)`, or of their `mean`.

    Raises:
        ValueError: if the encoder does not open or has no such layer.
    """
    model = open_audio_encoder(checkpoint).to(device)
    check_layers(model, layers)
    extractor = open_feature_extractor(checkpoint)

    @torch.inference_mode()
    def extract(waveforms: Sequence[np.ndarray], names: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        inputs = pad_waveforms(extractor, waveforms).to(device)
        with autocast(device, precision):
            states, lengths = hidden_layers(model, inputs["input_values"], inputs["attention_mask"], layers)
        states = states.float().mean(1, keepdim=True) if mean else states.float()
        frames = states.cpu().transpose(1, 2)
        return [{"features": clip[:length]} for clip, length in zip(frames, lengths.tolist())]

    known = {"checkpoint": checkpoint, "weights": weights_hash(model), "layers": list(layers), "mean": mean}
    return Extractor(extract, known | {"precision": precision})


def autocast(device, precision: str):
    """Half precision where it is asked for."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class Extracted(NamedTuple):
    """
    Results of a shard, by the place of a clip in it: tensors and seconds of usable clips, name and reason of the
    others.
    """

    tensors: dict[int, dict[str, torch.Tensor]]
    seconds: dict[int, float]
    bad: dict[int, tuple[str, str]]


def extract_shard(
    extract: Extract,
    rows: Sequence[Row],
    batch_seconds: float,
    max_seconds: float,
    pooled: bool = False,
    dtype: torch.dtype | None = None,
    threads: int = 1,
    progress: Callable[[int, float], None] = lambda clips, seconds: None,
) -> Extracted:
    """
    Everything of a shard. Batches are a function of its clips alone.

    Args:
        extract: of an [`Extractor`].
        rows: its clips.
        batch_seconds: what a batch may hold, padding included.
        max_seconds: longer clips are read in pieces of that length with 2 s more on either side.
        pooled: the mean over a clip's frames in place of the frames.
        dtype: of what is kept; None: as it comes.
        threads: that decode, ahead of the encoder.
        progress: told clips, usable or not, and seconds of each batch.

    Raises:
        ValueError: if what is made of a clip has NaN or infinity; it names the clip.
    """
    done = Extracted({}, {}, {})
    with ThreadPoolExecutor(threads) as pool:
        lengths = {}
        for place, length in enumerate(pool.map(_length, [row.clip for row in rows])):
            if isinstance(length, BadAudio):
                done.bad[place] = (rows[place].clip.name, length.reason)
                progress(1, 0.0)
            else:
                lengths[place] = length
        for places, decoded in _ahead(pool, rows, batches_by_length(lengths, batch_seconds)):
            read = {place: future.result() for place, future in zip(places, decoded)}
            bad = {place: clip.reason for place, clip in read.items() if isinstance(clip, BadAudio)}
            done.bad.update({place: (rows[place].clip.name, reason) for place, reason in bad.items()})
            waveforms = {place: waveform for place, waveform in read.items() if place not in bad}
            names = [rows[place].clip.name for place in waveforms]
            if max(map(len, waveforms.values()), default=0) > max_seconds * SAMPLING_RATE:
                made = [in_whole_pieces(extract, *clip, max_seconds) for clip in zip(waveforms.values(), names)]
            else:
                made = extract(list(waveforms.values()), names) if waveforms else []
            for name, (place, waveform), tensors in zip(names, waveforms.items(), made):
                if pooled:
                    tensors = {key: value.mean(0, keepdim=True) for key, value in tensors.items()}
                if dtype is not None:
                    tensors = {key: value.to(dtype) for key, value in tensors.items()}
                check_finite(name, *tensors.values())
                done.tensors[place], done.seconds[place] = tensors, len(waveform) / SAMPLING_RATE
            progress(len(places), sum(map(len, waveforms.values())) / SAMPLING_RATE)
    return done


def check_finite(name: str, *values: torch.Tensor) -> None:
    """Raise a ValueError that names a clip if what is made of it has NaN, which no unit would show, or infinity."""
    if not all(value.isfinite().all() for value in values):
        raise ValueError(
            f"{name}: the encoder's output, or what would be written of it, has NaN or infinity. Take --precision bf16"
            " or fp32; for features also --dtype float32."
        )


def _length(clip: Clip) -> int | BadAudio:
    """Samples of a clip, by which it is batched: as its list says, or else its file, or what is wrong with that."""
    try:
        return clip.listed_length()
    except BadAudio as error:
        return error


def _read(clip: Clip) -> np.ndarray | BadAudio:
    """Samples of a clip, `(num_samples,)`, or what is wrong with it."""
    try:
        return clip.read()
    except BadAudio as error:
        return error


def _ahead(pool: ThreadPoolExecutor, rows: Sequence[Row], groups: list[list[int]]) -> Iterator[tuple[list[int], list]]:
    """Each batch with its clips, while the next ones are decoded."""
    started = []
    for number, places in enumerate(groups):
        while len(started) < min(number + 1 + AHEAD, len(groups)):
            started.append([pool.submit(_read, rows[place].clip) for place in groups[len(started)]])
        yield places, started[number]
        started[number] = None


def in_whole_pieces(extract: Extract, waveform: np.ndarray, name: str, max_seconds: float) -> dict[str, torch.Tensor]:
    """
    A long clip in pieces that meet without a gap: as many frames, at the same times, as the whole has. Their values
    are those of a piece with 2 s around it, not of the whole: attention and norm reach no further.
    """
    total, size = frame_lengths(len(waveform)), round(max_seconds * FRAMES_PER_SECOND)
    parts = []
    for first in range(0, total, size):
        last = min(first + size, total)
        begin, end = max(0, first - CONTEXT), min(total, last + CONTEXT)
        piece = extract([waveform[begin * HOP : (end - 1) * HOP + WINDOW]], [name])[0]
        if any(len(value) != end - begin for value in piece.values()):
            raise ValueError(
                f"The encoder does not make a frame of {WINDOW} samples every {HOP}, and clips longer than"
                f" `max_seconds` ({max_seconds:g}) cannot be read in pieces: raise it to the longest clip's."
            )
        parts.append({key: value[first - begin : last - begin] for key, value in piece.items()})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
