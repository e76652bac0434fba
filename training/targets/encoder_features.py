"""Encoder features, what the online mixture sees: one layer or the mean of several, each clip normalised or not, all
dimensions or their whitened principal components.
"""

import torch
from torch import nn

from sjepa_hf import SJepaModel
from sjepa_hf.frames import check_frames, frame_lengths
from sjepa_hf.layer_features import SJepaWhitening, read_layers
from training.common.processes import Coordinator, share
from training.data.batches import real_frames


FRAMES_AT_ONCE = 10_000  # in double precision: 61 MB of 768 dimensions


class TargetFeatures:
    """
    Args:
        encoder (`SJepaModel`): whose layers are read.
        layers (`tuple[int]`): layers whose mean is taken, numbered as in `hidden_states` (0 is the input of the first
            Transformer layer); `None`: the `active_layer` of each call.
        instance_norm (`bool`): whether each layer of each clip gets mean 0 and variance 1 over the clip's frames, per
            dimension, as in data2vec: takes the speaker's and the channel's share off.
        num_components (`int`): whitened principal components that are kept; `None` keeps the features as they are.

    Attributes:
        whitening (`nn.Module`): the principal components, once `fit`; the identity without `num_components`.
    """

    def __init__(
        self,
        encoder: SJepaModel,
        layers: tuple[int, ...] | None = None,
        instance_norm: bool = False,
        num_components: int | None = None,
    ):
        check_frames(encoder.config, "The encoder")
        self.encoder = encoder
        self.layers = layers
        self.instance_norm = instance_norm
        self.num_components = num_components
        self.whitening = nn.Identity()
        if num_components is not None:
            self.whitening = SJepaWhitening(encoder.config.hidden_size, num_components).to(encoder.device)

    def full(self, batch: dict, active_layer: int) -> torch.Tensor:
        """Features before the principal components, `(batch_size, sequence_length, hidden_size)`, fp32."""
        real = real_frames(batch, frame_lengths(batch["input_values"].shape[1])) if self.instance_norm else None
        layers = self.layers or (active_layer,)
        return read_layers(self.encoder, batch["input_values"], batch["attention_mask"], layers, real)

    @torch.no_grad()
    def fit(self, sample: torch.Tensor, coordinator: Coordinator) -> None:
        """
        Principal components of frames `(N, hidden_size)` that every process holds, each scaled to variance 1; all take
        the first process's.

        Raises:
            Interrupted: if the run is to end meanwhile, or there are too few frames.
        """
        if self.num_components is None:
            return
        with coordinator.waiting():
            mean, directions = whitened_components(sample, self.num_components)
        coordinator.barrier()
        self.whitening.mean.copy_(mean)
        self.whitening.directions.copy_(directions)
        share(self.whitening.buffers(), coordinator.accelerator)


def whitened_components(sample: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean `(H,)` of frames `(N, H)` and the `(H, count)` that maps centred frames to their leading principal components,
    each of variance 1. Components of variance 0 are not blown up; signs are fixed, so that it is one answer.

    Raises:
        ValueError: if there are fewer dimensions or frames than components.
    """
    if count > min(sample.shape):
        raise ValueError(
            f"`target_dims` asks for {count} principal components of {sample.shape[0]} frames of {sample.shape[1]}"
            " dimensions: ask for fewer."
        )
    parts = sample.cpu().split(FRAMES_AT_ONCE)
    mean = sum(part.double().sum(0) for part in parts) / len(sample)
    centred = (part.double() - mean for part in parts)
    variances, vectors = torch.linalg.eigh(sum(part.T @ part for part in centred) / len(sample))  # in rising order
    variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    scale = variances.clamp_min(1e-8 * variances[0].clamp_min(1e-12)).rsqrt()
    return mean.float(), (vectors * scale).float()
