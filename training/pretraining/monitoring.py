"""Monitoring: the metrics of a step, their history file, trackers, the progress bar, and a warning on collapse."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from tqdm.auto import tqdm

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from sjepa_hf.durations import duration
from sjepa_hf.measures import entropy_bits
from sjepa_hf.saving import write_text_aside
from training.pretraining.hidden_frames import ClipMeanMonitor, hidden_frame_metrics
from training.pretraining.run import Run


logger = logging.getLogger(__name__)
HISTORY = "metrics.jsonl"
LIVE_SHARE = 0.01  # a component is live while its weight is at least this share of the uniform one
COLLAPSES = (  # figure, the value below which it tells of a collapse, of which one, and what helps
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
)


@torch.no_grad()
def target_metrics(
    mixture: DiagonalGaussianMixture, targets: torch.Tensor, output: SJepaForPreTrainingOutput, positions: torch.Tensor
) -> dict[str, float]:
    """
    Figures about the targets and predictions at flat `positions` (masked frames) of one micro-batch.

    `baseline_kl` (nats) is the divergence of the mixture's weights as a constant prediction: a model that has learned
    anything is below it. At temperature 1 no constant is better in the long run; targets of a higher one have a mean
    that is flatter than the weights, so that a constant too may lie somewhat below.
    """
    targets = targets.flatten(0, 1)[positions]
    predictions = output.logits.flatten(0, 1)[positions].float().softmax(-1)
    weights = mixture.weights
    figures = {
        "baseline_kl": -(torch.special.entr(targets).sum(-1) + targets @ mixture.log_weights()).mean(),
        "target_entropy_bits": entropy_bits(targets).mean(),
        "predictor_entropy_bits": entropy_bits(predictions).mean(),
        "target_perplexity": 2 ** entropy_bits(targets.mean(0)),
        "prediction_perplexity": 2 ** entropy_bits(predictions.mean(0)),
        "mixture_perplexity": 2 ** entropy_bits(weights),
        "live_components": (weights >= LIVE_SHARE / len(weights)).sum(),
    }
    return {name: value.item() for name, value in figures.items()}


def loss_parts(output: SJepaForPreTrainingOutput) -> dict[str, tuple[torch.Tensor, int]]:
    """
    The parts of the loss and, where there are several, the `loss` that is minimised: each summed over its frames of a
    micro-batch, with their number, for `Monitor.count_step`.
    """
    masked, visible = output.num_masked_frames, output.num_visible_frames
    parts = {"masked_kl": (output.masked_loss, masked)}
    if output.visible_loss is not None:
        parts["visible_kl"] = output.visible_loss, visible
    if output.frozen_loss is not None:
        parts["frozen_kl"] = output.frozen_loss, masked + visible
    if len(parts) > 1:
        parts["loss"] = output.loss, masked + visible
    return {name: (mean.detach() * frames, frames) for name, (mean, frames) in parts.items()}


def collapse_warnings(metrics: dict, hidden_size: int, num_components: int) -> dict[str, str]:
    """
    Sentences about what has collapsed, or is about to, by the name of the figure: predictions, targets, features.
    Empty when all is well.
    """
    sentences = {}
    for name, floor, what, remedy in COLLAPSES:
        floor = min(floor, num_components**0.5)  # where there are few: that of half the highest entropy
        if metrics.get(name, math.inf) < floor:
            sentences[name] = f"COLLAPSE: {what} ({name} {metrics[name]:.2f}, below {floor:.3g}): {remedy}"
    ranks = metrics.get("effective_ranks")
    floor = max(2.0, 0.01 * hidden_size)
    if ranks and min(ranks) < floor:
        worst = min(range(len(ranks)), key=ranks.__getitem__)
        sentences["effective_ranks"] = (
            f"COLLAPSE: the features of layer {worst} have an effective rank of {ranks[worst]:.1f} out of"
            f" {hidden_size}, below {floor:.1f}: the encoder is collapsing onto a few directions"
        )
    return sentences


class Monitor:
    """
    Averages losses between two lines of metrics without waiting for the device, and writes the lines.

    Args:
        run (`Run`): whose progress bar begins now; its output directory gets the history file, one JSON object a line.
    """

    def __init__(self, run: Run):
        self.accelerator = run.accelerator
        self.history = run.output_dir / HISTORY
        # `None`: where a person watches; a file gets a line of the log with each line of metrics.
        disable = None if run.accelerator.is_local_main_process else True
        self.bar = tqdm(total=run.schedule.total_steps, initial=run.state.step, disable=disable, unit="step")
        if run.accelerator.is_main_process:
            forget_after(self.history, run.state.step)
        self._run = run
        self._since, self._step_then, self._seconds_then = time.monotonic(), run.state.step, None  # of the last line
        self._clip_mean = ClipMeanMonitor(run.arguments.run)
        self._next_warning: dict[tuple[int, str], int] = {}  # step, by phase and figure

    def count_step(self, sums: list[dict], norm: torch.Tensor, broken: torch.Tensor) -> None:
        """
        A step is done.

        Args:
            sums: [`loss_parts`] of each micro-batch.
            norm: of the gradient, `()`.
            broken: whether the gradient is NaN or infinite, so that none of this counts, `()`.
        """
        for parts in (*sums, {"gradient_norm": (norm.detach(), 1)}):
            for name, (value, count) in parts.items():
                total, number = self._run.loss_sums.get(name, (0.0, 0.0))
                total, number = total + torch.where(broken, 0, value), number + torch.where(broken, 0, count)
                self._run.loss_sums[name] = total, number
        self.bar.update(1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that neither the bar nor the rate of audio counts: a mixture is being fitted."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began
        self.bar.unpause()

    def line(
        self, batch: dict, posteriors: torch.Tensor, output: SJepaForPreTrainingOutput, ranks: list[float] | None
    ) -> dict:
        """
        One line of the history; the sums of the losses begin anew. Every process must call it.

        Args:
            batch, posteriors, output: of one micro-batch: its audio, its targets, what was predicted.
            ranks: effective rank of each layer, where it was measured.
        """
        run, state = self._run, self._run.state
        step = state.step - 1  # as the schedule counts
        totals, run.loss_sums = run.totals(), {}
        metrics = {
            "step": state.step,
            "phase": run.schedule.phase(step),
            "hours_seen": totals.seconds / 3600,
            "learning_rate": run.schedule.learning_rate(step),
            "padded_share": 1 - totals.samples_real / max(totals.samples_padded, 1),
            "skipped_clips": totals.skipped,
            "skipped_steps": int(run.skipped_steps),
            **means(totals.losses),
            **target_metrics(run.model.mixture, posteriors, output, batch["masked_positions"]),
            **hidden_frame_metrics(run.model.mixture, posteriors, output, batch),
        }
        if metrics["phase"] == 2:
            metrics |= {
                "ema_decay": run.schedule.ema_decay(step),
                "reseeded_components": state.reseeded_components,
                "layer_scores": run.layer_choice.scores,
            }
            if not run.arguments.targets.target_layers:
                metrics["active_layer"] = run.layer_choice.active
        if ranks is not None:
            metrics["effective_ranks"] = ranks
        return metrics

    def write(self, metrics: dict) -> None:
        """One line of metrics: history, trackers, bar or log; and a word on collapse or where nothing is learned."""
        now, seconds_seen = time.monotonic(), 3600 * metrics["hours_seen"]
        step_seconds = None
        if self._seconds_then is not None:
            metrics["audio_seconds_per_second"] = (seconds_seen - self._seconds_then) / (now - self._since)
            step_seconds = (now - self._since) / (metrics["step"] - self._step_then)
        self._since, self._step_then, self._seconds_then = now, metrics["step"], seconds_seen
        metrics["resident_gib"] = resident_gib()
        if not self.accelerator.is_main_process:
            return
        metrics = {k: v for k, v in metrics.items() if not isinstance(v, float) or math.isfinite(v)}
        if not all(map(math.isfinite, metrics.get("effective_ranks", []))):
            ranks = metrics.pop("effective_ranks")
            logger.warning(
                "Step %d: features are not finite, and effective ranks left out: %s.", metrics["step"], ranks
            )
        try:
            with self.history.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:  # a full disk is no reason to stop
            logger.error("Metrics of step %d could not be written: %s.", metrics["step"], error)
        flat = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        flat |= {f"effective_rank/layer_{i}": rank for i, rank in enumerate(metrics.get("effective_ranks", []))}
        for name in ("masked_kl", "clip_mean_kl"):
            by_distance = enumerate(metrics.get(f"{name}_by_distance", []), 1)
            flat |= {f"{name}_by_distance/{d}": value for d, value in by_distance if value is not None}
        try:
            self.accelerator.log(flat, step=metrics["step"])
        except OSError as error:  # nor is a tracker that cannot write, or is out of reach
            logger.error("`report_to` gets nothing from step %d on: %s.", metrics["step"], error)
            self.accelerator.trackers = []
        self._show(metrics, step_seconds)
        self._warn(metrics)

    def _show(self, metrics: dict, step_seconds: float | None) -> None:
        """Losses and speed in the progress bar, or in the log, with the time left, where stderr is no terminal."""
        shown = [
            ("masked_kl", "masked KL {:.3f} nats"),
            ("clip_mean_kl", "clip's mean guess {:.3f}"),
            ("baseline_kl", "constant guess {:.3f}"),
            ("audio_seconds_per_second", "{:.0f} s of audio/s"),
        ]
        parts = [text.format(metrics[name]) for name, text in shown if name in metrics]
        figures = ", ".join([*parts, f"{100 * metrics['padded_share']:.1f} % padding"])
        self.bar.set_description(f"phase {metrics['phase']}")
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            step, total = metrics["step"], self._run.schedule.total_steps
            if step_seconds is not None and step < total:
                figures += f"; about {duration(step_seconds * (total - step))} left"
            logger.info("Step %s of %s, phase %d: %s.", f"{step:,}", f"{total:,}", metrics["phase"], figures)

    def _warn(self, metrics: dict) -> None:
        """Each figure is told of at once, then only after twice the steps, in each phase anew."""
        step, model = metrics["step"], self._run.model
        collapses = collapse_warnings(metrics, model.config.hidden_size, model.mixture.num_components)
        for figure, sentence in (collapses | self._clip_mean.observe(metrics)).items():
            key = (metrics["phase"], figure)
            if step >= self._next_warning.get(key, 0):
                self._next_warning[key] = 2 * step
                logger.warning("Step %d: %s.", step, sentence)


def means(sums: dict[str, Sequence[float]]) -> dict[str, float]:
    """Mean of each `(sum, count)`; those of count 0 are left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def resident_gib() -> float:
    """Memory of this process and its workers in GiB; pages that they share are shared out among them (Linux)."""
    process = psutil.Process()
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            try:
                memory = member.memory_full_info()
            except psutil.AccessDenied:  # macOS refuses it of other processes
                memory = member.memory_info()
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
