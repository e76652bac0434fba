"""Waveforms: any file that soundfile reads -> 16 kHz mono float32 within limits, or `BadAudio`. All audio comes here.

Nothing here, nor in `plain_wav.py`, `unsized.py` and `seeking.py`, needs the rest of `training`: the page in
`model_cards/space` takes these files along to a Space.
"""

import hashlib
import io
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from sjepa_hf.frames import MIN_SAMPLES, SAMPLING_RATE
from sjepa_hf.resampling import resample
from training.data.plain_wav import PlainWav, open_plain_wav
from training.data.seeking import place_before
from training.data.unsized import is_doubtful, is_right_after_all, parts


AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
SILENCE = 1e-4  # peak to peak, full scale 2: about three steps of 16-bit audio
LOUDEST = 100.0  # a peak beyond 100 times full scale: integers stored as floats, or garbage
RATES = (1_000, 192_000)  # Hz; beyond them are broken headers
MOST_CHANNELS = 64
LONGEST = 3600.0  # seconds of what is decoded at once: a clip without `max_seconds`
MOST_FRAMES = 1 << 28  # and frames of it at the file's own rate: an hour at 74 kHz, 1 GiB
MOST_COUNTED = 1 << 30  # samples of all channels decoded to learn a length: 18 hours of 16 kHz mono
BLOCK = 1 << 22  # samples of all channels decoded, at a time: 16 MiB
LENGTHS_KEPT = 1 << 16  # lengths found by decoding that a process remembers


REASONS = ("missing", "corrupt", "empty", "too_short", "too_long", "non_finite", "silent", "bad_line")


class BadAudio(ValueError):
    """A clip that cannot be used.

    Attributes:
        reason: "missing" (no such file, or its bytes cannot be fetched), "corrupt" (not decodable, or a rate, a number
            of channels or samples that no speech has), "empty" (no samples at all), "too_short", "too_long" (beyond
            what is decoded at once), "non_finite" (NaN or infinity), "silent" (the highest and the lowest sample
            differ by less than 1e-4, and `silence` is not wanted) or "bad_line" (a manifest's line that names no
            clip).
        detail: what was found; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return BadAudio, (self.reason, self.detail)


def audio_length(source: str | Path | bytes | BadAudio, *, offset: float = 0.0, duration: float | None = None) -> int:
    """How many samples at 16 kHz a clip has: by its header, or by decoding it where the header does not say.

    Args:
        source, offset, duration: as in `read_audio`.

    Returns:
        Samples at 16 kHz. Headers can be wrong: what `read_audio` decodes may be shorter.

    Raises:
        BadAudio: "missing", "corrupt", "empty", "too_long" (to be counted by decoding) or "bad_line".
    """
    with _Recording(source) as recording:
        _, frames = _segment(recording, offset, duration)
        return math.ceil(frames * SAMPLING_RATE / recording.rate)


def read_audio(
    source: str | Path | bytes | BadAudio,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    max_seconds: float | None = None,
    min_seconds: float = MIN_SAMPLES / SAMPLING_RATE,
    rng: np.random.Generator | Sequence[int] | None = None,
    silence: bool = False,
) -> np.ndarray:
    """Decode a clip, or a crop of it, to 16 kHz mono.

    Channels are averaged. Where the format can seek, only the crop is decoded.

    Args:
        source: path of the file, its content, or what is wrong with it.
        offset: start of the clip in the file, in seconds.
        duration: length of the clip in seconds; None reads to the end of the file.
        max_seconds: a longer clip is cropped to this length, at a random place if there is a `rng`, else at its start.
            None reads the whole clip, which may last an hour.
        min_seconds: a shorter clip is bad; at least 400 samples, one frame of the encoder.
        rng: source of randomness of the crop, or its seed.
        silence: take a clip in which nothing sounds. Without labels there is nothing to learn from it, and no text is
            said in it; but a class may mean it.

    Returns:
        Samples `(num_samples,)` in float32.

    Raises:
        BadAudio: if the clip cannot be used; `reason` says why.
    """
    with _Recording(source) as recording:
        rate = recording.rate
        start, frames = _segment(recording, offset, duration)
        if frames < min_seconds * rate:
            raise BadAudio("too_short", f"{frames / rate:.3f} s")
        if max_seconds is not None and frames > max_seconds * rate:
            crop = max(1, round(max_seconds * rate))
            if rng is not None:
                start += int(np.random.default_rng(rng).integers(frames - crop + 1))
            frames = crop
        elif frames > min(LONGEST * rate, MOST_FRAMES):
            raise BadAudio("too_long", f"{frames / rate:.0f} s at {rate} Hz: give a part of it by offset and duration")
        mono = recording.read(start, frames)
    if not len(mono):
        raise BadAudio("corrupt", "the header promises samples, the file has none")
    check_samples(mono, silence)
    mono = resample(mono, rate)
    if max_seconds is not None:
        mono = mono[: round(max_seconds * SAMPLING_RATE)]
    if len(mono) < max(MIN_SAMPLES, min_seconds * SAMPLING_RATE):
        raise BadAudio("too_short", f"{len(mono) / SAMPLING_RATE:.3f} s")
    return np.ascontiguousarray(mono)


class _Recording:
    """An opened file within limits, whatever its header says of its length. Decoded in blocks: a lie costs no memory.

    Attributes:
        rate: Hz.
        frames: number of frames, by the header or counted.
    """

    def __init__(self, source: str | Path | bytes | BadAudio):
        if isinstance(source, BadAudio):
            raise source
        if isinstance(source, bytes):
            size = len(source)
        else:
            try:
                status = os.stat(source)
            except (OSError, ValueError):  # ValueError: a name that no file can have
                status = None
            if status is None or not stat.S_ISREG(status.st_mode):  # a device, a pipe or a folder
                raise BadAudio("missing", f"{source} is not a file")
            size = status.st_size
        if size == 0:
            raise BadAudio("empty", "no bytes")
        self._source, self._file = source, _open(source)
        self._forward = not self._file.can_seek
        self.rate, self.frames = self._file.samplerate, self._file.frames
        try:
            with _decoding():
                if is_doubtful(self._file, source, size):
                    self.frames, self._forward = self._settled()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_Recording":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, start: int, frames: int) -> np.ndarray:
        """At most `frames` frames from `start` on, channels averaged: `(num_frames,)` in float32."""
        blocks = self._from_front(start, frames) if self._forward else self._from(start, frames)
        mono, filled = None, 0
        for block in blocks:
            if mono is None:
                if len(block) >= frames:
                    return block[:frames]
                mono = np.empty(frames, np.float32)  # touched as far as it is filled
            block = block[: frames - filled]
            mono[filled : filled + len(block)] = block
            filled += len(block)
            if filled == frames:
                break
        return np.empty(0, np.float32) if mono is None else mono[:filled]

    def _from(self, start: int, frames: int) -> Iterator[np.ndarray]:
        with _decoding():
            place = place_before(self._file, self._source, start)
            self._file.seek(place)
        for _ in _blocks(self._file, start - place):
            pass
        yield from _blocks(self._file, frames)

    def _from_front(self, start: int = 0, frames: int | None = None) -> Iterator[np.ndarray]:
        """The blocks from `start` on: for formats that cannot seek, and files whose length is unknown."""
        left = None if frames is None else start + frames
        with _decoding():
            pieces = list(parts(self._file.format, self._source))
        for part in pieces:
            with _open(part, plain=False) as file:
                if file.subtype == "OPUS":
                    file.seek(0)  # libsndfile drops the pre-skip of many files only then
                if file.samplerate != self.rate:
                    raise BadAudio("corrupt", f"parts of {self.rate} and of {file.samplerate} Hz")
                for block in _blocks(file, left):
                    left = None if left is None else left - len(block)
                    skipped = min(start, len(block))
                    start -= skipped
                    if skipped < len(block):
                        yield block[skipped:]

    def _settled(self) -> tuple[int, bool]:
        """The true number of frames, and whether the file can only be decoded from front to back; found once."""
        if isinstance(self._source, bytes):
            key = hashlib.blake2b(self._source, digest_size=16).digest()
        else:
            status = os.stat(self._source)
            key = (os.fspath(self._source), status.st_size, status.st_mtime_ns)
        if (known := _lengths.get(key)) is not None:
            return known
        right = is_right_after_all(self._file, self._source)
        length = (self.frames, False) if right else (self._counted(), True)
        if len(_lengths) >= LENGTHS_KEPT:
            _lengths.clear()
        _lengths[key] = length
        return length  # which another thread may have cleared

    def _counted(self) -> int:
        frames = 0
        for block in self._from_front():
            frames += len(block)
            if frames * self._file.channels > MOST_COUNTED:
                raise BadAudio("too_long", f"more than {frames / self.rate:.0f} s, and the header does not say")
        return frames


_lengths: dict[bytes | tuple, tuple[int, bool]] = {}


class _Onwards(soundfile.SoundFile):
    """A file whose blocks follow one another: after each, soundfile seeks if the file says it can, and spoils MP3."""

    @property
    def can_seek(self) -> bool:
        return super().seekable()

    def seekable(self) -> bool:
        return False


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns what the decoders raise into `BadAudio`."""
    try:
        yield
    except BadAudio:
        raise
    # TypeError: headerless .raw. ValueError: a name that no file can have.
    except (soundfile.SoundFileError, RuntimeError, TypeError, OSError, ValueError) as error:
        raise BadAudio("corrupt", getattr(error, "error_string", "") or str(error)) from error


def _open(content, plain: bool = True) -> _Onwards | PlainWav:
    """
    Open a path, bytes or a file object. `plain`: try the fast WAV reader first (no file objects). Raises BadAudio.
    """
    with _decoding():
        file = open_plain_wav(content) if plain else None
        if file is None:
            if isinstance(content, bytes):
                content = io.BytesIO(content)
            elif isinstance(content, str | Path):
                content = os.fsencode(content)  # soundfile refuses names that are not UTF-8
            file = _Onwards(content)
    wrong = None
    if not RATES[0] <= file.samplerate <= RATES[1]:
        wrong = f"sampling rate {file.samplerate} Hz"
    elif not 1 <= file.channels <= MOST_CHANNELS:
        wrong = f"{file.channels} channels"
    if wrong:
        file.close()
        raise BadAudio("corrupt", wrong)
    return file


def _blocks(file: _Onwards | PlainWav, frames: int | None) -> Iterator[np.ndarray]:
    """The next `frames` frames of a file, or all, as blocks `(num_frames,)` of the mean of the channels."""
    longest = BLOCK // file.channels
    while frames is None or frames > 0:
        wanted = longest if frames is None else min(frames, longest)
        with _decoding():
            block = file.read(wanted, dtype="float32", always_2d=True)
        if len(block):
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if len(block) < wanted:
            return
        if frames is not None:
            frames -= wanted


def _segment(recording: _Recording, offset: float, duration: float | None) -> tuple[int, int]:
    """First frame and number of frames, at the file's own rate, of the clip within the file."""
    start = round(offset * recording.rate)
    frames = recording.frames - start
    if duration is not None:
        frames = min(frames, round(duration * recording.rate))
    if frames <= 0:
        seconds = recording.frames / recording.rate
        raise BadAudio("empty", f"{seconds:.3f} s in the file, the clip starts at {offset} s")
    return start, frames


def check_samples(samples: np.ndarray, silence: bool = False) -> None:
    """
    Raise `BadAudio` if samples `(num_samples,)` are not finite, far beyond full scale, or, unless `silence` is wanted,
    silent.
    """
    lowest, highest = float(samples.min()), float(samples.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):  # min and max hand NaN on
        raise BadAudio("non_finite")
    if max(-lowest, highest) > LOUDEST:
        raise BadAudio("corrupt", f"peak {max(-lowest, highest):.3g}, full scale is 1")
    if highest - lowest < SILENCE and not silence:
        raise BadAudio("silent")
