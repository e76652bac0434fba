"""Unsized audio files, whose headers do not say how long they are: written to a pipe, or put together from pieces.

libsndfile believes such a header, or guesses: it stops early without an error, or says 2**63 - 1 frames.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import soundfile


DENSEST = 256  # samples a byte that a header may claim before it is doubted; speech has fewer than 64 in any format
LONGEST_PAGE = 27 + 255 * 256  # bytes, of Ogg
LARGEST = 1 << 28  # bytes of a file that must be mended in memory
MOST_MP3_FRAMES = LARGEST // 24  # of 24 bytes, the shortest there are
NO_SOUND = (b"LIST", b"id3 ", b"ID3 ", b"PEAK", b"cue ", b"fact", b"bext", b"JUNK", b"iXML", b"_PMX", b"afsp")
BIT_RATES = {  # of layer III in kbit/s, by whether it is MPEG-1
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by MPEG version


def is_doubtful(file: soundfile.SoundFile, source: str | Path | bytes, size: int) -> bool:
    """Whether the number of frames that libsndfile gives of a file of `size` bytes may not be the true one."""
    if file.frames * file.channels > DENSEST * size:
        return True
    if size > LARGEST:
        return False
    if file.format in ("WAV", "WAVEX"):
        return file.frames == 0 and _unsized_data(_content(source)) is not None
    if file.format == "OGG":
        return _is_chained(source, size)
    return file.format == "MP3" and not _has_count(source, size)


def is_right_after_all(file: soundfile.SoundFile, source: str | Path | bytes) -> bool:
    """Whether a doubtful number is that of an MP3 file of constant bit rate. Reads all of the file."""
    return file.format == "MP3" and _is_constant(_content(source), file.frames)


def parts(kind: str, source: str | Path | bytes) -> Iterator[str | Path | BinaryIO]:
    """What is to be decoded, from front to back and one after another, to get all that a file of a format holds."""
    small = isinstance(source, bytes) or Path(source).stat().st_size <= LARGEST
    if kind in ("WAV", "WAVEX") and small and (place := _unsized_data(_content(source))) is not None:
        content = bytearray(_content(source))
        content[place + 4 : place + 8] = b"\xff" * 4  # to the end of the file
        yield io.BytesIO(content)
    elif kind == "MP3" and small:
        yield _Endless(_without_count(_content(source)))
    elif kind == "OGG" and small:
        yield from map(io.BytesIO, _links(_content(source)))
    else:
        yield io.BytesIO(source) if isinstance(source, bytes) else source


def _content(source: str | Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def piece(source: str | Path | bytes, start: int, length: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + length]
    with open(source, "rb") as file:
        file.seek(start)
        return file.read(length)


def _unsized_data(content: bytes) -> int | None:
    """Place of a WAV file's data chunk that says it is empty, with sound after it."""
    place = 12
    while place + 8 < len(content):
        name, size = content[place : place + 4], struct.unpack_from("<I", content, place + 4)[0]
        if name == b"data":
            sound = size == 0 and content[place + 8 : place + 12] not in NO_SOUND
            return place if sound else None
        place += 8 + size + size % 2
    return None


class _Endless(io.BytesIO):
    """An MP3 file that seems far larger than it is: its length is guessed from that, and decoding stops there."""

    _at_end = False

    def seek(self, place: int, whence: int = 0) -> int:
        self._at_end = whence == 2 and place == 0
        return super().seek(place, whence)

    def tell(self) -> int:
        return super().tell() << 12 if self._at_end else super().tell()


def _has_count(source: str | Path | bytes, size: int) -> bool:
    """Whether the first frame of an MP3 file gives the number of all, for about as many bytes as there are."""
    start = _tag(piece(source, 0, 10))
    head = piece(source, start, 2048)
    if b"VBRI" in head:
        return True
    place = _place_of_count(head)
    if place is None:
        return False
    flags, frames, counted = struct.unpack_from(">III", head, place - 4)
    if not frames:
        return False
    return not flags & 2 or counted > (size - start) / 2 and not _goes_on(source, size, head, start + counted)


def _place_of_count(head: bytes) -> int | None:
    """Place of the number of frames in the first frame of an MP3 file, if it is there."""
    place = max(head.find(b"Xing"), head.find(b"Info"))
    return place + 8 if place >= 0 and place + 16 <= len(head) and head[place + 7] & 1 else None


def _goes_on(source: str | Path | bytes, size: int, head: bytes, place: int) -> bool:
    """Whether another MP3 file of the kind that begins with `head` follows at a place, and not a tag."""
    if size - place < len(head):
        return False
    first = piece(source, place + _tag(piece(source, place, 10)), 4)
    return len(first) == 4 and first[0] == 255 and (first[1] ^ head[1]) < 2 and not (first[2] ^ head[2]) & 12


def _without_count(content: bytes) -> bytes:
    """An MP3 file whose first frame promises more frames than there are: decoding stops at what it says."""
    start = _tag(content[:10])
    place = _place_of_count(content[start : start + 2048])
    if place is None:
        return content
    return content[: start + place] + MOST_MP3_FRAMES.to_bytes(4, "big") + content[start + place + 4 :]


def _tag(head: bytes) -> int:
    """Bytes of the ID3v2 tag that a file begins with."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(head[6:10]))


def _is_constant(content: bytes, frames: int) -> bool:
    """Whether the frames of an MP3 file come to about the length `frames` that was guessed from the first one."""
    place, found, misses = _tag(content[:10]), 0, 0
    while 0 <= place < len(content) - 4:
        _, kind, sizes, _ = content[place : place + 4]
        version, bit_rate, rate = kind >> 3 & 3, sizes >> 4, sizes >> 2 & 3
        is_frame = content[place] == 255 and kind >> 5 == 7 and kind >> 1 & 3 == 1 and version != 1
        if not is_frame or not 0 < bit_rate < 15 or rate == 3:
            place, misses = content.find(b"\xff", place + 1), misses + 1
            if misses > 10_000:
                return False
            continue
        half = 1 if version == 3 else 2
        place += 144_000 // half * BIT_RATES[version == 3][bit_rate - 1] // RATES[version][rate] + (sizes >> 1 & 1)
        found += 1152 // half
    return abs(found - frames) <= 0.02 * found + 2 * 1152


def _is_chained(source: str | Path | bytes, size: int) -> bool:
    """Whether an Ogg file ends with another stream than it begins with."""
    tail = piece(source, max(0, size - LONGEST_PAGE), LONGEST_PAGE)
    last = tail.rfind(b"OggS\0")
    return last >= 0 and tail[last + 14 : last + 18] != piece(source, 14, 4)


def _links(content: bytes) -> list[bytes]:
    """The streams of an Ogg file that follow one another; each begins anew, and libsndfile reads the first alone."""
    starts, place, beginning = [], 0, False
    while content[place : place + 4] == b"OggS" and place + 27 <= len(content):
        if content[place + 5] & 2 and not beginning:
            starts.append(place)
        beginning = bool(content[place + 5] & 2)
        segments = content[place + 27 : place + 27 + content[place + 26]]
        place += 27 + len(segments) + sum(segments)
    return [content[start:end] for start, end in zip(starts or [0], [*starts[1:], None])]
