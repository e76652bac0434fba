"""S-JEPA for Hugging Face Transformers. Importing the package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
)

from .configuration_sjepa import SJepaConfig
from .mixture import DiagonalGaussianMixture, SufficientStatistics
from .modeling_sjepa import SJepaModel, SJepaPreTrainedModel
from .modeling_sjepa_heads import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForSequenceClassification,
    SJepaForXVector,
)
from .modeling_sjepa_pretraining import SJepaForPreTraining, SJepaForPreTrainingOutput


AutoConfig.register("sjepa", SJepaConfig, exist_ok=True)
AutoModel.register(SJepaConfig, SJepaModel, exist_ok=True)
AutoModelForPreTraining.register(SJepaConfig, SJepaForPreTraining, exist_ok=True)
AutoModelForCTC.register(SJepaConfig, SJepaForCTC, exist_ok=True)
AutoModelForAudioClassification.register(SJepaConfig, SJepaForSequenceClassification, exist_ok=True)
AutoModelForAudioFrameClassification.register(SJepaConfig, SJepaForAudioFrameClassification, exist_ok=True)
AutoModelForAudioXVector.register(SJepaConfig, SJepaForXVector, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "DiagonalGaussianMixture",
    "SJepaConfig",
    "SJepaForAudioFrameClassification",
    "SJepaForCTC",
    "SJepaForPreTraining",
    "SJepaForPreTrainingOutput",
    "SJepaForSequenceClassification",
    "SJepaForXVector",
    "SJepaModel",
    "SJepaPreTrainedModel",
    "SufficientStatistics",
]
