"""What a row of a source becomes: a name to tell, and what is to be decoded."""

import numpy as np
import pytest
from clip_streams import as_source, write_clips

from training.data.clips import Clip, Source
from training.data.waveforms import BadAudio


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path, 2)


def test_a_row_of_a_list_is_a_file_or_a_part_of_one(clips):
    source = as_source(clips)
    whole = source.clip({"path": clips[0], "offset": None, "duration": None}, 0)
    assert whole == Clip(clips[0], clips[0])
    part = source.clip({"path": clips[0], "offset": 0.025, "duration": 0.05}, 0)
    np.testing.assert_array_equal(part.read(), whole.read()[400:1200])


@pytest.mark.parametrize(
    "audio, name",
    [
        ({"path": "a.wav", "bytes": b"RIFF"}, "a.wav"),
        ({"path": None, "bytes": b"RIFF"}, "corpus[7]"),
        (b"RIFF", "corpus[7]"),
        ("b.wav", "b.wav"),
        ({"path": "line\nbreak.wav", "bytes": b"RIFF"}, r"line\nbreak.wav"),
    ],
)
def test_a_row_of_a_column_has_bytes_or_a_path(audio, name):
    clip = Source("corpus", [], "audio").clip({"audio": audio}, 7)
    assert clip.name == name and clip.audio == ("b.wav" if audio == "b.wav" else b"RIFF")


def test_a_bad_clip_of_a_source_says_why(clips):
    source = as_source(clips[:2])
    clip = source.clip({"path": "x", "offset": None, "duration": None, "bad_line": BadAudio("bad_line", "line 3")}, 0)
    with pytest.raises(BadAudio, match="line 3"):
        clip.read()
