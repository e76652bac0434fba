"""S-JEPA for Hugging Face Transformers. Importing the package registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCTC, AutoModelForPreTraining

from .configuration_sjepa import SJepaConfig
from .mixture import DiagonalGaussianMixture, SufficientStatistics
from .modeling_sjepa import SJepaForCTC, SJepaModel, SJepaPreTrainedModel
from .modeling_sjepa_pretraining import SJepaForPreTraining, SJepaForPreTrainingOutput


AutoConfig.register("sjepa", SJepaConfig, exist_ok=True)
AutoModel.register(SJepaConfig, SJepaModel, exist_ok=True)
AutoModelForPreTraining.register(SJepaConfig, SJepaForPreTraining, exist_ok=True)
AutoModelForCTC.register(SJepaConfig, SJepaForCTC, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "DiagonalGaussianMixture",
    "SJepaConfig",
    "SJepaForCTC",
    "SJepaForPreTraining",
    "SJepaForPreTrainingOutput",
    "SJepaModel",
    "SJepaPreTrainedModel",
    "SufficientStatistics",
]
