"""What the page knows about a clip: its samples, and what a checkpoint hears in them."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoModelForPreTraining, AutoProcessor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import sjepa_hf  # noqa: F401  (registers its classes with the Auto classes)
from sjepa_hf.resampling import resample


SAMPLING_RATE = 16000
WINDOW, HOP = 400, 320  # samples of a frame of the encoder, and from frame to frame
MAX_SECONDS = 60
MIN_SECONDS = 0.1
SILENCE = 1e-4  # peak to peak, full scale 2
RATES = (1_000, 768_000)  # Hz; beyond them are broken headers
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
        words: of the transcript; None without a CTC head.
    """

    layers: list[np.ndarray]
    posteriors: np.ndarray | None
    words: list[Word] | None


def read_clip(path: str) -> Clip:
    """
    The first 60 s of an audio file of any rate and channel count. No more than that is decoded.

    Raises:
        ValueError: a sentence for the user, if there is nothing to hear in it.
    """
    if os.path.getsize(path) == 0:
        raise ValueError("This file is empty.")
    try:
        with soundfile.SoundFile(path) as file:
            rate, num_samples = file.samplerate, file.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(f"This file gives its sampling rate as {rate} Hz, so its header must be broken.")
            blocks = file.blocks(2**16, frames=min(num_samples, MAX_SECONDS * rate), dtype="float32", always_2d=True)
            samples = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in blocks)])
    except (soundfile.SoundFileError, OSError, TypeError):  # TypeError: the name ends in .raw
        raise ValueError(
            "This file cannot be read as audio: WAV, FLAC, OGG, Opus, MP3 and AIFF can be shown."
        ) from None
    if not len(samples):
        raise ValueError("This file holds no sound.")
    if not np.isfinite(samples).all():
        raise ValueError(
            "This file holds samples that are not numbers (NaN or infinity); save it again as 16-bit WAV."
        )
    if len(samples) < MIN_SECONDS * rate:
        raise ValueError(f"This clip lasts {len(samples) / rate:.3f} s; at least {MIN_SECONDS} s are needed.")
    if np.ptp(samples) < SILENCE:
        raise ValueError("This clip is silent; record or choose one with speech.")
    samples = resample(samples, rate)
    return Clip(samples[: MAX_SECONDS * SAMPLING_RATE], num_samples / rate)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Mel energies in dB of samples `(num_samples,)`: `(80, num_frames)`, a frame centred on every 10 ms."""
    filters = mel_filter_bank(257, MEL_BANDS, 0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk")
    window = window_function(WINDOW, "hann")
    return spectrogram(samples, window, WINDOW, MEL_HOP, fft_length=512, power=2, mel_filters=filters, log_mel="dB")


def frame_centres(count: int) -> np.ndarray:
    """Seconds from the clip's start to the centre of each of its first `count` frames."""
    return (np.arange(count) * HOP + WINDOW / 2) / SAMPLING_RATE


def entropy_bits(posteriors: np.ndarray) -> np.ndarray:
    """Entropy in bits of each row of `(num_frames, num_components)`: `(num_frames,)`."""
    return torch.special.entr(torch.from_numpy(posteriors)).sum(-1).numpy() / math.log(2)


def effective_rank(features: np.ndarray) -> float:
    """
    Effective rank (Roy & Vetterli 2007) of features `(num_frames, num_features)`: `exp` of the entropy in nats of the
    singular values of the centred features, normalised to sum 1.
    """
    share = torch.linalg.svdvals(torch.from_numpy(features - features.mean(0)))
    return torch.special.entr(share / share.sum().clamp_min(1e-30)).sum().exp().item()


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
        try:
            model, loading = AutoModelForCTC.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
            self.processor = AutoProcessor.from_pretrained(checkpoint)
        except (OSError, ValueError) as error:
            raise ValueError(f"{checkpoint} cannot be opened for transcripts ({first_line(error)})") from None
        if any(key.startswith("lm_head.") for key in loading["missing_keys"]):
            raise ValueError(f"{checkpoint} has no CTC head, which transcripts need: give one that was fine-tuned.")
        if not hasattr(self.processor, "tokenizer"):
            raise ValueError(f"{checkpoint} has a CTC head but no tokenizer, which transcripts need.")
        self.model, self.device = model.eval().to(device), device

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray) -> list[Word]:
        inputs = self.processor.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        labels = self.model(inputs.input_values.to(self.device)).logits[0].argmax(-1)
        found = self.processor.tokenizer.decode(labels, output_word_offsets=True)
        hop = self.model.config.inputs_to_logits_ratio / SAMPLING_RATE
        return [
            Word(word["word"], float(word["start_offset"] * hop), float(word["end_offset"] * hop))
            for word in found.word_offsets
        ]


class Listener:
    """
    A checkpoint that listens: its encoder, and the cluster head and the CTC head where there are such.

    Args:
        checkpoint: directory or Hub name of an S-JEPA checkpoint of any kind.
        asr: another one with a CTC head, for transcripts beside the pictures of pretraining.

    Attributes:
        cluster_head: None where the checkpoint was fine-tuned.
        cluster_places: `(num_components,)` between 0 and 1; clusters with like means lie close.
        recogniser: None where neither checkpoint has a CTC head.

    Raises:
        ValueError: if a checkpoint cannot be opened, or holds no S-JEPA encoder.
    """

    def __init__(self, checkpoint: str, asr: str | None = None):
        self.name, self.device = checkpoint, "cuda" if torch.cuda.is_available() else "cpu"
        if not Path(checkpoint).is_dir() and checkpoint.count("/") != 1:  # a name on the Hub has one
            raise ValueError(
                f"there is no directory {checkpoint}: choose another with --checkpoint, or make one by `make demo`."
            )
        try:
            self.config = AutoConfig.from_pretrained(checkpoint)
            if self.config.model_type != "sjepa":
                raise ValueError(f"a {self.config.model_type} model, not S-JEPA")
            model, loading = AutoModelForPreTraining.from_pretrained(
                checkpoint, dtype=torch.float32, output_loading_info=True
            )
            self.extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        except (OSError, ValueError) as error:
            raise ValueError(f"{checkpoint} cannot be opened ({first_line(error)})") from None
        if any(key.startswith("sjepa.") for key in loading["missing_keys"]):
            raise ValueError(f"{checkpoint} holds no whole S-JEPA encoder.")
        pretraining = not any(key.startswith("cluster_head.") for key in loading["missing_keys"])
        self.encoder = model.sjepa.eval().to(self.device)
        self.cluster_head = model.cluster_head.eval().to(self.device) if pretraining else None
        self.cluster_places = order_clusters(model.mixture.means) if pretraining else None
        if asr is None and any(key.startswith("lm_head.") for key in loading["unexpected_keys"]):
            asr = checkpoint
        self.asr_name = asr
        self.recogniser = None if asr is None else Recogniser(asr, self.device)

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
        posteriors = None
        if self.cluster_head is not None:
            posteriors = self.cluster_head(layers[-1]).softmax(-1).cpu().numpy()
        words = None if self.recogniser is None else self.recogniser(samples)
        return Heard([layer.cpu().numpy() for layer in layers], posteriors, words)

    def _encode(self, samples: np.ndarray) -> list[torch.Tensor]:
        inputs = self.extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
        outputs = self.encoder(inputs.to(self.device), output_hidden_states=True)
        return [layer[0].float() for layer in outputs.hidden_states]


def order_clusters(means: torch.Tensor) -> np.ndarray:
    """Rank between 0 and 1 of each mean of `(num_components, num_features)` along their first principal component."""
    centred = (means - means.mean(0)).float()
    first = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    ranks = (centred @ first).argsort().argsort()
    return ranks.cpu().numpy() / max(len(ranks) - 1, 1)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
