"""
S-JEPA for Hugging Face Transformers. Importing the package registers it with the Auto classes.

The encoder:
    configuration_sjepa.py          sizes and settings; every default is the published base model
    modeling_sjepa.py               SJepaModel: front end, positional convolution, Transformer layers
    front_end.py                    from samples to frames: seven convolutions, or log-mel
    spec_augment.py                 spans of frames and features that are hidden in fine-tuning
    float32.py                      norms, tables and mixtures that stay in fp32
    frames.py                       16 kHz, a frame of 25 ms every 20 ms: the one place of these numbers
    input_checks.py                 what a batch has to be, and whether its values can be looked at

Pretraining and fine-tuning:
    modeling_sjepa_pretraining.py   SJepaForPreTraining: encoder, predictor, cluster head, mixture, and their loss
    predictor.py                    predictor of hidden frames, and the cluster head over it
    soft_targets.py                 what targets have to be, and the divergence of a prediction from them
    mixture.py                      the diagonal Gaussian mixture: posteriors, EM, running statistics
    kmeans.py                       k-means, which initialises the mixture
    frame_features.py               what the first mixture is over: MFCC and log-mel frames
    layer_features.py               what the second one is over: layers of the encoder
    units.py                        clusters as numbers: units of frames, soft units, runs with times
    hmm_mixture.py                  its components as states of a hidden Markov model: posteriors given the whole clip
    hmm.py                          forward-backward and the transitions between states
    modeling_sjepa_heads.py         SJepaForCTC and the classifiers of clips, frames and speakers
    auto_classes.py                 where `auto_map` points: with it the files named so far travel with a checkpoint

What happens to checkpoints:
    feature_extraction.py           the feature extractor that lies beside the weights
    saving.py                       nothing is left half-written
    writable.py                     whether outputs can be written
    opening.py                      what a user names as a checkpoint, opened or refused in a sentence
    push.py                         command: publish one on the Hub
    contents.py                     what of a directory may be published
    model_card.py                   command: the model card
    facts.py                        what people put into the card
    scores.py                       what evaluations put into their results files, and the card takes from them
    export_onnx.py                  command: ONNX, fp32 and int8
    convert_original.py             command: from the authors' checkpoints

What page, training and evaluation share:
    encoding.py                     layers of any encoder of Transformers, each clip as if it were alone
    transcripts.py                  what the labels of a CTC head stand for
    fitted_units.py                 clusters fitted to such layers, in a directory that names what they belong to
    command.py                      the shell of every command: log lines, one sentence for what is wrong
    durations.py                    amounts of audio and times to wait, in words
    resampling.py                   any rate to 16 kHz
    measures.py                     effective rank, entropy
    cluster_pictures.py             clusters in pictures
"""

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
from .units import SJepaUnitsOutput


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
    "SJepaUnitsOutput",
    "SufficientStatistics",
]
