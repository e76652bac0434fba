"""Metrics as `evaluate` modules that need no network, and leave nothing on the disk.

    load_metric("wer").compute(predictions=["the cat"], references=["the cat sat"])   # {"wer": 0.333...}

| name | predictions and references | value |
|---|---|---|
| `wer`, `cer` | transcripts | word and character error rate |
| `accuracy`, `macro_f1` | class names, or class numbers | share of right answers; mean over classes of F1 |
| `slot_type_f1`, `slot_value_cer` | for each utterance, a list of `(slot, value)` pairs | SUPERB's slot filling |

All values are fractions, 0.12 rather than 12 %; error rates can exceed 1.
"""

import tempfile

import evaluate

from training.common.metrics.classification import Accuracy, MacroF1
from training.common.metrics.slots import SlotTypeF1, SlotValueCer
from training.common.metrics.speech import Cer, Wer


METRICS = {
    "wer": Wer,
    "cer": Cer,
    "accuracy": Accuracy,
    "macro_f1": MacroF1,
    "slot_type_f1": SlotTypeF1,
    "slot_value_cer": SlotValueCer,
}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """
    The metric of that name; `.compute(predictions=[...], references=[...])` returns `{name: float}`.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric '{name}': choose {', '.join(METRICS)}.")
    with tempfile.TemporaryDirectory() as folder:  # it makes one, also in memory, by default below HOME
        return METRICS[name](keep_in_memory=True, cache_dir=folder)


__all__ = ["load_metric"]
