"""SUPERB's metrics of slot filling (arXiv 2105.01051), as s3prl defines them in `s3prl/metric/slot_filling.py`.

An utterance is a list of `(slot, value)` pairs; a slot may occur several times, and an utterance may have none:
`[("size", "large"), ("drink", "latte")]`. A dict of slot to value becomes one by `list(slots.items())`.
"""

from collections import defaultdict
from functools import partial

import evaluate
import jiwer
from datasets import Features, List, Value


Slots = list[tuple[str, str]]


class SlotMetric(evaluate.Metric):
    """Slots and values of each utterance."""

    def _info(self) -> evaluate.MetricInfo:
        pairs = List(List(Value("string")))
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="https://arxiv.org/abs/2105.01051",
            features=Features({"predictions": pairs, "references": pairs}),
        )


class SlotTypeF1(SlotMetric):
    """F1 between the sets of slots that are named, whatever their values, averaged over utterances."""

    def _compute(self, predictions: list[Slots], references: list[Slots]) -> dict[str, float]:
        scores = [set_f1(set(_values(p)), set(_values(r))) for p, r in zip(predictions, references, strict=True)]
        return {"slot_type_f1": sum(scores) / len(scores)}


class SlotValueCer(SlotMetric):
    """
    Character error rate of the values of all reference slots together. Each is compared with the predicted value of
    the same slot that is nearest to it (lowest CER), with nothing if there is none; slots that only the prediction has
    cost nothing.
    """

    def _compute(self, predictions: list[Slots], references: list[Slots]) -> dict[str, float]:
        wanted, found = [], []
        for prediction, reference in zip(predictions, references, strict=True):
            predicted = _values(prediction)
            for slot, value in reference:
                wanted.append(value)
                found.append(min(predicted.get(slot, [""]), key=partial(jiwer.cer, value)))
        if not any(wanted):
            raise ValueError("`slot_value_cer` needs a reference with at least one slot value.")
        return {"slot_value_cer": float(jiwer.cer(wanted, found))}


def set_f1(found: set[str], wanted: set[str]) -> float:
    """F1 between two sets; 1 if both are empty."""
    if not found and not wanted:
        return 1.0
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def _values(slots: Slots) -> dict[str, list[str]]:
    """The values of each slot."""
    values = defaultdict(list)
    for slot, value in slots:
        values[slot].append(value)
    return values
