"""Configuration of S-JEPA (arXiv 2606.19398): every default is the published base model."""

import filecmp
import math
import shutil
from pathlib import Path

import transformers
from packaging.version import Version


# Here, since this file is the first that runs, of the package and of the code beside a checkpoint alike.
if Version(transformers.__version__).release < (5, 21):
    raise ImportError(
        f"S-JEPA needs transformers>=5.21, and {transformers.__version__} is installed:"
        " `pip install --upgrade transformers`."
    )

import torch
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig


# Written into every saved configuration, so that any class opens from any checkpoint, without this package too.
AUTO_MAP = {
    "AutoConfig": "auto_classes.SJepaConfig",
    "AutoModel": "auto_classes.SJepaModel",
    "AutoModelForPreTraining": "auto_classes.SJepaForPreTraining",
    "AutoModelForCTC": "auto_classes.SJepaForCTC",
    "AutoModelForAudioClassification": "auto_classes.SJepaForSequenceClassification",
    "AutoModelForAudioFrameClassification": "auto_classes.SJepaForAudioFrameClassification",
    "AutoModelForAudioXVector": "auto_classes.SJepaForXVector",
}
# The files behind it: what `auto_classes` imports, directly or not.
MODEL_CODE = (
    "auto_classes.py",
    "configuration_sjepa.py",
    "float32.py",
    "frame_features.py",
    "frames.py",
    "front_end.py",
    "hmm.py",
    "hmm_mixture.py",
    "input_checks.py",
    "kmeans.py",
    "layer_features.py",
    "mixture.py",
    "modeling_sjepa.py",
    "modeling_sjepa_heads.py",
    "modeling_sjepa_pretraining.py",
    "predictor.py",
    "soft_targets.py",
    "spec_augment.py",
    "units.py",
)


def is_ours(place: str) -> bool:
    """Whether an entry of an `auto_map` is a class of this package, behind "user/repo--" if loaded from the Hub."""
    return str(place).split("--")[-1] in AUTO_MAP.values()


def own_classes(auto_map: dict | None) -> dict:
    """What of an `auto_map` is not this package's: classes of the user's own, each in a file beside config.json."""
    return {auto: place for auto, place in (auto_map or {}).items() if not is_ours(place)}


# Smallest and largest value of each number, and of each entry of a list of numbers. The largest ones only catch slips
# of the keyboard and broken files: models of such sizes would fill any memory, or never end being made.
RANGES = {
    "vocab_size": (1, 10**6),
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**16),
    "intermediate_size": (1, 2**18),
    "hidden_dropout": (0, 1),
    "activation_dropout": (0, 1),
    "attention_dropout": (0, 1),
    "feat_proj_dropout": (0, 1),
    "final_dropout": (0, 1),
    "layerdrop": (0, 1),
    "initializer_range": (0, 10),
    "layer_norm_eps": (1e-12, 1),
    "num_mel_bins": (1, 2**12),
    "log_mel_prior_frames": (0, 10**6),
    "stem_kernel_size": (0, 1000),
    "feature_grad_mult": (0, 100),
    "conv_dim": (1, 2**16),
    "conv_stride": (1, 1000),
    "conv_kernel": (1, 1000),
    "num_conv_pos_embeddings": (1, 10**4),
    "num_conv_pos_embedding_groups": (1, 2**16),
    "predictor_num_hidden_layers": (1, 1000),
    "predictor_num_attention_heads": (1, 2**16),
    "predictor_intermediate_size": (1, 2**18),
    "predictor_dropout": (0, 1),
    "predictor_max_positions": (1, 10**6),
    "num_mixture_components": (2, 10**6),
    "mixture_feature_size": (1, 2**20),
    "num_frozen_components": (2, 10**6),
    "frozen_feature_size": (1, 2**20),
    "mixture_layers": (0, 1000),
    "mixture_temperature": (0, 10**6),
    "mask_time_prob": (0, 1),
    "mask_time_length": (1, 10**6),
    "mask_feature_prob": (0, 1),
    "mask_feature_length": (1, 10**6),
    "classifier_proj_size": (1, 2**16),
    "tdnn_dim": (1, 2**16),
    "tdnn_kernel": (1, 1000),
    "tdnn_dilation": (1, 1000),
    "xvector_output_dim": (1, 2**16),
}
MIXTURE_FEATURES = ("mfcc", "mfcc_cmn", "log_mel", "encoder")  # what the mixture can be over
CHOICES = {
    "front_end": ("waveform", "log_mel"),
    "ctc_loss_reduction": ("mean", "sum", "none"),
    "hidden_act": tuple(ACT2FN),
    "feat_extract_activation": tuple(ACT2FN),
    "problem_type": (None, "single_label_classification", "multi_label_classification", "regression"),
    "mixture_features": (None, *MIXTURE_FEATURES),
}
PARALLEL_LISTS = {  # lists of one entry for each of these
    "convolutions": ("conv_dim", "conv_stride", "conv_kernel"),
    "time-delay layers": ("tdnn_dim", "tdnn_kernel", "tdnn_dilation"),
}
MOST_STATES = 10**4  # of a hidden Markov model, whose transitions are the square of that
LONGEST_LIST = 64  # convolutions, or time-delay layers
LONGEST_WINDOW = 8000  # samples that a frame may read, and from one frame to the next: half a second


@strict
class SJepaConfig(PreTrainedConfig):
    r"""
    Sizes and rates of an S-JEPA model. `SJepaModel(SJepaConfig())` is the published encoder of 51,844,224 parameters.
    Fields that mean the same as in [`HubertConfig`] carry the same names.

    Args:
        vocab_size (`int`, *optional*, defaults to 32):
            Number of output tokens of [`SJepaForCTC`].
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the Transformer, of the predictor and of the cluster head.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads of each Transformer layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward block.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward block.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout after attention and after the feed-forward block.
        activation_dropout (`float`, *optional*, defaults to 0.1):
            Dropout inside the feed-forward block.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights.
        feat_proj_dropout (`float`, *optional*, defaults to 0.1):
            Dropout after the feature projection.
        final_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before the output layer of [`SJepaForCTC`].
        layerdrop (`float`, *optional*, defaults to 0.05):
            Probability with which an utterance skips a Transformer layer in training.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the normal initialisation of linear layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norms.
        front_end (`str`, *optional*, defaults to `"waveform"`):
            `"waveform"`: seven convolutions over the samples (published). `"log_mel"`: log-mel frames over the same
            samples, with the same number of frames, for those who pretrain on little.
        num_mel_bins (`int`, *optional*, defaults to 64):
            Mel bins of the `"log_mel"` front end.
        log_mel_cmn (`bool`, *optional*, defaults to `False`):
            Whether each mel bin loses its mean over the clip (cepstral mean normalisation, of log-mel frames).
        log_mel_prior_frames (`int`, *optional*, defaults to 0):
            Pseudo-count: shrinks the mean that `log_mel_cmn` subtracts towards average speech at the clip's level, by
            this many frames. For clips below a second.
        stem_kernel_size (`int`, *optional*, defaults to 0):
            Frames (an odd number) that each of two convolutions over the log-mel frames reads, ahead of the
            projection (our addition); 0: there are none.
        feat_extract_activation (`str`, *optional*, defaults to `"gelu"`):
            Activation of the convolutions and of the positional convolution.
        feature_grad_mult (`float`, *optional*, defaults to 0.1):
            Factor on the gradient that enters the front end.
        conv_dim (`tuple[int]`, *optional*, defaults to seven times 512):
            Channels of each convolution.
        conv_stride (`tuple[int]`, *optional*, defaults to `(5, 2, 2, 2, 2, 2, 2)`):
            Stride of each convolution; their product is the hop in samples (320, 20 ms at 16 kHz).
        conv_kernel (`tuple[int]`, *optional*, defaults to `(10, 3, 3, 3, 3, 2, 2)`):
            Kernel size of each convolution; together they read 400 samples (25 ms) a frame.
        conv_bias (`bool`, *optional*, defaults to `False`):
            Whether the convolutions have a bias.
        num_conv_pos_embeddings (`int`, *optional*, defaults to 128):
            Kernel size of the positional convolution.
        num_conv_pos_embedding_groups (`int`, *optional*, defaults to 16):
            Groups of the positional convolution.
        encode_visible_only (`bool`, *optional*, defaults to `False`):
            Whether the Transformer layers of [`SJepaForPreTraining`] run over visible frames alone, as in masked
            autoencoders (our addition). Published: over all frames, the masked ones being zero at the input.
        predictor_keeps_hidden (`bool`, *optional*, defaults to `False`):
            Whether the predictor reads the encoder's own output at hidden frames beside its token, as HuBERT's and
            data2vec's heads do, so that the encoder has to fill the blanks in; or the token alone (as published).
        predictor_num_hidden_layers (`int`, *optional*, defaults to 1):
            Transformer layers of the predictor.
        predictor_num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads of the predictor.
        predictor_intermediate_size (`int`, *optional*, defaults to 1536):
            Width of the predictor's feed-forward block (ReLU).
        predictor_dropout (`float`, *optional*, defaults to 0.1):
            Dropout everywhere in the predictor.
        predictor_max_positions (`int`, *optional*, defaults to 750):
            Frames in the predictor's table of learned positions (750 frames are 15 s): the longest clip that
            [`SJepaForPreTraining`] takes.
        num_mixture_components (`int`, *optional*, defaults to 500):
            Components K of the Gaussian mixture, and outputs of the cluster head.
        mixture_feature_size (`int`, *optional*):
            Dimensions D of the features that the mixture models: 39 while it is fixed over MFCC; `hidden_size` when
            `None`.
        mixture_features (`str`, *optional*):
            What the mixture is over: `"mfcc"`, `"mfcc_cmn"` (less the clip's mean), `"log_mel"`, or layers of the
            `"encoder"`. Pretraining writes it; `None`: not known.
        mixture_layers (`tuple[int]`, *optional*):
            Layers of the encoder whose mean the mixture is over, numbered as in `hidden_states`.
        mixture_instance_norm (`bool`, *optional*, defaults to `False`):
            Whether these layers get mean 0 and variance 1 over each clip first.
        mixture_whitened (`bool`, *optional*, defaults to `False`):
            Whether the mixture is over whitened principal components of them, which the checkpoint then holds.
        mixture_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of its posteriors where they are targets; 0 makes them one-hot.
        num_frozen_components (`int`, *optional*):
            Components of a second mixture that stays as it was fitted, with outputs of its own: the MFCC mixture of
            the first phase where its loss is kept beside the online one. None by default.
        frozen_feature_size (`int`, *optional*, defaults to 39):
            Dimensions of the features that it models.
        mixture_transitions (`bool`, *optional*, defaults to `False`):
            Whether the components of both mixtures are states of a hidden Markov model, so that a target is the
            posterior given the whole clip (our addition). Published: given the frame.
        ctc_loss_reduction (`str`, *optional*, defaults to `"mean"`):
            Reduction of the CTC loss.
        ctc_zero_infinity (`bool`, *optional*, defaults to `True`):
            Whether clips with more labels than frames give a loss of zero instead of infinity.
        apply_spec_augment (`bool`, *optional*, defaults to `True`):
            Whether random spans of frames and of feature dimensions are hidden while [`SJepaModel`], alone or under a
            head, is trained; never where `mask_time_indices` are given, nor in [`SJepaForPreTraining`].
        mask_time_prob (`float`, *optional*, defaults to 0.05):
            Share of the frames that these spans would cover if none overlapped.
        mask_time_length (`int`, *optional*, defaults to 10):
            Frames per span.
        mask_feature_prob (`float`, *optional*, defaults to 0.0):
            The same share of the feature dimensions.
        mask_feature_length (`int`, *optional*, defaults to 10):
            Dimensions per span.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Whether the heads read a learned average of all layers instead of the last one.
        classifier_proj_size (`int`, *optional*, defaults to 256):
            Width of the projection before pooling in [`SJepaForSequenceClassification`].
        tdnn_dim (`tuple[int]`, *optional*, defaults to `(512, 512, 512, 512, 1500)`):
            Channels of the time-delay layers of [`SJepaForXVector`].
        tdnn_kernel (`tuple[int]`, *optional*, defaults to `(5, 3, 3, 1, 1)`):
            Their kernel sizes.
        tdnn_dilation (`tuple[int]`, *optional*, defaults to `(1, 2, 3, 1, 1)`):
            Their dilations.
        xvector_output_dim (`int`, *optional*, defaults to 512):
            Size of the speaker embedding.
        pad_token_id (`int`, *optional*, defaults to 0):
            Blank of the CTC loss.
        bos_token_id (`int`, *optional*, defaults to 1):
            Beginning-of-sequence token.
        eos_token_id (`int`, *optional*, defaults to 2):
            End-of-sequence token.

    Example:

    ```python
    >>> from sjepa_hf import SJepaConfig, SJepaModel

    >>> model = SJepaModel(SJepaConfig())
    >>> model.num_parameters()
    51844224
    ```"""

    model_type = "sjepa"
    keys_to_ignore_at_inference = ["num_masked_frames", "num_visible_frames"]  # the Trainer gathers tensors alone

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    feat_proj_dropout: float | int = 0.1
    final_dropout: float | int = 0.1
    layerdrop: float | int = 0.05
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    front_end: str = "waveform"
    num_mel_bins: int = 64
    log_mel_cmn: bool = False
    log_mel_prior_frames: int = 0
    stem_kernel_size: int = 0
    feat_extract_activation: str = "gelu"
    feature_grad_mult: float | int = 0.1
    conv_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: list[int] | tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: list[int] | tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    encode_visible_only: bool = False
    predictor_keeps_hidden: bool = False
    predictor_num_hidden_layers: int = 1
    predictor_num_attention_heads: int = 8
    predictor_intermediate_size: int = 1536
    predictor_dropout: float | int = 0.1
    predictor_max_positions: int = 750
    num_mixture_components: int = 500
    mixture_feature_size: int | None = None
    mixture_features: str | None = None
    mixture_layers: list[int] | tuple[int, ...] | None = None
    mixture_instance_norm: bool = False
    mixture_whitened: bool = False
    mixture_temperature: float | int = 1.0
    num_frozen_components: int | None = None
    frozen_feature_size: int = 39
    mixture_transitions: bool = False
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True
    apply_spec_augment: bool = True
    mask_time_prob: float | int = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float | int = 0.0
    mask_feature_length: int = 10
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: list[int] | tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: list[int] | tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs):
        if self.mixture_feature_size is None:
            self.mixture_feature_size = self.hidden_size
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Cross-field checks, run by `@strict` whenever a configuration is made."""
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(str, known))}.")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, list | tuple) else [value]:
                if number is not None and (isinstance(number, bool) or not least <= number <= most):  # NaN is neither
                    place = f"`{name}` is {number}" if number is value else f"`{name}` holds {number}"
                    raise ValueError(f"{place}; it must lie between {least:,} and {most:,}.")
        for described, names in PARALLEL_LISTS.items():
            first, second, third = sizes = [len(getattr(self, name)) for name in names]
            if not 0 < first == second == third <= LONGEST_LIST:
                raise ValueError(
                    "`{}`, `{}` and `{}` describe the same {} and must have the same length, from 1 to {}, but have"
                    " {}, {} and {} entries.".format(*names, described, LONGEST_LIST, *sizes)
                )
        if not 2 <= self.receptive_field <= LONGEST_WINDOW or self.inputs_to_logits_ratio > LONGEST_WINDOW:
            raise ValueError(
                f"`conv_kernel` and `conv_stride` make frames of {self.receptive_field} samples, one every"
                f" {self.inputs_to_logits_ratio}; a frame must read 2 to {LONGEST_WINDOW}, and the next start no later"
                " (published: 400 and 320)."
            )
        if self.front_end == "log_mel" and self.num_mel_bins > self.receptive_field // 2 + 1:
            raise ValueError(
                f"`num_mel_bins` is {self.num_mel_bins}, but the spectrum of {self.receptive_field} samples has only"
                f" {self.receptive_field // 2 + 1} bins: choose fewer."
            )
        if self.log_mel_cmn and self.front_end != "log_mel":
            raise ValueError(f'`log_mel_cmn` goes with `front_end` "log_mel", but that is {self.front_end!r}.')
        if self.log_mel_prior_frames and not self.log_mel_cmn:
            raise ValueError("`log_mel_prior_frames` count in the mean that `log_mel_cmn` takes off, but that is off.")
        if self.stem_kernel_size and (self.front_end != "log_mel" or self.stem_kernel_size % 2 == 0):
            raise ValueError(
                f"`stem_kernel_size` is {self.stem_kernel_size} with `front_end` {self.front_end!r}: it is an odd"
                ' number of frames, and goes with "log_mel" alone.'
            )
        for divisor in ("num_attention_heads", "predictor_num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, divisor):
                raise ValueError(
                    f"`hidden_size` ({self.hidden_size}) must be a multiple of `{divisor}` ({getattr(self, divisor)})."
                )
        if self.predictor_keeps_hidden and self.encode_visible_only:
            raise ValueError(
                "`predictor_keeps_hidden` reads the encoder's output at hidden frames, but `encode_visible_only` makes"
                " none there: choose one of the two."
            )
        if (self.mixture_features == "encoder") != bool(self.mixture_layers):
            raise ValueError(
                f"`mixture_features` is {self.mixture_features!r} and `mixture_layers` {self.mixture_layers}: layers"
                ' go with "encoder", and with nothing else.'
            )
        if self.mixture_layers and max(self.mixture_layers) > self.num_hidden_layers:
            raise ValueError(
                f"`mixture_layers` holds {max(self.mixture_layers)}, but the encoder has layers 0 to"
                f" {self.num_hidden_layers}."
            )
        if self.mixture_transitions:
            for name in ("num_mixture_components", "num_frozen_components"):
                if (getattr(self, name) or 0) > MOST_STATES:
                    raise ValueError(
                        f"`{name}` is {getattr(self, name)}; with `mixture_transitions` it must lie between 2 and"
                        f" {MOST_STATES:,}."
                    )
        if self.num_labels < 1:
            raise ValueError(f"`num_labels` (entries of `id2label`) is {self.num_labels}; it must be at least 1.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` is {self.pad_token_id}, but `vocab_size` {self.vocab_size} makes tokens from 0 to"
                f" {self.vocab_size - 1}: the blank of the CTC loss must be one of them."
            )

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples between two frames (320: 20 ms at 16 kHz)."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads (400: 25 ms at 16 kHz); a shorter clip has no frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def num_frames(self, num_samples):
        """Frames of clips of `num_samples` samples (an `int` or an integer tensor); 0 for clips below one frame."""
        frames = (num_samples - self.receptive_field) // self.inputs_to_logits_ratio + 1
        if isinstance(frames, torch.Tensor):
            return frames.clamp(min=0)
        # Not `max`: under torch.export `frames` is a SymInt, and OpenVINO has no maximum of SymInts.
        return frames if frames > 0 else 0

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """As in Transformers for a class of your own; `save_pretrained` always writes the code of this package's."""
        if not is_ours(f"auto_classes.{cls.__name__}"):
            super().register_for_auto_class(auto_class)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """
        As in Transformers, with the model's code beside config.json: what `trust_remote_code=True` runs.

        Raises:
            ValueError: if the directory is no checkpoint and holds other files of the names of that code.
        """
        self.auto_map = AUTO_MAP | own_classes(getattr(self, "auto_map", None))
        here, there = Path(__file__).parent, Path(save_directory)
        there.mkdir(parents=True, exist_ok=True)
        if not (there / "config.json").exists():
            for name in MODEL_CODE:
                if (there / name).exists() and not filecmp.cmp(here / name, there / name, shallow=False):
                    raise ValueError(
                        f"{there} holds {name}, which is none of a checkpoint, and the model's code would replace it:"
                        " save into a directory of its own."
                    )
        if here.resolve() != there.resolve():
            for name in MODEL_CODE:
                shutil.copyfile(here / name, there / name)
        # A feature extractor and a tokenizer that were saved one by one, as Transformers' own CTC script does, are a
        # processor. This file says so; were one registered for the class, `AutoProcessor` would want a tokenizer of
        # checkpoints that have none, where it now gives the feature extractor.
        parts, processor = ("preprocessor_config.json", "tokenizer_config.json"), there / "processor_config.json"
        if all((there / part).is_file() for part in parts) and not processor.exists():
            processor.write_text('{"processor_class": "Wav2Vec2Processor"}\n')
        super().save_pretrained(save_directory)
        if push_to_hub:  # Transformers' own way uploads what changes after the code above was written
            self.push_to_hub(kwargs.pop("repo_id", there.name), **kwargs)


__all__ = ["SJepaConfig"]
