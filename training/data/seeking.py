"""Seeking: where decoding has to begin so that a piece of a file is the same as in the whole.

libsndfile seeks to the sample in all formats but two. Of MPEG it takes too little of what a frame borrows from those
before it, which spoils the first 10 ms. In the last page of Ogg Vorbis it lands up to 480 samples too late.
"""

import re
import struct
from pathlib import Path

import soundfile

from training.data.plain_wav import PlainWav
from training.data.unsized import LONGEST_PAGE, piece


BORROWED = 20_000  # samples: 255 bytes are borrowed from at most 29 frames of 576, at 8 kbit/s and 24 kHz


def place_before(file: soundfile.SoundFile | PlainWav, source: str | Path | bytes, start: int) -> int:
    """The last frame, at `start` or before it, from which what is decoded is right when `start` is reached."""
    if file.subtype.startswith("MPEG"):
        return max(0, start - BORROWED)
    if file.subtype == "VORBIS" and start > 0:
        return max(0, min(start, file.frames - _last_page(source)))
    return start


def _last_page(source: str | Path | bytes) -> int:
    """Frames that end in the last page of an Ogg Vorbis file, or more."""
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    tail = piece(source, max(0, size - 2 * LONGEST_PAGE), 2 * LONGEST_PAGE)
    pages = [match.start() for match in re.finditer(rb"OggS\0", tail) if match.start() + 14 <= len(tail)]
    ends = [end for end in (struct.unpack_from("<q", tail, page + 6)[0] for page in pages) if end >= 0]
    return ends[-1] - ends[-2] if len(ends) > 1 else 1 << 62
