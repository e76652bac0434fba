"""Which layer the targets are taken from: effective rank, smoothed over the run (paper, section 3.3)."""

from dataclasses import dataclass, field


@dataclass
class LayerChoice:
    """
    Smoothed effective rank of every layer, and the layer that leads.

    Args:
        active (`int`): layer whose features make the targets, numbered as in `hidden_states`: 0 is the input of the
            first Transformer layer, 1 its output.
        decay (`float`): how much of the old score a new measure leaves. The first measure is taken whole: scores that
            start at zero would favour whichever layer is measured first.
        adaptive (`bool`): whether `active` follows the scores, from layer 1 on: the input is only ever chosen by hand.
        scores (`list[float]`): smoothed effective rank of each layer, 0 first; empty before the first measure.
    """

    active: int
    decay: float = 0.37
    adaptive: bool = True
    scores: list[float] = field(default_factory=list)

    def observe(self, ranks: list[float]) -> bool:
        """Take in a new measure of each layer's effective rank, 0 first. Returns whether the active layer changed."""
        if not self.scores:
            self.scores = list(ranks)
        else:
            pairs = zip(self.scores, ranks, strict=True)
            self.scores = [self.decay * score + (1 - self.decay) * rank for score, rank in pairs]
        best = max(range(1, len(self.scores)), key=self.scores.__getitem__)
        changed = self.adaptive and best != self.active
        if changed:
            self.active = best
        return changed
