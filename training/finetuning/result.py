"""Result of a fine-tuning: the model with its scores, the record of the run, the learning curve, and all of it on the
Hub where that is asked for."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import matplotlib.pyplot as plt
from torch import nn

from sjepa_hf.contents import RESULTS
from sjepa_hf.saving import written_aside
from sjepa_hf.scores import THIS_MODEL, Score, data_name, data_names, grouped, write_scores
from training.common.figures import save
from training.common.learned import Verdict
from training.common.naming import several
from training.common.output_directory import FINAL, step_of
from training.common.publishing import publish
from training.common.run_record import base_of, write_record
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.data import HELD_OUT
from training.finetuning.trainer import FineTuner


logger = logging.getLogger(__name__)

CURVES = {"loss": "training loss", "eval_loss": "loss on held-out clips", "eval_wer": "WER", "eval_cer": "CER"}
DECODINGS = {"greedy": "greedy decoding", "lm": "beam search with an n-gram"}
TRAINER_SETTINGS = (
    "learning_rate lr_scheduler_type warmup_steps weight_decay per_device_train_batch_size gradient_accumulation_steps"
    " max_grad_norm bf16 fp16 seed"
).split()


@dataclass
class FineTuningResult:
    """
    The result of a fine-tuning.

    Args:
        steps: that were trained.
        best_step: of the evaluation that chose the result; None: the result is that of the last step.
        learned: whether the result does better than chance on the clips that it was chosen by; None: not to be told.
        verdict: why.
        scores: of each source: `clips`, their number, and metrics, of CTC for each way of decoding.
        unscored: classes that no evaluation clip has.
    """

    steps: int
    best_step: int | None
    learned: bool | None
    verdict: str
    scores: dict
    unscored: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, trainer: FineTuner, verdict: Verdict, scores: dict) -> "FineTuningResult":
        """The outcome of a training that has ended, from what its result answers on the evaluation clips."""
        state, training = trainer.state, trainer.args
        chosen = training.load_best_model_at_end and state.best_model_checkpoint is not None
        best_step = step_of(Path(state.best_model_checkpoint)) if chosen else None
        learned, reason = verdict.learned, verdict.reason
        metric = f"eval_{(training.metric_for_best_model or 'loss').removeprefix('eval_')}"
        evaluations = {entry["step"]: entry for entry in state.log_history if metric in entry}
        begun, kept = evaluations.pop(0, None), evaluations.get(best_step or state.global_step)
        worse = (lambda a, b: a <= b) if training.greater_is_better else (lambda a, b: a >= b)
        if begun and kept and worse(kept[metric], begun[metric]):
            went = f"{metric[5:]} was {begun[metric]:.4f} before the first step and is {kept[metric]:.4f}"
            if learned and begun.get("eval_learned"):  # with the checkpoint's head
                reason += f"; but {went}: the steps added nothing"
            else:
                learned, reason = False, went
        elif best_step is not None and len(evaluations) > 2 and best_step == min(evaluations):
            reason += "; but the first evaluation was already the best, and the later steps added nothing"
        return cls(state.global_step, best_step, learned, reason, scores)

    def log(self) -> None:
        """Say in the log whether anything was learned."""
        kept = "that of the last step" if self.best_step is None else f"that of step {self.best_step}, the best"
        verdict = self.verdict
        if self.unscored:
            verdict += f"; nothing was scored of {several(self.unscored)}"
        if self.learned:
            logger.info("Something was learned: %s. The result is %s.", verdict, kept)
        elif self.learned is None:
            logger.warning("Cannot tell whether anything was learned: %s. The result is %s.", verdict, kept)
        else:
            logger.warning(
                "NOTHING WAS LEARNED: %s. The result is %s, and not usable as it is. What helps: more steps"
                " (--max_steps, --num_train_epochs), more clips, another --learning_rate, or a checkpoint that"
                " pretraining has taught more.",
                verdict,
                kept,
            )


def save_output(
    trainer: FineTuner,
    arguments: FineTuningArguments,
    model: nn.Module,
    outcome: FineTuningResult,
    metrics: Sequence[str],
    save_others: Callable[[Path], None],
    hub: dict | None,
) -> None:
    """
    Write `output_dir/final`: the model (adapters merged; they and the head also by themselves in `adapter/`), what
    `save_others(directory)` writes beside it, `results.json` with the outcome, `training.json` with the record of the
    run, and the learning curve. Then push it to `hub`, if that is given.

    Raises:
        NotPushed: if the result is written, but did not reach the Hub.
    """
    final = Path(trainer.args.output_dir) / FINAL
    with written_aside(final) as directory:
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(directory / "adapter")
            (directory / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
            model = model.merge_and_unload()
        model.save_pretrained(directory)
        save_others(directory)
        figures = {name: value for name, value in vars(outcome).items() if name != "scores" and value != []}
        write_scores(directory / RESULTS, score_rows(outcome, arguments), **figures)
        write_record(directory, trainer.accelerator, **run_record(trainer, arguments))
        draw_learning_curve(trainer.state.log_history, metrics, directory / "learning_curve.png")
    for source, values in outcome.scores.items():
        logger.info("%s: %s.", data_name(source), scores_in_words(values))
    outcome.log()
    logger.info("Written to %s.", final)
    if hub:
        publish(final, **hub)


def score_rows(outcome: FineTuningResult, arguments: FineTuningArguments) -> list[Score]:
    """Rows of `results.json`: a figure of the model on a source, without folders of this machine."""
    names = {
        source: data_names(arguments.train_data) if source == HELD_OUT else data_name(source)
        for source in outcome.scores
    }
    for sources in grouped(names, names.get).values():
        if len(sources) > 1:  # of one name: told apart by number
            names |= {source: f"{names[source]} ({number})" for number, source in enumerate(sources, 1)}
    chosen = "last checkpoint"
    if outcome.best_step is not None:
        chosen = f"best checkpoint by held-out clips (step {outcome.best_step})"
    rows = []
    for source, values in outcome.scores.items():
        split = "held-out" if source == HELD_OUT else "validation" if source in (arguments.eval_data or ()) else "test"
        if "greedy" in values:
            task_type = "automatic-speech-recognition"
            by_task = {f"speech recognition, {how}": values[kind] for kind, how in DECODINGS.items() if kind in values}
        else:
            task_type = "audio-classification"
            by_task = {"classification": {name: value for name, value in values.items() if name != "clips"}}
        rows += [
            Score(
                subject=THIS_MODEL,
                task=task,
                task_type=task_type,
                data=names[source],
                split=split,
                metric=metric,
                value=value,
                protocol=f"{values['clips']} {split} clips, {chosen}",
                clips=values["clips"],
                learned=outcome.learned,
            )
            for task, metrics in by_task.items()
            for metric, value in metrics.items()
        ]
    return rows


def scores_in_words(values: dict) -> str:
    """Scores of a source: clips, and each figure as a share of 1 with four digits."""
    parts = [f"{values['clips']} clips"]
    for name, value in values.items():
        if isinstance(value, dict):
            parts.append(f"{name} " + ", ".join(f"{metric.upper()} {share:.4f}" for metric, share in value.items()))
        elif name != "clips":
            parts.append(f"{name.replace('_', ' ')} {value:.4f}")
    return ", ".join(parts)


def run_record(trainer: FineTuner, arguments: FineTuningArguments) -> dict:
    """What `training.json` tells of a fine-tuning, besides hardware and software."""
    clips = trainer.train_dataset
    unset = {f.name: f.default for f in fields(arguments)}
    chosen = {name: value for name, value in vars(arguments).items() if value is not None and value != unset[name]}
    shown_elsewhere = ("model_name_or_path", "train_data", "eval_data", "test_data", "from_scratch", "dry_run")
    settings = {name: value for name, value in chosen.items() if name not in shown_elsewhere}
    taken = None
    if not trainer.args.resume_from_checkpoint:  # else it would be the time of the last session alone
        taken = next((line["train_runtime"] for line in trainer.state.log_history if "train_runtime" in line), None)
    return {
        "kind": "fine-tuning",
        **base_of(arguments.model_name_or_path),
        "from_scratch": arguments.from_scratch,
        "data": {
            "sources": list(map(data_name, arguments.train_data)),
            "clips": len(clips),
            "hours": round(clips.hours, 4),
        },
        "steps": trainer.state.global_step,
        "hours_taken": None if taken is None else taken / 3600,
        "settings": settings | {name: getattr(trainer.args, name) for name in TRAINER_SETTINGS},
    }


def draw_learning_curve(history: Sequence[dict], metrics: Sequence[str], path: Path) -> None:
    """
    Training and evaluation loss, and the metrics of each evaluation (`eval_...`), over optimizer steps; a panel for
    what was measured, and no picture where nothing was.
    """
    panels = []
    scores = [f"eval_{metric}" for metric in metrics]
    named = {name: name.removeprefix("eval_").replace("_", " ") for name in scores}
    shown = named | CURVES
    for label, names in (
        ("loss (nats)", ("loss", "eval_loss")),
        (" and ".join(shown[name] for name in scores) + " (share)", scores),
    ):
        curves = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in names}
        if any(curves.values()):
            panels.append((label, {shown[name]: points for name, points in curves.items() if points}))
    if not panels:
        return
    size = (8, 1 + 2.6 * len(panels))
    figure, rows = plt.subplots(len(panels), figsize=size, layout="constrained", sharex=True, squeeze=False)
    for axes, (label, curves) in zip(rows[:, 0], panels):
        for name, points in curves.items():
            axes.plot(*zip(*points), ".-" if len(points) < 30 else "-", label=name, lw=1.5)
        axes.set(ylabel=label)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    rows[0, 0].set_title("Fine-tuning")
    rows[-1, 0].set_xlabel("optimizer steps")
    rows[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)
