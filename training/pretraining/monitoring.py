"""What a run tells: metrics of a step, a history file, trackers, the progress bar, and a warning on collapse."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining, SJepaForPreTrainingOutput
from sjepa_hf.measures import entropy_bits
from sjepa_hf.saving import write_text_aside
from training.common.progress import Forecast, Progress
from training.pretraining.schedules import Schedule


logger = logging.getLogger(__name__)
HISTORY = "metrics.jsonl"
LIVE_SHARE = 0.01  # a component is live while its weight is at least this share of the uniform one


@torch.no_grad()
def target_metrics(
    mixture: DiagonalGaussianMixture, targets: torch.Tensor, output: SJepaForPreTrainingOutput, positions: torch.Tensor
) -> dict[str, float]:
    """
    Figures about the targets and predictions at flat `positions` (masked frames) of one micro-batch.

    `baseline_kl` (nats) is the divergence of the best constant prediction for these targets in the long run, the
    mixture's weights: a model that has learned anything is below it.
    """
    targets = targets.flatten(0, 1)[positions]
    predictions = output.logits.flatten(0, 1)[positions].float().softmax(-1)
    weights = mixture.weights
    log_weights = weights.clamp_min(torch.finfo(torch.float32).tiny).log()
    figures = {
        "baseline_kl": -(torch.special.entr(targets).sum(-1) + targets @ log_weights).mean(),
        "target_entropy_bits": entropy_bits(targets).mean(),
        "predictor_entropy_bits": entropy_bits(predictions).mean(),
        "target_perplexity": 2 ** entropy_bits(targets.mean(0)),
        "prediction_perplexity": 2 ** entropy_bits(predictions.mean(0)),
        "mixture_perplexity": 2 ** entropy_bits(weights),
        "live_components": (weights >= LIVE_SHARE / len(weights)).sum(),
    }
    return {name: value.item() for name, value in figures.items()}


def loss_sums(output: SJepaForPreTrainingOutput) -> dict[str, torch.Tensor | int]:
    """Divergences summed over the frames of a micro-batch, and their numbers, as `Monitor.add` takes them."""
    sums = {
        "masked_kl": output.masked_loss.detach() * output.num_masked_frames,
        "masked_frames": output.num_masked_frames,
    }
    if output.visible_loss is not None:
        sums["visible_kl"] = output.visible_loss.detach() * output.num_visible_frames
        sums["visible_frames"] = output.num_visible_frames
    if output.frozen_loss is not None:
        frames = output.num_masked_frames + output.num_visible_frames
        sums |= {"frozen_kl": output.frozen_loss.detach() * frames, "frozen_frames": frames}
    return sums


@torch.no_grad()
def predictor_entropy(
    model: SJepaForPreTraining, batches: Iterable[dict], num_frames: int, accelerator: Accelerator
) -> np.ndarray:
    """Entropy in bits of the prediction at each of some `num_frames` real frames of this rank, without masking."""
    model.eval()
    progress = Progress("Predictor entropy", accelerator.is_main_process)
    found, frames = [], 0
    for batch in batches:
        with accelerator.autocast():
            logits = model(
                batch["input_values"].to(accelerator.device), batch["attention_mask"].to(accelerator.device)
            ).logits
        positions = torch.cat([batch["masked_positions"], batch["visible_positions"]]).to(logits.device)
        found.append(entropy_bits(logits.flatten(0, 1)[positions].float().softmax(-1)).cpu())
        frames += len(positions)
        progress(f"{frames:,} of {num_frames:,} frames")
        if frames >= num_frames:
            break
    model.train()
    return torch.cat(found).numpy()


def collapse_warnings(metrics: dict, hidden_size: int) -> list[str]:
    """Sentences about what has collapsed, or is about to: predictions, targets, features. Empty when all is well."""
    found = []
    for name, floor, said, remedy in (
        (
            "prediction_perplexity",
            2,
            "all frames of a batch get nearly the same prediction",
            "lower the learning rate or lengthen the warm-up",
        ),
        (
            "mixture_perplexity",
            3,
            "almost all weight lies on one component of the mixture",
            "seed the mixture anew from an earlier checkpoint",
        ),
        (
            "target_perplexity",
            2,
            "all frames of a batch have nearly the same target",
            "look at the audio, and at the mixture's weights (mixture_perplexity)",
        ),
    ):
        if metrics.get(name, math.inf) < floor:
            found.append(f"{said} ({name} {metrics[name]:.2f}, below {floor}): {remedy}")
    ranks = metrics.get("effective_ranks")
    floor = max(2.0, 0.01 * hidden_size)
    if ranks and min(ranks) < floor:
        worst = min(range(len(ranks)), key=ranks.__getitem__)
        found.append(
            f"the features of layer {worst} have an effective rank of {ranks[worst]:.1f} out of {hidden_size}, below"
            f" {floor:.1f}: the encoder is collapsing onto a few directions"
        )
    return found


class Monitor:
    """
    Averages losses between two lines of metrics without waiting for the device, and writes the lines.

    Args:
        accelerator (`Accelerator`): its trackers get the metrics.
        output_dir (`Path`): where the history file lies; one JSON object a line.
        schedule (`Schedule`), start_step (`int`): for the progress bar, which begins now.
        hidden_size (`int`): the largest rank that features can have.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        schedule: Schedule,
        start_step: int,
        hidden_size: int,
    ):
        self.accelerator = accelerator
        self.history = output_dir / HISTORY
        self.hidden_size = hidden_size
        self.bar = tqdm(
            total=schedule.total_steps, initial=start_step, disable=not accelerator.is_local_main_process, unit="step"
        )
        self.forecast = Forecast({1: schedule.run.phase1_steps, 2: schedule.total_steps}, accelerator.is_main_process)
        if accelerator.is_main_process:
            forget_after(self.history, start_step)
        self._sums: dict[str, torch.Tensor | float] = {}
        self._since, self._seconds_then = time.monotonic(), None

    def add(self, **sums: torch.Tensor | float) -> None:
        """Add to the running sums: `masked_kl` with `masked_frames`, `visible_kl` with `visible_frames`, ..."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def count_step(self, step: int, phase: int) -> None:
        """Step `step` of the run, which belonged to `phase`, is done."""
        self.bar.update(1)
        self.forecast.step(step, phase)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that neither the bar nor the rate of audio counts: a mixture is being fitted."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began
        self.bar.unpause()
        self.forecast.pause()

    def averages(self, device: torch.device) -> dict[str, float]:
        """Frame means over all ranks since the last call, and an empty slate."""
        names = sorted(self._sums)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        values = torch.tensor([float(self._sums[name]) for name in names], dtype=dtype, device=device)
        total = dict(zip(names, self.accelerator.reduce(values, reduction="sum").tolist(), strict=True))
        self._sums = {}
        means = {}
        for part in ("masked", "visible", "frozen"):
            if total.get(f"{part}_frames"):
                means[f"{part}_kl"] = total[f"{part}_kl"] / total[f"{part}_frames"]
        means["gradient_norm"] = total["gradient_norm"] / max(total["steps"], 1)
        return means

    def write(self, metrics: dict, seconds_seen: float) -> None:
        """One line of metrics: history, trackers, progress bar; and a loud word where something has collapsed."""
        now = time.monotonic()
        if self._seconds_then is not None:
            metrics["audio_seconds_per_second"] = (seconds_seen - self._seconds_then) / (now - self._since)
        self._since, self._seconds_then = now, seconds_seen
        metrics["resident_gib"] = resident_gib()
        if not self.accelerator.is_main_process:
            return
        metrics = {k: v for k, v in metrics.items() if not isinstance(v, float) or math.isfinite(v)}
        try:
            with self.history.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:  # a full disk is no reason to stop
            logger.error("Metrics of step %d could not be written: %s.", metrics["step"], error)
        flat = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        flat |= {f"effective_rank/layer_{i}": rank for i, rank in enumerate(metrics.get("effective_ranks", []))}
        self.accelerator.log(flat, step=metrics["step"])
        self.bar.set_description(f"phase {metrics['phase']}")
        shown = [
            ("masked_kl", "masked KL {:.3f} nats"),
            ("baseline_kl", "constant guess {:.3f}"),
            ("audio_seconds_per_second", "{:.0f} s of audio/s"),
        ]
        parts = [text.format(metrics[name]) for name, text in shown if name in metrics]
        self.bar.set_postfix_str(", ".join([*parts, f"{100 * metrics['padded_share']:.1f} % padding"]))
        for sentence in collapse_warnings(metrics, self.hidden_size):
            logger.warning("COLLAPSE at step %d: %s.", metrics["step"], sentence)


def resident_gib() -> float:
    """Memory of this process and its workers in GiB; pages that they share are shared out among them (Linux)."""
    process = psutil.Process()
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            memory = each.memory_full_info()
        except psutil.Error:  # it has just ended, or may not be looked at
            continue
        total += getattr(memory, "pss", memory.rss)
    return total / 2**30


def forget_after(history: Path, step: int) -> None:
    """Drop lines of the history beyond `step`: a resumed run writes them again."""
    if history.is_file():
        kept = [json.dumps(line) + "\n" for line in read_history(history) if line["step"] <= step]
        write_text_aside(history, "".join(kept))


def read_history(history: Path) -> list[dict]:
    """The lines of a history file but for torn ones, as a killed run or a full disk leaves them."""
    text = history.read_text()
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a line is torn and left out: %s...", history, line[:60])
    return lines
