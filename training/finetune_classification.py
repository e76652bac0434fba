"""Fine-tune an encoder to classify clips: keywords, intents, emotions, speakers.

    python -m training.finetune_classification --model_name_or_path runs/mine/final --train_data clips/ \\
        --output_dir runs/keywords
    python -m training.finetune_classification --model_name_or_path microsoft/wavlm-base --train_data train/ \\
        --eval_data dev/ --test_data test/ --label_column intent --frozen true --output_dir runs/intents

Labels stand in a column (metadata.csv, manifest, Parquet); a folder with a subfolder for each class needs none.
Without `--config` the settings are those of `training/recipes/finetune_classification.yaml`; there and on the command
line any field below and any of `transformers.TrainingArguments` can stand.

The result is `OUTPUT_DIR/final`: `pipeline("audio-classification", "OUTPUT_DIR/final")` opens it. Beside the model lie
results.json and learning_curve.png, and with `--lora_rank` the adapters by themselves in `adapter/`.
"""

import logging
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForAudioClassification, TrainingArguments, Wav2Vec2FeatureExtractor, set_seed

from sjepa_hf.command import command, once
from training.common.learned import judge_classes
from training.common.naming import several
from training.common.progress import Heartbeat
from training.data.labelled import LABEL_COLUMNS, LabelledClips, choose_column
from training.finetuning.arguments import FineTuningArguments, FineTuningSettings, finetuning_settings
from training.finetuning.classification import (
    ClassificationCollator,
    accuracy_and_f1,
    check_labels_known,
    class_names,
    unscored_classes,
)
from training.finetuning.data import by_length, open_splits
from training.finetuning.model import open_extractor, open_with_head, scored_at_once
from training.finetuning.plan import log_plan
from training.finetuning.result import FineTuningResult, save_output
from training.finetuning.resuming import check_classes, check_weights
from training.finetuning.trainer import FineTuner, run_training
from training.finetuning.trainer_settings import settle_steps


logger = logging.getLogger(__name__)

RECIPE = Path(__file__).parent / "recipes" / "finetune_classification.yaml"
HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "loss": False}


@dataclass
class ClassificationArguments(FineTuningArguments):
    """What classification needs besides: labels."""

    label_column: str | None = field(
        default=None, metadata={"help": f"Column of the labels. Default: the first of {', '.join(LABEL_COLUMNS)}."}
    )
    frozen: bool = field(
        default=False, metadata={"help": "Train the head alone, on a learned average of all layers, as SUPERB does."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.frozen and (self.from_scratch or self.lora_rank or self.freeze_encoder_steps or self.reinit_layers):
            raise ValueError(
                "`frozen` trains the head alone: it goes with none of from_scratch, lora_rank, freeze_encoder_steps,"
                " reinit_layers."
            )


@dataclass
class ClassificationFineTuning:
    """A run that is ready to start."""

    arguments: ClassificationArguments
    hub: dict | None
    trainer: FineTuner
    extractor: Wav2Vec2FeatureExtractor
    evaluation: dict[str, LabelledClips]
    test: dict[str, LabelledClips]
    unscored: list[str]


@command
def main(argv: list[str] | None = None) -> None:
    """Run the fine-tuning that the command line asks for."""
    with Heartbeat("opening checkpoint and data") as heartbeat, settings(argv) as asked:
        run = prepare(*asked)
        if not run.arguments.dry_run:
            train(run, heartbeat)


def settings(argv: list[str] | None = None) -> AbstractContextManager[FineTuningSettings]:
    """What the command line asks for; within a `with` block the output directory is this run's alone."""
    description = "Fine-tune an encoder for the classification of clips."
    return finetuning_settings(argv, ClassificationArguments, RECIPE, description, HIGHER_IS_BETTER)


def prepare(
    arguments: ClassificationArguments, training: TrainingArguments, hub: dict | None
) -> ClassificationFineTuning:
    """
    Everything before the first step, from the `settings`.

    Raises:
        ValueError: for settings, data or a checkpoint that cannot work.
    """
    extractor = open_extractor(arguments.model_name_or_path, AutoModelForAudioClassification, "classification")
    set_seed(training.seed)

    column = choose_column(
        arguments.train_data,
        arguments.label_column,
        LABEL_COLUMNS,
        "label_column",
        "labels",
        arguments.audio_column,
        True,
    )
    train, evaluation, test = open_splits(arguments, column, classes=True)
    held_out = () if arguments.eval_data else evaluation.values()
    names = class_names([train, *held_out], column)
    for name, clips in (evaluation | test).items():
        check_labels_known(clips.labels[column], names, name)
    counts = Counter(train.labels[column])
    logger.info("Training clips of each class: %s.", ", ".join(f"{name} {counts[name]}" for name in names))
    if untrained := [name for name in names if not counts[name]]:
        message = "%d of %d classes have all their clips held out and cannot be learned: %s. Give eval_data."
        logger.log(once(logging.WARNING), message, len(untrained), len(names), several(untrained))
    unscored = unscored_classes(names, list(evaluation.values()), column)
    if unscored:
        message = "%d of %d classes have no clip for evaluation, and no accuracy or F1 tells of them: %s."
        logger.log(once(logging.WARNING), message, len(unscored), len(names), several(unscored))

    label2id = {name: number for number, name in enumerate(names)}
    changes = {"use_weighted_layer_sum": True} if arguments.frozen else {}
    resumed = training.resume_from_checkpoint
    if resumed:
        check_classes(resumed, names)
    model = open_with_head(
        AutoModelForAudioClassification,
        arguments,
        num_labels=len(names),
        id2label={number: name for name, number in label2id.items()},
        label2id=label2id,
        problem_type="single_label_classification",
        **changes,
    )
    if arguments.frozen:
        model.freeze_base_model()
    if resumed:
        check_weights(resumed, model)
    settle_steps(training, arguments.min_steps, len(train))
    trainer = FineTuner(
        model=model,
        args=training,
        data_collator=ClassificationCollator(extractor, column, label2id),
        train_dataset=train.filled(),
        eval_dataset=by_length(list(evaluation.values())),
        compute_metrics=accuracy_and_f1,
        head_learning_rate=arguments.head_learning_rate,
        p_noise=arguments.p_noise,
        frozen_encoder=arguments.frozen,
        save_beside=extractor.save_pretrained,
    )
    log_plan(trainer, evaluation | test, arguments)
    return ClassificationFineTuning(arguments, hub, trainer, extractor, evaluation, test, unscored)


def train(run: ClassificationFineTuning, heartbeat: Heartbeat) -> None:
    """Train, score the best model on every source, and save it with its feature extractor."""
    model = run_training(run.trainer, run.arguments, heartbeat, run.hub)
    batch_size = run.trainer.args.per_device_eval_batch_size
    run.trainer.args.per_device_eval_batch_size = scored_at_once(model, batch_size)
    scores, answers, labels = {}, [], []
    for name, clips in (run.evaluation | run.test).items():
        prediction = run.trainer.predict(by_length([clips]), metric_key_prefix="test")
        scores[name] = {"clips": len(clips)} | {
            key: prediction.metrics[f"test_{key}"] for key in ("accuracy", "macro_f1")
        }
        if name in run.evaluation:
            answers += [model.config.id2label[i] for i in prediction.predictions.argmax(-1).tolist()]
            labels += [model.config.id2label[i] for i in prediction.label_ids.tolist()]
    run.trainer.end()
    if run.trainer.is_world_process_zero():
        outcome = FineTuningResult.of(run.trainer, judge_classes(answers, labels), scores)
        outcome.unscored = run.unscored
        metrics = ("accuracy", "macro_f1")
        save_output(run.trainer, run.arguments, model, outcome, metrics, run.extractor.save_pretrained, run.hub)


if __name__ == "__main__":
    main()
