"""Diarization of two speakers: mixtures made of clips of one speaker each, who speaks when, and the error rate."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import medfilt
from torch import Tensor

from sjepa_hf.frames import SAMPLING_RATE, frame_centres, frame_lengths
from training.data.labelled import LabelledClips
from training.evaluation.encoders import content_hash
from training.evaluation.frozen_features import clip_keys
from training.evaluation.superb.heads import at_length
from training.evaluation.superb.labels import check_finite


MIXTURE_SEED = 0
LOUDEST, SOFTEST = -25.0, -33.0  # dB below full scale, root mean square of each clip, as LibriMix has them in LUFS
THRESHOLD, MEDIAN_FRAMES = 0.5, 11


class Mixtures:
    """
    Mixtures of two clips of different speakers, the same for the same clips: each clip is the first of one mixture,
    and another, of a speaker drawn at random, begins somewhere within it. Each is scaled to a loudness of its own.

    `mixtures[i]` is a dict of `input_values` `(num_samples,)`, or None if one of its clips cannot be used.

    Args:
        clips: of one speaker each.
        column: their label that names the speaker.
        split: for messages.

    Raises:
        ValueError: if all clips are of one speaker.
    """

    def __init__(self, clips: LabelledClips, column: str, split: str):
        rng, speakers = np.random.default_rng(MIXTURE_SEED), np.array(clips.labels[column])
        if len(set(speakers)) < 2:
            raise ValueError(
                f"The {len(clips)} {split} clips are all of the speaker '{speakers[0]}': mixtures need clips of two"
                " speakers and more."
            )
        self.clips = clips
        self.others = [int(rng.choice(np.flatnonzero(speakers != speaker))) for speaker in speakers]
        self.starts = [int(rng.integers(length)) for length in clips.num_samples]  # samples
        self.loudness = rng.uniform(SOFTEST, LOUDEST, (len(clips), 2))  # dB
        self.labels = {column: [f"{a} + {speakers[b]}" for a, b in zip(speakers, self.others)]}
        self.num_samples = [
            max(own, start + clips.num_samples[other])
            for own, start, other in zip(clips.num_samples, self.starts, self.others)
        ]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict | None:
        examples = self.clips[index], self.clips[self.others[index]]
        if None in examples:
            return None
        mixed = np.zeros(self.num_samples[index], np.float32)
        for example, start, loudness in zip(examples, (0, self.starts[index]), self.loudness[index]):
            waveform = example["input_values"][: len(mixed) - start]
            level = np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) + 1e-9
            mixed[start : start + len(waveform)] += waveform * np.float32(10 ** (loudness / 20) / level)
        return {"input_values": mixed}

    @property
    def hours(self) -> float:
        return sum(self.num_samples) / SAMPLING_RATE / 3600

    def keys(self) -> list[str | None]:
        """A hash of each mixture: its clips and how they are mixed; None if one of them is not read."""
        keys = clip_keys(self.clips)
        parts = zip(keys, (keys[other] for other in self.others), self.starts, self.loudness.tolist())
        return [content_hash(a, b, repr(how)) if a and b else None for a, b, *how in parts]

    def activity(self, index: int) -> Tensor:
        """Whose clip runs at the centre of each frame: `(num_frames, 2)` of 0 and 1."""
        times = frame_centres(frame_lengths(self.num_samples[index])) * SAMPLING_RATE
        own, other = (self.clips.num_samples[i] for i in (index, self.others[index]))
        second = (times >= self.starts[index]) & (times < self.starts[index] + other)
        return torch.from_numpy(np.stack([times < own, second], axis=-1).astype(np.float32))


class ActivityLabels:
    """Who speaks when in the mixtures of all splits."""

    sizes = (2,)

    def __init__(self, mixtures: dict[str, Mixtures]):
        self.mixtures = mixtures

    def encode(self, labels: dict[str, list[str]]) -> list[Tensor]:
        """Activities `(num_frames, 2)` of the training mixtures."""
        return [self.mixtures["train"].activity(i) for i in range(len(self.mixtures["train"]))]

    def error_rate(self, logits: dict[int, Tensor], split: str) -> float:
        """Diarization error rate of a split from the logits `(num_frames, 2)` of each mixture by its number."""
        check_finite(torch.cat([*logits.values()]).numpy(), f"frames of the {split} mixtures")
        right = [at_length(self.mixtures[split].activity(i), len(x)).numpy() for i, x in logits.items()]
        return diarization_error_rate(list(map(active, logits.values())), right)


def active(logits: Tensor) -> np.ndarray:
    """Frames `(num_frames, 2)` bool whose probability exceeds a half, under a median filter of 11 frames."""
    return medfilt((logits.sigmoid() > THRESHOLD).float().numpy(), (MEDIAN_FRAMES, 1)) > 0


def diarization_error_rate(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """
    Frames of missed, false and confused speech of all recordings over those of speech, speakers counted singly; the
    speakers of each recording are matched as fits best. No collar, overlaps count.

    Args:
        found, right: who speaks when, `(num_frames, 2)` of each recording.

    Raises:
        ValueError: if nobody speaks in any, so that there is nothing to count errors against.
    """
    errors, speech = 0.0, 0.0
    for one, other in zip(found, right):
        one, other = one.astype(bool), other.astype(bool)
        matched = max((one & other).sum(), (one[:, ::-1] & other).sum())
        errors += np.maximum(one.sum(1), other.sum(1)).sum() - matched
        speech += other.sum()
    if not speech:
        raise ValueError(f"Nobody speaks in the {len(right)} recordings: a diarization error rate needs some speech.")
    return float(errors / speech)
