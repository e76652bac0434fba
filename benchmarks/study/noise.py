"""Words among noise: a classifier of clean clips, or of noisy copies too, on clips with noise over and around them.

    python -m benchmarks.study.noise runs/a/final runs/b/final --speech ../shared/speech --output noise.json

40 Arabic words, the official split, no voice in two parts (`speech_manifest.py`): a logistic regression on mean and
deviation over the frames of all layers, `C` 0.01. MFCC and the first checkpoint's network untrained stand beside. The
noise is recorded (`NOISES`, in no manifest of the study) but for the hiss. With --noisy_copies the classifier has
heard a copy of each word of its training part among coloured noise, too. Where noise is around a word, only the word's
own frames are read: what the encoder makes of them is what is asked, not whether a classifier finds the word.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.study.speech_manifest import KEYWORDS, manifest_rows, speech_folder
from sjepa_hf.command import CommandParser, command
from sjepa_hf.frames import HOP, SAMPLING_RATE, frame_lengths
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import MFCC, UNTRAINED, markdown_table, short_names
from training.data.coloured_noise import coloured
from training.data.waveforms import read_audio
from training.evaluation.encoders import Encoder, check_encoders, open_encoder


NOISES = ("noise/arabic/boiler.opus", "noise/speech_commands/running_tap.opus")
HISS = 1e-3  # deviation of white noise: -60 dB of full scale, where the words' is 0.02 to 0.1
COPIES_DB = (0.0, 25.0)  # how far below its word the noise of a copy lies
LEAD = 2.0  # seconds of noise before a word
BATCH = 16

Disturb = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Noises:
    """Noise of unit power, from a random place of one of `recordings`, each `(num_samples,)`."""

    def __init__(self, recordings: Sequence[np.ndarray]):
        self.recordings = recordings

    def __call__(self, size: int, rng: np.random.Generator) -> np.ndarray:
        recording = self.recordings[rng.integers(len(self.recordings))]
        begin = rng.integers(len(recording) - size)
        noise = recording[begin : begin + size]
        return noise / np.sqrt(np.mean(noise**2) + 1e-12)

    def over(self, decibels: float) -> Disturb:
        """Noise over all of a word, so far below it."""
        return lambda word, rng: word + self(len(word), rng) * level(word, decibels)

    def before(self, decibels: float) -> Disturb:
        """`LEAD` seconds of noise before a word, so far below it."""
        size = round(LEAD * SAMPLING_RATE)
        return lambda word, rng: np.concatenate([self(size, rng) * level(word, decibels), word])


def level(word: np.ndarray, decibels: float) -> float:
    """Deviation of noise that is `decibels` below a word."""
    return float(np.sqrt(np.mean(word**2)) * 10 ** (-decibels / 20))


def hiss_before(word: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.standard_normal(round(LEAD * SAMPLING_RATE)) * HISS, word])


def among_coloured(word: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    (noise,) = coloured(1, len(word), torch.Generator().manual_seed(int(rng.integers(2**63)))).numpy()
    return word + noise * level(word, rng.uniform(*COPIES_DB))


def unchanged(word: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return word


def conditions(noises: Noises) -> dict[str, Disturb]:
    """By name, what is done to a word, which stands at the end of what comes out."""
    return {
        "clean": unchanged,
        **{f"{decibels} dB": noises.over(decibels) for decibels in (20, 10, 0)},
        "2 s of noise 30 dB below before": noises.before(30),
        "2 s of hiss before": hiss_before,
    }


def vectors(encoder: Encoder, words: Sequence[np.ndarray], disturb: Disturb) -> np.ndarray:
    """
    Mean and deviation of every layer over each word's own frames: words `(num_samples,)` at 16 kHz ->
    `(num_words, num_layers * 2 * hidden_size)`.
    """
    rng = np.random.default_rng(0)
    found = []
    for first in range(0, len(words), BATCH):
        batch = words[first : first + BATCH]
        heard = [disturb(word, rng).astype(np.float32) for word in batch]
        for word, clip, layers in zip(batch, heard, encoder(heard), strict=True):
            begin = (len(clip) - len(word)) // HOP
            own = layers[:, begin : begin + frame_lengths(len(word))]  # (num_layers, frames, hidden_size)
            found.append(torch.cat([own.mean(1), own.std(1, correction=0)]).flatten().cpu().numpy())
    return np.stack(found)


def accuracies(
    encoder: Encoder, parts: dict[str, tuple[list, list]], disturbances: dict[str, Disturb], copies: Sequence[Disturb]
) -> dict[str, float]:
    """
    Accuracy on the test part in each condition. `parts` has the words and labels of "train" and "test"; the classifier
    is fitted to all `copies` of the former.
    """
    (words, labels), (tested, truth) = parts["train"], parts["test"]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    classifier.fit(np.concatenate([vectors(encoder, words, copy) for copy in copies]), labels * len(copies))
    return {
        name: float(classifier.score(vectors(encoder, tested, disturb), truth))
        for name, disturb in disturbances.items()
    }


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoints", nargs="+", help="directories, such as OUTPUT_DIR/final of training.pretrain")
    parser.add_argument("--speech", type=Path, help="the speech collection (default: what SJEPA_SPEECH names)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--noisy_copies", action="store_true", help="fit to noisy copies of the words, too")
    arguments = parser.parse_args(argv)
    speech = speech_folder(arguments.speech)
    checkpoints = [str(Path(checkpoint).resolve()) for checkpoint in arguments.checkpoints]
    subjects = [MFCC, f"{UNTRAINED}{checkpoints[0]}", *checkpoints]
    check_encoders(subjects)
    parts = {}
    for part in ("train", "test"):
        rows = manifest_rows(speech, KEYWORDS, part)
        parts[part] = [read_audio(row["audio_filepath"]) for row in rows], [row["keyword"] for row in rows]
    disturbances = conditions(Noises([read_audio(speech / name) for name in NOISES]))
    copies = [unchanged, among_coloured] if arguments.noisy_copies else [unchanged]
    found = {subject: accuracies(open_encoder(subject), parts, disturbances, copies) for subject in subjects}
    write_text_aside(arguments.output, json.dumps(found, indent=1) + "\n")
    names = short_names(found)
    rows = [[names[subject], *(f"{value:.3f}" for value in scores.values())] for subject, scores in found.items()]
    print(markdown_table(["", *disturbances], rows))


if __name__ == "__main__":
    main()
