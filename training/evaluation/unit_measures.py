"""Measures of units: what they tell of phones, what they cost to send, and how far noise and tempo move them."""

from collections import Counter
from collections.abc import Sequence

import jiwer
import numpy as np
import torch

from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.resampling import resample
from sjepa_hf.units import run_lengths
from training.evaluation.abx import Token
from training.evaluation.alignment import phones_at_frames


def purity(joint: torch.Tensor) -> float:
    """Phone purity: share of frames whose phone is the commonest one of their unit; counts `(phones, units)`."""
    return (joint.max(0).values.sum() / joint.sum()).item()


def without_repeats(units: np.ndarray) -> np.ndarray:
    """Units `(num_frames,)` with runs of one written once."""
    return run_lengths(torch.from_numpy(units))[0].numpy()


def bitrate(clips: Sequence[np.ndarray], seconds: float) -> float:
    """
    Bits a second of runs, their durations not sent: tokens a second times the entropy of a token, as in the ZeroSpeech
    challenges.

    Args:
        clips: units `(num_frames,)` of each clip.
        seconds: of all of them together.
    """
    tokens = np.concatenate([without_repeats(units) for units in clips])
    shares = np.array(list(Counter(tokens.tolist()).values())) / len(tokens)
    return float(len(tokens) / seconds * -(shares * np.log2(shares)).sum())


def run_edits(clean: Sequence[np.ndarray], changed: Sequence[np.ndarray]) -> float:
    """Edit distance between the runs of clips before and after a change, as a share of the runs before."""
    texts = [[" ".join(map(str, without_repeats(units))) for units in clips] for clips in (clean, changed)]
    return float(jiwer.wer(*texts))


def with_noise(samples: np.ndarray, noise: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """Samples with noise from a random place of a recording, at a signal-to-noise ratio over the whole clip."""
    tiled = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), len(samples))
    power = np.mean(np.square(tiled, dtype=np.float64))
    scale = np.sqrt(np.mean(np.square(samples, dtype=np.float64)) / max(power, 1e-12) * 10 ** (-decibels / 10))
    return (samples + scale * tiled).astype(np.float32)


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Samples played so much faster, pitch included."""
    return resample(samples, round(SAMPLING_RATE * speed))


def phone_tokens(units: np.ndarray, phones: Sequence[str], ends: np.ndarray, silences: Sequence[str]) -> list[Token]:
    """
    Triphones of a clip as tokens: the phone in the middle is the category, its neighbours are the context; all three
    are in the stretch. Those with a silence in them are left out.
    """
    spoken = phones_at_frames(np.arange(len(phones)), ends, len(units))
    starts = np.searchsorted(spoken.astype(int), np.arange(len(phones) + 1))
    tokens = []
    for middle in range(1, len(phones) - 1):
        first, last = starts[middle - 1], starts[middle + 2]
        before, phone, after = phones[middle - 1 : middle + 2]
        if last > first and not {before, phone, after} & set(silences):
            tokens.append(Token(units[first:last], phone, context=f"{before} {after}"))
    return tokens
