"""Accuracy and macro-averaged F1 of classified clips."""

import evaluate
from datasets import Features, Value
from sklearn.metrics import accuracy_score, f1_score


class Classification(evaluate.Metric):
    """One answer a clip: class names or class numbers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="https://scikit-learn.org/stable/modules/model_evaluation.html",
            features=[  # names first: as a number, "007" would be "7"
                Features({"predictions": Value(kind), "references": Value(kind)}) for kind in ("string", "int64")
            ],
        )


class Accuracy(Classification):
    """Share of the clips whose class is right."""

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(Classification):
    """F1 of every class that occurs among references or predictions, averaged with equal weights."""

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}
