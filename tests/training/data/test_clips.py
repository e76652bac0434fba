"""Clips: a name to tell, and what is to be decoded."""

import numpy as np
import pytest
from clip_streams import as_source, write_clips

from training.data.clips import Clip
from training.data.waveforms import BadAudio


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path, 2)


def test_a_clip_is_a_file_or_a_part_of_one(clips):
    whole = as_source(clips).clip(as_source(clips).dataset[0], 0)
    assert whole == Clip(clips[0], clips[0])
    part = Clip(clips[0], clips[0], 0.025, 0.05)
    np.testing.assert_array_equal(part.read(), whole.read()[400:1200])


def test_a_bad_clip_says_why():
    with pytest.raises(BadAudio, match="line 3"):
        Clip("x", BadAudio("bad_line", "line 3")).read()
