"""S-JEPA for Hugging Face Transformers. Importing the package registers it with the Auto classes."""

from importlib.util import find_spec


if find_spec("torchaudio"):  # not needed here, but transformers imports it wherever it is installed
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"The installed torchaudio is built for another torch and cannot be imported ({error}), and transformers"
            " imports it. sjepa_hf needs none: `pip uninstall torchaudio`, or install the build that belongs to your"
            " torch (for the CPU: `pip install --force-reinstall --no-deps torchaudio --index-url"
            " https://download.pytorch.org/whl/cpu`)."
        ) from None

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
)

from . import auto_classes  # noqa: F401  (registers the tokenizer)
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
