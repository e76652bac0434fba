"""All classes in one module. `auto_map` points here, so that a checkpoint's code always travels as a whole."""

from .configuration_sjepa import SJepaConfig
from .modeling_sjepa import SJepaModel
from .modeling_sjepa_heads import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForSequenceClassification,
    SJepaForXVector,
)
from .modeling_sjepa_pretraining import SJepaForPreTraining


__all__ = [
    "SJepaConfig",
    "SJepaForAudioFrameClassification",
    "SJepaForCTC",
    "SJepaForPreTraining",
    "SJepaForSequenceClassification",
    "SJepaForXVector",
    "SJepaModel",
]
