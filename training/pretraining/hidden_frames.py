"""Hidden frames: what the prediction knows there, by distance to the nearest visible one, beyond the clip's mean."""

import math
from collections import deque

import torch

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from sjepa_hf.soft_targets import soft_target_divergence
from training.data.masking import FARTHEST, distance_to_visible
from training.pretraining.arguments import RunArguments


PRIOR_FRAMES = 200  # as so many frames do the mixture's weights count in the mean of a clip
FEWEST_STEPS = 1000  # of a phase after its warm-up, before a warning: until then nobody knows more than a clip's mean
LINES = 10  # of metrics that the warning looks at together: one micro-batch is too noisy


@torch.no_grad()
def hidden_frame_metrics(
    mixture: DiagonalGaussianMixture, targets: torch.Tensor, output: SJepaForPreTrainingOutput, batch: dict
) -> dict[str, float | list[float | None]]:
    """
    Divergences in nats at the masked frames of one micro-batch, beside those of the **clip's mean**: the mean target
    of the clip's visible frames, which can be guessed from voice and channel without knowing what is said. The
    mixture's weights count in it as `PRIOR_FRAMES` more; a clip without visible frames has these alone.

    Args:
        mixture: of the targets.
        targets: posteriors `(batch_size, sequence_length, num_components)`.
        output: what was predicted.
        batch: with `masked_positions` and `visible_positions`.

    Returns:
        `clip_mean_kl`; `gain_over_clip_mean`, how far the prediction lies below it at these very frames; and, as lists
        by distance (1, 2, 3, 4, 5 and more frames; None where there is no such frame), `masked_kl_by_distance` and
        `clip_mean_kl_by_distance`. Nothing where no frame is masked.
    """
    positions, (clips, frames, _) = batch["masked_positions"], targets.shape
    if not len(positions):
        return {}
    visible = torch.zeros(clips * frames, dtype=torch.bool, device=targets.device)
    visible[batch["visible_positions"]] = True
    visible = visible.view(clips, frames)
    weights = mixture.weights.clamp_min(torch.finfo(torch.float32).tiny).to(targets.dtype)
    seen = targets.masked_fill(~visible[..., None], 0).sum(1)  # padded frames hold anything
    guesses = (seen + PRIOR_FRAMES * weights) / (visible.sum(1, keepdim=True) + PRIOR_FRAMES)
    hidden = targets.flatten(0, 1)[positions]
    found = torch.stack(
        [
            soft_target_divergence(output.logits.flatten(0, 1)[positions], hidden),
            soft_target_divergence(guesses.log()[positions // frames], hidden),
        ]
    ).float()  # [2, N]
    distances = distance_to_visible(visible).flatten()[positions]
    at = (distances[:, None] == torch.arange(1, FARTHEST + 1, device=distances.device)).float()  # [N, distances]
    means = torch.cat([found.mean(1, keepdim=True), found @ at / at.sum(0)], dim=1)
    (masked, *by_distance), (guess, *guess_by_distance) = means.tolist()
    return {
        "clip_mean_kl": guess,
        "gain_over_clip_mean": guess - masked,
        "masked_kl_by_distance": _or_none(by_distance),
        "clip_mean_kl_by_distance": _or_none(guess_by_distance),
    }


def _or_none(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


class ClipMeanMonitor:
    """
    Tells when the prediction at masked frames, over the last lines of metrics, is no better than the clip's mean.

    Args:
        run (`RunArguments`): steps and warm-up of each phase.
    """

    def __init__(self, run: RunArguments):
        self._run = run
        self._gains: deque[float] = deque(maxlen=LINES)
        self._phase = 0

    def observe(self, metrics: dict) -> dict[str, str]:
        """A sentence by the name of the figure; empty where all is well or learning had no time."""
        phase, step = metrics["phase"], metrics["step"]
        warmup = self._run.phase1_warmup_steps
        if phase == 2:
            step, warmup = step - self._run.phase1_steps, self._run.phase2_warmup_steps
        if phase != self._phase:
            self._phase = phase
            self._gains.clear()
        if "gain_over_clip_mean" in metrics:
            self._gains.append(metrics["gain_over_clip_mean"])
        if step < warmup + FEWEST_STEPS or len(self._gains) < LINES or sum(self._gains) > 0:
            return {}
        return {
            "gain_over_clip_mean": (
                f"at hidden frames the prediction knows nothing of what is said: over the last {LINES} lines its KL"
                f" lies {-sum(self._gains) / LINES:.2f} nats above that of the clip's mean guess (clip_mean_kl), which"
                " knows voice and channel alone"
            )
        }
