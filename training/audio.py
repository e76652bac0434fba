"""Audio decoding: any file soundfile reads -> 16 kHz mono float32, with bad clips told apart by reason."""

import io
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import soundfile
import torch
from datasets import Dataset, IterableDataset
from torchaudio.transforms import Resample

from sjepa_hf.command import UserError
from training.naming import printable


logger = logging.getLogger(__name__)

SAMPLING_RATE = 16000
MIN_SAMPLES = 400  # one frame of the encoder
SILENCE = 1e-4  # peak to peak, full scale 2: about three steps of 16-bit audio
LOUDEST = 100.0  # a peak beyond 100 times full scale: integers stored as floats, or garbage
LOWEST_RATE = 1000  # Hz; no speech below, only broken headers
UNKNOWN_FRAMES = 1 << 40  # headers of cut-off streams claim more


class BadAudio(ValueError):
    """A clip that cannot be used.

    Attributes:
        reason: "missing" (no such file, or its bytes cannot be fetched), "corrupt" (not decodable, or samples beyond
            100 times full scale), "empty" (no samples at all), "too_short", "non_finite" (NaN or infinity), "silent"
            (the highest and the lowest sample differ by less than 1e-4) or "bad_line" (a manifest's line that names no
            clip).
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def audio_length(source: str | Path | bytes | BadAudio, *, offset: float = 0.0, duration: float | None = None) -> int:
    """Read from the header alone how many samples at 16 kHz a clip has.

    Args:
        source, offset, duration: as in `read_audio`.

    Returns:
        Samples at 16 kHz. Headers can be wrong: what `read_audio` decodes may be shorter.

    Raises:
        BadAudio: "missing", "corrupt", "empty" or "bad_line".
    """
    with _open(source) as file:
        _, frames = _segment(file, offset, duration)
        return math.ceil(frames * SAMPLING_RATE / file.samplerate)


def read_audio(
    source: str | Path | bytes | BadAudio,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    max_seconds: float | None = None,
    min_seconds: float = MIN_SAMPLES / SAMPLING_RATE,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decode a clip, or a crop of it, to 16 kHz mono.

    Channels are averaged. Where the format can seek, only the crop is decoded.

    Args:
        source: path of the file, its content, or what is wrong with it.
        offset: start of the clip in the file, in seconds.
        duration: length of the clip in seconds; None reads to the end of the file.
        max_seconds: a longer clip is cropped to this length, at a random place if there is a `rng`, else at its start.
        min_seconds: a shorter clip is bad; at least 400 samples, one frame of the encoder.
        rng: source of randomness of the crop.

    Returns:
        Samples `(num_samples,)` in float32.

    Raises:
        BadAudio: if the clip cannot be used; `reason` says why.
    """
    with _open(source) as file:
        rate = file.samplerate
        start, frames = _segment(file, offset, duration)
        if frames < min_seconds * rate:
            raise BadAudio("too_short", f"{frames / rate:.3f} s")
        if max_seconds is not None and frames > max_seconds * rate:
            crop = max(1, round(max_seconds * rate))
            if rng is not None and frames < UNKNOWN_FRAMES:
                start += int(rng.integers(frames - crop + 1))
            frames = crop
        try:
            if file.seekable():
                file.seek(start)
            else:
                file.read(start)
            samples = file.read(frames if frames < UNKNOWN_FRAMES else -1, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise BadAudio("corrupt", str(error)) from error
    if not len(samples):
        raise BadAudio("corrupt", "the header promises samples, the file has none")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    check_samples(mono)
    mono = _resample(mono, rate)
    if max_seconds is not None:
        mono = mono[: round(max_seconds * SAMPLING_RATE)]
    if len(mono) < max(MIN_SAMPLES, min_seconds * SAMPLING_RATE):
        raise BadAudio("too_short", f"{len(mono) / SAMPLING_RATE:.3f} s")
    return np.ascontiguousarray(mono)


def _open(source: str | Path | bytes | BadAudio) -> soundfile.SoundFile:
    if isinstance(source, BadAudio):
        raise source
    if isinstance(source, bytes):
        if not source:
            raise BadAudio("empty", "no bytes")
        source = io.BytesIO(source)
    else:
        if not os.path.isfile(source):
            raise BadAudio("missing", f"{source} is no file")
        if os.path.getsize(source) == 0:
            raise BadAudio("empty", "no bytes")
        source = os.fsencode(source)  # soundfile refuses names that are not UTF-8
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, RuntimeError, TypeError, OSError) as error:  # TypeError: headerless .raw
        raise BadAudio("corrupt", str(error)) from error
    if file.samplerate < LOWEST_RATE:
        file.close()
        raise BadAudio("corrupt", f"sampling rate {file.samplerate} Hz")
    return file


def _segment(file: soundfile.SoundFile, offset: float, duration: float | None) -> tuple[int, int]:
    """First frame and number of frames, at the file's own rate, of the clip within the file."""
    start = round(offset * file.samplerate)
    frames = file.frames - start
    if duration is not None:
        frames = min(frames, round(duration * file.samplerate))
    if frames <= 0:
        raise BadAudio("empty", f"{file.frames / file.samplerate:.3f} s in the file, the clip starts at {offset} s")
    return start, frames


def check_samples(samples: np.ndarray) -> None:
    """Raise `BadAudio` if samples `(num_samples,)` are not finite, far beyond full scale, or silent."""
    lowest, highest = float(samples.min()), float(samples.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):  # min and max hand NaN on
        raise BadAudio("non_finite")
    if max(-lowest, highest) > LOUDEST:
        raise BadAudio("corrupt", f"peak {max(-lowest, highest):.3g}, full scale is 1")
    if highest - lowest < SILENCE:
        raise BadAudio("silent")


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLING_RATE:
        return samples
    # Rates without a large common divisor would need a huge filter; the nearest ratio is off by less than 1 in 1000.
    ratio = Fraction(rate, SAMPLING_RATE).limit_denominator(640)
    if ratio == 1:
        return samples
    with torch.no_grad():
        return _resampler(ratio.numerator, ratio.denominator)(torch.from_numpy(np.ascontiguousarray(samples))).numpy()


@lru_cache(maxsize=16)
def _resampler(source_rate: int, target_rate: int) -> Resample:
    return Resample(source_rate, target_rate)


class Clip(NamedTuple):
    """One clip: how to report it, a path, the encoded bytes or why there are none, and its place in the file."""

    name: str
    audio: str | bytes | BadAudio
    offset: float = 0.0
    duration: float | None = None

    def read(self, **options) -> np.ndarray:
        """`read_audio` of this clip."""
        return read_audio(self.audio, offset=self.offset, duration=self.duration, **options)


class Source(NamedTuple):
    """
    An opened source: `column` holds the audio; None means rows of path, offset and duration. A row that cannot be used
    says why as `bad_line`.
    """

    name: str
    dataset: Dataset | IterableDataset | Sequence[dict]
    column: str | None

    def clip(self, row: dict, number: int | str) -> Clip:
        if self.column is None:
            offset = 0.0 if row["offset"] is None else row["offset"]
            return Clip(printable(row["path"]), row.get("bad_line") or fetch(row["path"]), offset, row["duration"])
        audio = row[self.column]
        path, content = (audio.get("path"), audio.get("bytes")) if isinstance(audio, dict) else (None, audio)
        name = path or (content if isinstance(content, str) else f"{self.name}[{number}]")
        return Clip(printable(name), fetch(path or "") if content is None else fetch(content))


def fetch(audio: str | bytes) -> str | bytes:
    """Local paths and bytes as they are, the bytes behind a URL; a URL that fails stays one, and counts as missing."""
    if isinstance(audio, bytes) or "://" not in audio:
        return audio
    try:
        with fsspec.open(audio, "rb") as file:
            return file.read()
    except Exception as error:  # one of any file system's
        logger.info("Could not fetch %s: %s", audio, error)
        return audio


class BadAudioError(UserError):
    """So much of the audio cannot be used that the run stops."""


class BadAudioMonitor:
    """Counts the clips that had to be skipped, names them in the log and stops a run that skips too many.

    Args:
        max_bad_fraction: the share of clips that may be skipped.
        min_clips: clips to see before the share is judged.

    A source that vanishes in the middle of a long run would hardly move the share of all clips so far: the run also
    stops when most of the last 1,000 clips were skipped.

    Attributes:
        seen: clips so far, usable or not.
        by_reason: skipped clips for each reason of `BadAudio`.
    """

    names_logged = 20
    recent_clips = 1000

    def __init__(self, max_bad_fraction: float = 0.05, min_clips: int = 50):
        self.max_bad_fraction = max_bad_fraction
        self.min_clips = min_clips
        self.seen = 0
        self.by_reason: Counter[str] = Counter()
        self._restored_seen, self._restored = 0, Counter()
        self._named: set[str] = set()
        self._recent: deque[tuple[int, int]] = deque()  # clips and skipped ones of the last batches
        self._recent_seen = self._recent_skipped = 0

    def restore(self, seen: int, by_reason: dict[str, int]) -> None:
        """Count on from an earlier run. `check` judges what comes from here on: the data may have been repaired."""
        self.seen, self.by_reason = seen, Counter(by_reason)
        self._restored_seen, self._restored = seen, Counter(by_reason)

    @property
    def skipped(self) -> int:
        return self.by_reason.total()

    def update(self, num_clips: int, skipped: Sequence[tuple[str, str]]) -> None:
        """Take in one batch: the number of its clips, and its `skipped` list of `(name, reason)`."""
        self.seen += num_clips + len(skipped)
        self._recent.append((num_clips + len(skipped), len(skipped)))
        self._recent_seen += num_clips + len(skipped)
        self._recent_skipped += len(skipped)
        while self._recent_seen - self._recent[0][0] >= self.recent_clips:
            seen, bad = self._recent.popleft()
            self._recent_seen, self._recent_skipped = self._recent_seen - seen, self._recent_skipped - bad
        for name, reason in skipped:
            self.by_reason[reason] += 1
            if name in self._named or len(self._named) >= self.names_logged:
                continue
            self._named.add(name)
            logger.warning("Skipped %s: %s.", name, reason)
            if len(self._named) == self.names_logged:
                logger.warning("%d bad clips named; from here on they are only counted.", self.names_logged)

    def check(self, end_of_data: bool = False) -> None:
        """Stop the run if the audio is bad.

        Args:
            end_of_data: the loader has given all its batches: no usable clip at all is then an error too.

        Raises:
            BadAudioError: if more than `max_bad_fraction` of at least `min_clips` clips were skipped, or most of the
                last 1,000, or all of them were and no more will come.
        """
        seen, reasons = self._since_restored()
        skipped = reasons.total()
        if end_of_data and seen == skipped:
            raise BadAudioError(f"The training data gave no usable clip: {self._counts()}; check train_data.")
        if seen >= self.min_clips and skipped > self.max_bad_fraction * seen:
            raise BadAudioError(
                f"{self._counts()}, more than max_bad_fraction={self.max_bad_fraction} allows: "
                "repair the data (the log names the first ones) or raise max_bad_fraction."
            )

        most = max(0.5, self.max_bad_fraction)
        if self._recent_seen >= self.recent_clips and self._recent_skipped > most * self._recent_seen:
            raise BadAudioError(
                f"{self._recent_skipped} of the last {self._recent_seen} clips were skipped ({self._counts()} in all):"
                " has a disk or a source gone away?"
            )

    def _counts(self) -> str:
        seen, reasons = self._since_restored()
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return f"{reasons.total()} of {seen} clips were skipped ({listed or 'none was read'})"

    def _since_restored(self) -> tuple[int, Counter[str]]:
        return self.seen - self._restored_seen, self.by_reason - self._restored
