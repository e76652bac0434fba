"""Fitted units: clusters over layers of any encoder of Transformers, in a directory that names what they belong to.

units = FittedUnits.fit("facebook/hubert-base-ls960", clips, layers=[6], num_components=500)
units.save_pretrained("hubert-l6-k500")
FittedUnits.from_pretrained("hubert-l6-k500").units(input_values, attention_mask).units
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .encoding import check_layers, hidden_layers, open_audio_encoder, pad_waveforms, weights_hash
from .float32 import at_least_float32
from .frames import check_frames
from .kmeans import kmeans, nearest
from .mixture import DiagonalGaussianMixture
from .opening import open_feature_extractor, why
from .saving import files_written_aside
from .units import SJepaUnitsOutput, units_of


DESCRIPTION, CLUSTERS = "units.json", "clusters.safetensors"
METHODS = ("kmeans", "mixture")
KMEANS_PASSES = 20


class FittedUnits:
    """
    Clusters over the mean of layers of a frozen encoder.

    Args:
        encoder (`PreTrainedModel`): the encoder.
        mixture (`DiagonalGaussianMixture`): the clusters. Those of k-means have equal weights and one variance, the
            mean squared distance to the nearest centroid: the likeliest one is the nearest.
        description (`dict`): what `units.json` holds: encoder, revision, a hash of its weights, layers, components,
            method, frames and seed of the fit.
    """

    def __init__(self, encoder: PreTrainedModel, extractor, mixture: DiagonalGaussianMixture, description: dict):
        check_frames(encoder.config, "The encoder")
        self.encoder, self.extractor, self.mixture, self.description = encoder, extractor, mixture, description

    @property
    def layers(self) -> list[int]:
        """Layers whose mean is clustered, numbered as in `hidden_states`."""
        return self.description["layers"]

    @classmethod
    def fit(
        cls,
        checkpoint: str | Path,
        clips: Iterable[np.ndarray],
        layers: Sequence[int],
        num_components: int = 500,
        method: str = "kmeans",
        max_frames: int = 200_000,
        seed: int = 0,
        device: str = "cpu",
        **options,
    ) -> "FittedUnits":
        """
        Clusters of the frames of clips.

        Args:
            checkpoint: what `AutoModel` opens: a directory, or a name on the Hub.
            clips: waveforms `(num_samples,)` at 16 kHz, in random order: they are read until there are enough frames.
            layers: layers whose mean is clustered, numbered as in `hidden_states`.
            num_components: K.
            method: `"kmeans"`, or `"mixture"`: diagonal Gaussians by EM.
            max_frames: frames to fit to.
            options: of `from_pretrained`, such as `revision`.

        Raises:
            ValueError: if the encoder does not open or has no such layer, or there are fewer frames than components.
        """
        if method not in METHODS:
            raise ValueError(f"`method` is {method!r}; choose one of {', '.join(METHODS)}.")
        encoder = open_audio_encoder(checkpoint, **options).to(device)
        check_layers(encoder, layers)
        extractor = open_feature_extractor(checkpoint, **options)
        check_frames(encoder.config, "The encoder")
        batches = (pad_waveforms(extractor, [clip]).to(device) for clip in clips)
        frames = (mean_of_layers(encoder, layers, **batch)[0][0].cpu() for batch in batches)
        sample = first_frames(frames, max_frames)
        if len(sample) < num_components:
            more = "more audio" if max_frames >= num_components else f"a larger `max_frames` than {max_frames}"
            raise ValueError(
                f"Cannot fit {num_components} components to {len(sample)} frames: give {more} or fewer components."
            )
        mixture = DiagonalGaussianMixture(num_components, sample.shape[1])
        generator = torch.Generator().manual_seed(seed)
        if method == "mixture":
            mixture.fit(sample, generator=generator)
        else:
            centroids = kmeans(sample, num_components, KMEANS_PASSES, generator=generator)
            distances = (sample - centroids[nearest(sample, centroids)]).square().mean()
            mixture.means.copy_(centroids)
            mixture.variances.fill_(distances.clamp_min(1e-6))
        local = os.path.isdir(checkpoint)
        description = {
            "encoder": os.path.abspath(checkpoint) if local else str(checkpoint),
            "revision": None if local else getattr(encoder.config, "_commit_hash", None),
            "weights": weights_hash(encoder),
            "layers": list(layers),
            "num_components": num_components,
            "method": method,
            "frames": len(sample),
            "seed": seed,
        }
        return cls(encoder, extractor, mixture.to(device), description)

    def inputs(self, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_values` and `attention_mask` of waveforms `(num_samples,)` at 16 kHz, on the encoder's device."""
        batch = pad_waveforms(self.extractor, waveforms).to(self.encoder.device)
        return batch["input_values"], batch["attention_mask"]

    def features(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is clustered, `(batch_size, sequence_length, hidden_size)` in fp32, and real frames `(batch_size,)`."""
        return mean_of_layers(self.encoder, self.layers, input_values, attention_mask)

    def unit_posteriors(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Posterior of each cluster at each frame, `(batch_size, sequence_length, num_components)`; padded frames hold
        anything.
        """
        return self.mixture.clip_posteriors(*self.features(input_values, attention_mask))

    def units(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, top_k: int = 0
    ) -> SJepaUnitsOutput:
        """Units of a padded batch, as [`sjepa_hf.SJepaForPreTraining.units`] gives them."""
        features, lengths = self.features(input_values, attention_mask)
        return units_of(self.mixture.clip_posteriors(features, lengths), lengths, top_k)

    def save_pretrained(self, directory: str | Path) -> None:
        """
        Write `units.json` and `clusters.safetensors` into a directory, whole or not at all; what else lies there
        stays. The encoder is named, not copied.
        """
        with files_written_aside(directory) as aside:
            (aside / DESCRIPTION).write_text(json.dumps(self.description, indent=1) + "\n", encoding="utf-8")
            save_file({n: b.cpu().contiguous() for n, b in self.mixture.state_dict().items()}, aside / CLUSTERS)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, encoder: str | Path | None = None, device: str = "cpu"
    ) -> "FittedUnits":
        """
        Open a directory, and the encoder that it names.

        Args:
            directory: what `save_pretrained` has written.
            encoder: where that encoder lies now, if it has moved.

        Raises:
            ValueError: if either does not open, or the encoder has other weights than the one that was clustered.
        """
        directory = Path(directory)
        try:
            description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            size = description["num_components"]
            tensors = load_file(directory / CLUSTERS)
            mixture = DiagonalGaussianMixture(size, tensors["means"].shape[1])
            mixture.load_state_dict(tensors)
            name, revision = encoder or description["encoder"], None if encoder else description["revision"]
            layers, weights = description["layers"], description["weights"]
        except Exception as error:  # of whatever is damaged
            raise ValueError(f"{directory} holds no fitted units that open: {why(error)}") from error
        options = {} if revision is None else {"revision": revision}
        model = open_audio_encoder(name, **options)
        if weights_hash(model) != weights:
            raise ValueError(
                f"{directory} was fitted to another encoder than {name} is now (layers {layers}, {size} components):"
                " its weights differ. Fit anew, or name the old one."
            )
        extractor = open_feature_extractor(name, **options)
        return cls(model.to(device), extractor, mixture.to(device), description)


def mean_of_layers(encoder, layers: Sequence[int], input_values, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of layers of a padded batch, and real frames, as [`FittedUnits.features`] gives them."""
    states, lengths = hidden_layers(encoder, input_values, attention_mask, layers)
    return at_least_float32(states).mean(1), lengths


def first_frames(clips: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """At most `count` frames from the start of all clips `(num_frames, D)`, of which no more than needed are read."""
    read, size = [], 0
    for frames in clips:
        read.append(frames)
        size += len(frames)
        if size >= count:
            break
    return torch.cat(read)[:count] if read else torch.empty(0, 0)


def holds_fitted_units(directory: str | Path) -> bool:
    """Whether a directory is one of [`FittedUnits`]."""
    return (Path(directory) / DESCRIPTION).is_file()
