"""Auto classes: all classes in one module, where `auto_map` points, so that a checkpoint's code travels as a whole.

The tokenizer is registered here, so that Transformers knows it with a checkpoint's code alone too.
"""

from transformers.models.auto import tokenization_auto

from .configuration_sjepa import SJepaConfig  # first: it says which transformers is needed

# From the Hub, Transformers copies a file at a time, and of a copy that broke off, or that another process is at, it
# looks for the files alone that are named here.
from .float32 import Float32Buffers  # noqa: F401
from .frame_features import FRAME_FEATURES  # noqa: F401
from .frames import SAMPLING_RATE  # noqa: F401
from .front_end import build_front_end  # noqa: F401
from .hmm import TransitionModel  # noqa: F401
from .hmm_mixture import HmmMixture  # noqa: F401
from .input_checks import check_input  # noqa: F401
from .kmeans import kmeans  # noqa: F401
from .layer_features import read_layers  # noqa: F401
from .mixture import DiagonalGaussianMixture  # noqa: F401
from .modeling_sjepa import SJepaModel
from .modeling_sjepa_heads import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForSequenceClassification,
    SJepaForXVector,
)
from .modeling_sjepa_pretraining import SJepaForPreTraining
from .predictor import SJepaPredictor  # noqa: F401
from .soft_targets import soft_target_divergence  # noqa: F401
from .spec_augment import spec_augment  # noqa: F401
from .units import SJepaUnitsOutput  # noqa: F401


# Transformers' own CTC script asks for the tokenizer of the type "sjepa", which is looked for here alone.
if hasattr(tokenization_auto, "TOKENIZER_MAPPING_NAMES"):
    tokenization_auto.TOKENIZER_MAPPING_NAMES["sjepa"] = "Wav2Vec2CTCTokenizer"

__all__ = [
    "SJepaConfig",
    "SJepaForAudioFrameClassification",
    "SJepaForCTC",
    "SJepaForPreTraining",
    "SJepaForSequenceClassification",
    "SJepaForXVector",
    "SJepaModel",
]
