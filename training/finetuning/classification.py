"""Classification head: its classes, batches and scores."""

from collections.abc import Sequence

import torch
from transformers import EvalPrediction, Wav2Vec2FeatureExtractor

from sjepa_hf.encoding import pad_waveforms
from training.common.learned import judge_classes
from training.common.metrics import load_metric
from training.common.naming import several
from training.data.labelled import LabelledClips


def class_names(parts: Sequence[LabelledClips], column: str) -> list[str]:
    """All labels in order. Raises a ValueError if there is only one."""
    names = sorted({label for clips in parts for label in clips.labels[column]})
    if len(names) < 2:
        raise ValueError(
            f"All training clips have the label '{names[0]}' in `{column}`: there is nothing to tell apart."
        )
    return names


def unscored_classes(names: Sequence[str], evaluation: Sequence[LabelledClips], column: str) -> list[str]:
    """The classes of which no clip is there to choose and judge the result by: no figure tells of them."""
    scored = {label for clips in evaluation for label in clips.labels[column]}
    return [name for name in names if name not in scored]


def check_labels_known(labels: Sequence[str], names: Sequence[str], data: str) -> None:
    """Raise a ValueError if the training data lacks a label."""
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(f"{data} has labels that train_data has not: {several(unknown)}.")


class ClassificationCollator:
    """Clips with class names in `column` -> waveforms with attention mask, and `labels` `(batch_size,)`."""

    def __init__(self, extractor: Wav2Vec2FeatureExtractor, column: str, label2id: dict[str, int]):
        self.extractor, self.column, self.label2id = extractor, column, label2id

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = pad_waveforms(self.extractor, [example["input_values"] for example in examples])
        return dict(batch) | {"labels": torch.tensor([self.label2id[example[self.column]] for example in examples])}


def accuracy_and_f1(prediction: EvalPrediction) -> dict[str, float]:
    """
    Accuracy and macro-averaged F1 of logits `(clips, classes)` against class numbers `(clips,)`, and `learned`, 1 or
    0, where that can be told.
    """
    answers = {"predictions": prediction.predictions.argmax(-1), "references": prediction.label_ids}
    verdict = judge_classes(answers["predictions"].tolist(), answers["references"].tolist())
    learned = {} if verdict.learned is None else {"learned": float(verdict.learned)}
    return load_metric("accuracy").compute(**answers) | load_metric("macro_f1").compute(**answers) | learned
