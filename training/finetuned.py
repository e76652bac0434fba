"""What fine-tuning leaves: the model with its scores, the record of the run, the learning curve, and all of it on the
Hub where that is asked for."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib
from torch import nn

from sjepa_hf.model_card import RESULTS
from sjepa_hf.saving import written_aside
from sjepa_hf.scores import data_name
from training.finetuning import FineTuner, FineTuningArguments
from training.publishing import publish
from training.record import base_of, write_record


matplotlib.use("Agg")
import matplotlib.pyplot as plt


logger = logging.getLogger(__name__)

CURVES = {"loss": "training loss", "eval_loss": "loss on held-out clips", "eval_wer": "WER", "eval_cer": "CER"}
TRAINER_SETTINGS = (
    "learning_rate lr_scheduler_type warmup_steps weight_decay per_device_train_batch_size gradient_accumulation_steps"
    " max_grad_norm bf16 fp16 seed"
).split()


def save_output(
    trainer: FineTuner,
    arguments: FineTuningArguments,
    model: nn.Module,
    scores: dict,
    metrics: Sequence[str],
    save_others: Callable[[Path], None],
) -> None:
    """
    Write `output_dir/final`: the model (adapters merged; they and the head also by themselves in `adapter/`), what
    `save_others(directory)` writes beside it, `results.json` with the scores, `training.json` with the record of the
    run, and the learning curve. Then push it, where that is asked for.

    Raises:
        NotPushed: if the result is written, but did not reach the Hub.
    """
    final = Path(trainer.args.output_dir) / "final"
    best = trainer.state.best_global_step or trainer.state.global_step
    names = {source: data_name(source) for source in scores}
    if len(set(names.values())) == len(names):
        scores = {names[source]: values for source, values in scores.items()}
    results = {"steps": trainer.state.global_step, "best_step": best, "scores": scores}
    with written_aside(final) as directory:
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(directory / "adapter")
            (directory / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
            model = model.merge_and_unload()
        model.save_pretrained(directory)
        save_others(directory)
        (directory / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        write_record(directory, trainer.accelerator, **run_record(trainer, arguments))
        draw_learning_curve(trainer.state.log_history, metrics, directory / "learning_curve.png")
    logger.info("Written to %s: %s", final, json.dumps(scores, ensure_ascii=False))
    if arguments.hub:
        publish(final, **arguments.hub)


def run_record(trainer: FineTuner, arguments: FineTuningArguments) -> dict:
    """What `training.json` tells of a fine-tuning, besides hardware and software."""
    clips = trainer.train_dataset
    unset = {f.name: f.default for f in fields(arguments)}
    chosen = {name: value for name, value in vars(arguments).items() if value is not None and value != unset[name]}
    shown_elsewhere = ("model_name_or_path", "train_data", "eval_data", "test_data", "from_scratch", "hub")
    settings = {name: value for name, value in chosen.items() if name not in shown_elsewhere}
    taken = next(
        (line["train_runtime"] for line in reversed(trainer.state.log_history) if "train_runtime" in line), None
    )
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
