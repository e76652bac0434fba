"""What the page knows about a clip: its samples, and what a checkpoint hears in them."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import sjepa_hf  # noqa: F401  (registers its classes with the Auto classes)
from sjepa_hf.cluster_pictures import order_clusters
from sjepa_hf.encoding import weights_hash
from sjepa_hf.frames import SAMPLING_RATE, WINDOW
from sjepa_hf.measures import effective_rank, entropy_bits
from sjepa_hf.opening import (
    open_feature_extractor,
    open_pretraining,
    open_recogniser,
    open_sjepa,
    open_sjepa_config,
    open_with_ema,
)
from sjepa_hf.transcripts import UNKNOWN_SIGN, with_blanks
from sjepa_hf.units import UnitRun, run_lengths, unit_runs
from training.data.waveforms import BadAudio, audio_length, read_audio


MAX_SECONDS = 60
MIN_SECONDS = 0.1
MEL_BANDS, MEL_HOP = 80, 160


class Word(NamedTuple):
    """A word of the transcript and its place in seconds."""

    text: str
    start: float
    end: float


class Clip(NamedTuple):
    """
    Attributes:
        samples: `(num_samples,)` in float32, mono at 16 kHz, at most 60 s.
        file_seconds: length of the whole file.
    """

    samples: np.ndarray
    file_seconds: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE

    @property
    def is_cut(self) -> bool:
        return self.file_seconds > MAX_SECONDS


class Heard(NamedTuple):
    """
    What a checkpoint makes of a clip.

    Attributes:
        layers: for each layer, features `(num_frames, hidden_size)`; layer 0 is what enters the Transformer.
        posteriors: of the clusters, `(num_frames, num_components)`, without masking; None without a cluster head.
        units: of the frames, `(num_frames,)`; None without a cluster head.
        words: of the transcript; None without a CTC head.
    """

    layers: list[np.ndarray]
    posteriors: np.ndarray | None
    units: np.ndarray | None
    words: list[Word] | None

    @property
    def entropy(self) -> np.ndarray:
        """Of the posteriors of each frame, in bits: `(num_frames,)`."""
        return entropy_bits(torch.from_numpy(self.posteriors)).numpy()

    @property
    def ranks(self) -> list[float]:
        """Effective rank of each layer's features."""
        return [effective_rank(torch.from_numpy(features)).item() for features in self.layers]

    @property
    def runs(self) -> list[UnitRun]:
        """Runs of equal units, in seconds; none without a cluster head."""
        return [] if self.units is None else unit_runs(*run_lengths(torch.from_numpy(self.units)))


def read_clip(path: str) -> Clip:
    """
    The first 60 s of an audio file of any rate and channel count. No more than that is decoded.

    Raises:
        ValueError: a sentence for the user, if there is nothing to hear in it.
    """
    try:
        file_seconds = audio_length(path) / SAMPLING_RATE
        return Clip(read_audio(path, max_seconds=MAX_SECONDS, min_seconds=MIN_SECONDS), file_seconds)
    except BadAudio as error:
        raise ValueError(explained(error)) from None


def explained(error: BadAudio) -> str:
    """What is wrong with an upload, as a sentence for who sent it."""
    if error.reason == "too_short":
        return f"This clip lasts {error.detail}; at least {MIN_SECONDS} s are needed."
    if error.reason == "corrupt" and error.detail.startswith(("sampling rate", "peak")):
        return f"This file cannot be right ({error.detail}): its header or its samples must be broken."
    return {
        "missing": "This file is not there any more: send it again.",
        "empty": "This file is empty." if error.detail == "no bytes" else "This file holds no sound.",
        "too_long": f"This file is too long ({error.detail.partition(':')[0]}): send the part that you want to see.",
        "non_finite": "This file holds samples that are not numbers (NaN or infinity); save it again as 16-bit WAV.",
        "silent": "This clip is silent; record or choose one with speech.",
    }.get(error.reason, "This file cannot be read as audio: WAV, FLAC, OGG, Opus, MP3 and AIFF can be shown.")


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Mel energies in dB of samples `(num_samples,)`: `(80, num_frames)`, a frame centred on every 10 ms."""
    filters = mel_filter_bank(257, MEL_BANDS, 0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk")
    window = window_function(WINDOW, "hann")
    return spectrogram(samples, window, WINDOW, MEL_HOP, fft_length=512, power=2, mel_filters=filters, log_mel="dB")


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Cosine between the frames of two clips, `(frames of the first, frames of the second)`. The mean over the frames of
    both is taken off before, since what all frames share says nothing about two of them.
    """
    mean = np.concatenate([first, second]).mean(0)
    first, second = (
        (clip - mean) / np.linalg.norm(clip - mean, axis=1, keepdims=True).clip(1e-12) for clip in (first, second)
    )
    return first @ second.T


class Recogniser:
    """Greedy transcripts, with the place of each word, from a checkpoint with a CTC head."""

    def __init__(self, checkpoint: str, device: str):
        """Raises ValueError if there is no CTC head or no tokenizer."""
        self.processor, model = open_recogniser(checkpoint)
        self.model, self.device = model.eval().to(device), device

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray) -> list[Word]:
        inputs = self.processor.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        labels = self.model(inputs.input_values.to(self.device)).logits[0].argmax(-1)
        tokenizer = self.processor.tokenizer
        found = tokenizer.decode(with_blanks(labels.tolist(), tokenizer), output_word_offsets=True)
        unknown = tokenizer.unk_token or UNKNOWN_SIGN  # which it becomes: one sign for one character
        hop = self.model.config.inputs_to_logits_ratio / SAMPLING_RATE
        return [
            Word(
                word["word"].replace(unknown, UNKNOWN_SIGN),
                float(word["start_offset"] * hop),
                float(word["end_offset"] * hop),
            )
            for word in found.word_offsets
        ]


class Listener:
    """
    A checkpoint that listens: its encoder, and the cluster head and the CTC head where there are such.

    Args:
        checkpoint: directory or Hub name of an S-JEPA checkpoint of any kind.
        asr: another one with a CTC head, for transcripts beside the pictures of pretraining.
        like: the settings of a corpus of units, when units are to be those; else they are of the prediction.

    Attributes:
        clusters: what the units are of, "mixture" or "prediction".
        cluster_head: None where the checkpoint was fine-tuned.
        cluster_places: `(num_components,)` between 0 and 1; clusters with like means lie close.
        recogniser: None where neither checkpoint has a CTC head.

    Raises:
        ValueError: if a checkpoint cannot be opened, or holds no S-JEPA encoder; if the corpus has other units.
    """

    def __init__(self, checkpoint: str, asr: str | None = None, like: dict | None = None):
        self.name, self.device = checkpoint, "cuda" if torch.cuda.is_available() else "cpu"
        self.config = open_sjepa_config(checkpoint)
        self.extractor = open_feature_extractor(checkpoint)
        model = open_pretraining(checkpoint)
        encoder = open_sjepa(AutoModel, checkpoint) if model is None else model.sjepa
        self.encoder = encoder.eval().to(self.device)
        self.cluster_head = None if model is None else model.cluster_head.eval().to(self.device)
        self.cluster_places = None if model is None else order_clusters(model.mixture.means)
        self.clusters, self._mixture_model = "prediction", None
        if like is not None:
            self._take_units(model, like)
        if asr is None and self.config.architectures == ["SJepaForCTC"]:
            asr = checkpoint
        self.asr_name = asr
        self.recogniser = None if asr is None else Recogniser(asr, self.device)

    def _take_units(self, model, like: dict) -> None:
        """Give the units that a corpus holds. Raises ValueError if they are of another checkpoint."""
        if model is not None and like.get("ema encoder"):
            model = open_with_ema(self.name)
        if model is None or weights_hash(model) != like["weights"]:
            raise ValueError(
                f"`units` are of {like['checkpoint']} as it was, not of {self.name} as it is: its weights differ. Show"
                " that checkpoint, or make units of this one."
            )
        self.clusters = like["clusters"]
        if self.clusters == "mixture":
            self._mixture_model = model.eval().to(self.device)

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @torch.inference_mode()
    def features(self, samples: np.ndarray) -> list[np.ndarray]:
        """Features `(num_frames, hidden_size)` of each layer, from what enters the Transformer to its top."""
        return [layer.cpu().numpy() for layer in self._encode(samples)]

    @torch.inference_mode()
    def hear(self, samples: np.ndarray) -> Heard:
        """All that the checkpoint makes of samples `(num_samples,)`."""
        layers = self._encode(samples)
        posteriors = units = None
        if self.cluster_head is not None:
            posteriors = self.cluster_head(layers[-1]).softmax(-1).cpu().numpy()
            units = posteriors.argmax(1)
        if self._mixture_model is not None:
            units = self._mixture_model.unit_posteriors(self._inputs(samples))[0].argmax(1).cpu().numpy()
        words = None if self.recogniser is None else self.recogniser(samples)
        return Heard([layer.cpu().numpy() for layer in layers], posteriors, units, words)

    def _inputs(self, samples: np.ndarray) -> torch.Tensor:
        inputs = self.extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
        return inputs.to(self.device)

    def _encode(self, samples: np.ndarray) -> list[torch.Tensor]:
        outputs = self.encoder(self._inputs(samples), output_hidden_states=True)
        return [layer[0].float() for layer in outputs.hidden_states]
