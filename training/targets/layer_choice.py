"""Layer choice: the layer that targets are read from, by effective rank smoothed over the run (paper, section 3.3)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from sjepa_hf import SJepaModel
from sjepa_hf.frames import real_frames
from sjepa_hf.measures import effective_rank
from training.common.processes import share
from training.targets.sampling import FrameReservoir, smallest


RANK_FRAMES = 2000  # frames that an effective rank is measured on (paper, section 3.3)


@dataclass
class LayerChoice:
    """
    Smoothed effective rank of every layer, and the layer that leads.

    Args:
        active (`int`, *optional*): layer whose features make the targets, numbered as in `hidden_states`: 0 is the
            input of the first Transformer layer, 1 its output. None: not chosen yet.
        decay (`float`): how much of the old score a new measure leaves. The first measure is taken whole: scores that
            start at zero would favour whichever layer is measured first.
        adaptive (`bool`): whether `active` follows the scores, from layer 1 on: the input is only ever chosen by hand.
        scores (`list[float]`): smoothed effective rank of each layer, 0 first; empty before the first measure.
    """

    active: int | None
    decay: float = 0.37
    adaptive: bool = True
    scores: list[float] = field(default_factory=list)

    def choose_first(self, ranks: list[float]) -> None:
        """
        Choose the first layer by each layer's effective rank, 0 first; later measures go on from this one.

        Raises:
            ValueError: if a rank is not finite.
        """
        if broken := [str(layer) for layer, rank in enumerate(ranks) if not math.isfinite(rank)]:
            raise ValueError(
                f"The encoder's features of layer {', '.join(broken)} are not finite, so that none can be chosen by"
                " effective rank: begin with another checkpoint, or with a lower learning rate."
            )
        self.scores = list(ranks)
        self.active = self._leader()

    def observe(self, ranks: list[float]) -> bool:
        """
        Take in a new measure of each layer's effective rank, 0 first; one that is not finite is left out. Returns
        whether the active layer changed.
        """
        if not all(map(math.isfinite, ranks)):
            return False
        if not self.scores:
            self.scores = list(ranks)
        else:
            pairs = zip(self.scores, ranks, strict=True)
            self.scores = [self.decay * score + (1 - self.decay) * rank for score, rank in pairs]
        best = self._leader()
        changed = self.adaptive and best != self.active
        if changed:
            self.active = best
        return changed

    def _leader(self) -> int:
        return max(range(1, len(self.scores)), key=self.scores.__getitem__)


@torch.no_grad()
def layer_ranks(
    encoder: SJepaModel, micro_batches: Iterable[dict], accelerator: Accelerator, seed: int
) -> list[float]:
    """
    Effective rank of the first Transformer layer's input and of every layer's output, as `hidden_states` has them, on
    2,000 random real frames of micro-batches (over all processes), or on all where there are fewer, from one forward
    pass each; fewer frames have lower ranks. The same numbers in every process, and however the batches are split.
    """
    training = encoder.training
    encoder.eval()
    reservoirs = [FrameReservoir(RANK_FRAMES, seed) for _ in range(encoder.config.num_hidden_layers + 1)]
    for batch in micro_batches:
        with accelerator.autocast():
            layers = encoder(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
        real = real_frames(batch["lengths"], layers[0].shape[1])
        for reservoir, layer in zip(reservoirs, layers, strict=True):
            reservoir.add(layer[real], batch["seed"])
    encoder.train(training)
    ranks = []
    for reservoir in reservoirs:
        frames = smallest(*reservoir.sample(), RANK_FRAMES, accelerator)
        ranks.append(effective_rank(frames.to(accelerator.device)))
    ranks = torch.stack(ranks)
    share([ranks], accelerator)  # the last bits must not decide either
    return ranks.tolist()
