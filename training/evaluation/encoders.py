"""Encoders that are evaluated, frozen and in fp32: a checkpoint of Transformers, that network untrained, MFCC, FBANK.

encoder = open_encoder("demo-output/model/final")  # or "untrained:...", "mfcc", "fbank"
encoder([waveform])[0]  # a tensor (num_layers, num_frames, hidden_size)
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import sjepa_hf  # noqa: F401  (registers its classes with AutoModel)
from sjepa_hf import encoding
from sjepa_hf.configuration_sjepa import MODEL_CODE
from sjepa_hf.encoding import check_audio_encoder, hidden_layers, pad_waveforms, weights_hash
from sjepa_hf.frame_features import MfccFeatures, slopes
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.opening import build_model, open_config, open_feature_extractor, open_model
from sjepa_hf.scores import MFCC, UNTRAINED


NOT_IN_DIGEST = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class TransformersEncoder:
    """
    A frozen audio encoder of Transformers, in fp32; its feature extractor norms the waveforms if the model wants that.

    No score depends on which clips are read together: those that padding would change are given one at a time.

    Attributes:
        name (`str`): what the user called it.
        digest (`str`): hash of weights, configuration, feature extractor and of the code that computes.
    """

    def __init__(self, name: str, model: torch.nn.Module, extractor, device: torch.device | str = "cpu"):
        self.name = name
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.extractor = extractor

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Waveforms `(num_samples,)` at 16 kHz -> all hidden states `(num_layers, num_frames, hidden_size)` of each,
        on the encoder's device; only real frames. Layer 0 is what enters the first Transformer layer."""
        inputs = pad_waveforms(self.extractor, waveforms).to(self.model.device)
        states, lengths = hidden_layers(self.model, inputs["input_values"], inputs["attention_mask"])
        return [layers[:, :length] for layers, length in zip(states, lengths.tolist())]

    @cached_property
    def digest(self) -> str:
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in NOT_IN_DIGEST}
        source = Path(inspect.getsourcefile(type(self.model))).parent
        ours = self.model.config.model_type == "sjepa"
        code = [source / name for name in MODEL_CODE] if ours else [*sorted(source.glob("*.py")), encoding.__file__]
        parts = [json.dumps(config, sort_keys=True, default=str), str(self.extractor.to_dict())]
        parts += [transformers.__version__, *(Path(file).read_text(encoding="utf-8") for file in code)]
        return content_hash(*parts, weights_hash(self.model))


class MfccEncoder:
    """13 MFCC with deltas and delta-deltas over an encoder's own frames, as one "layer" of 39 values: a baseline."""

    name = "mfcc"

    def __init__(self, device: torch.device | str = "cpu"):
        self.features = MfccFeatures().to(device)
        self.device = device
        self.digest = content_hash("mfcc", Path(inspect.getsourcefile(MfccFeatures)).read_text(encoding="utf-8"))

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Waveforms `(num_samples,)` at 16 kHz -> `(1, num_frames, 39)` of each."""
        return [self.features(torch.from_numpy(waveform)[None].to(self.device)) for waveform in waveforms]


class FbankEncoder:
    """
    SUPERB's baseline, as one "layer" of 240 values every 10 ms: 80 log-mel bands as Kaldi's fbank has them (25 ms, no
    dither), their deltas and delta-deltas, each value normed over the clip.
    """

    name = "fbank"
    WIDTH, SHIFT, FFT, BANDS = 400, 160, 512, 80  # samples, of a spectrum, of mel

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.digest = content_hash("fbank", inspect.getsource(type(self)), inspect.getsource(slopes))
        self.window = window_function(self.WIDTH, "povey", periodic=False)
        self.bands = mel_filter_bank(
            num_frequency_bins=self.FFT // 2 + 1,
            num_mel_filters=self.BANDS,
            min_frequency=20.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Waveforms `(num_samples,)` at 16 kHz -> `(1, num_frames, 240)` of each."""
        return [self._features(waveform) for waveform in waveforms]

    def _features(self, waveform: np.ndarray) -> Tensor:
        bands = spectrogram(
            waveform,
            self.window,
            frame_length=self.WIDTH,
            hop_length=self.SHIFT,
            fft_length=self.FFT,
            center=False,
            power=2.0,
            preemphasis=0.97,
            mel_filters=self.bands,
            log_mel="log",
            mel_floor=float(np.finfo(np.float32).eps),
            remove_dc_offset=True,
        )
        bands = torch.from_numpy(bands.T).to(self.device)[None]  # [1, T, 80]
        last_frame = torch.tensor([bands.shape[1] - 1], device=self.device)
        first = slopes(bands, last_frame)
        values = torch.cat([bands, first, slopes(first, last_frame)], dim=2)
        deviation = values.std(1, correction=min(1, values.shape[1] - 1), keepdim=True)
        return (values - values.mean(1, keepdim=True)) / (deviation + 1e-10)


Encoder = TransformersEncoder | MfccEncoder | FbankEncoder


def open_encoder(name: str, device: torch.device | str = "cpu", untrained_seed: int = 0) -> Encoder:
    """
    The encoder that `name` stands for.

    Args:
        name: a checkpoint (directory or Hub name) that AutoModel opens; `untrained:CHECKPOINT`, the same configuration
            with fresh weights; `mfcc`; or `fbank`.
        untrained_seed: seed of those fresh weights.

    Raises:
        ValueError: there is no such checkpoint, it is damaged or incomplete, or its encoder does not read waveforms at
            16 kHz.
    """
    if name == MFCC:
        return MfccEncoder(device)
    if name == "fbank":
        return FbankEncoder(device)
    checkpoint = name.removeprefix(UNTRAINED)
    extractor = open_feature_extractor(checkpoint)
    if name != checkpoint:
        config = open_config(checkpoint)
        with torch.random.fork_rng(devices=[]):  # it is made on the CPU
            torch.default_generator.manual_seed(untrained_seed)
            model = build_model(AutoModel, config, checkpoint)
    else:
        model = open_model(AutoModel, checkpoint)
    check_audio_encoder(model, name)
    return TransformersEncoder(name, model, extractor, device)


def check_encoders(names: Sequence[str]) -> None:
    """Open each encoder once, so that hours with the first do not precede the error of the last. Raises ValueError."""
    for name in dict.fromkeys(names):
        open_encoder(name)


def content_hash(*parts: str | bytes) -> str:
    """A hash of texts and bytes, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(str(len(part)).encode())
        digest.update(part)
    return digest.hexdigest()[:32]
