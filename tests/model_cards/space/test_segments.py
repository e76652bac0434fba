"""Segments of a unit: what is heard of each, and all of them in one sound."""

import numpy as np
import pytest
from segments import MOST, cut, joined, other_segments

from sjepa_hf.units import UnitRun


SAMPLES = np.ones(32000, np.float32)


def test_a_segment_is_heard_with_what_is_around_it():
    segment = cut("a.wav", SAMPLES, 0.5, 0.04)
    assert segment[:3] == ("a.wav", 0.5, 0.04) and len(segment.samples) == round(0.14 * 16000)
    assert segment.samples[0] == segment.samples[-1] == 0 and (segment.samples[160:-160] == 1).all()
    assert (SAMPLES == 1).all()
    assert len(cut("a.wav", SAMPLES, 0.0, 0.02).samples) == round(0.07 * 16000)  # nothing lies before the clip
    assert len(cut("a.wav", SAMPLES, 0.5, 9.0).samples) == round(1.1 * 16000)  # of a long pause a second


def test_others_of_a_clip_are_its_longest_in_their_order():
    runs = [UnitRun(n % 2, 0.1 * n, 0.02 * (1 + n % 5)) for n in range(40)]
    found = other_segments("a.wav", SAMPLES, runs, 1, runs[3].start)
    assert len(found) == MOST and [s.start for s in found] == sorted(s.start for s in found)
    assert all(round(10 * s.start) % 2 == 1 and s.start != runs[3].start for s in found)
    assert min(s.seconds for s in found) == 0.06  # of 19, four each of 0.1, 0.06, 0.02 and 0.04, three of 0.08
    assert other_segments("a.wav", SAMPLES, runs[:2], 1, runs[1].start) == []


def test_all_lie_one_after_another():
    segments = [cut("a.wav", SAMPLES, 0.5, 0.04), cut("b.wav", SAMPLES, 1.0, 0.1)]
    samples, begun = joined(segments)
    assert begun == [0.0, pytest.approx(0.14 + 0.25)] and len(samples) == round((0.14 + 0.2 + 0.5) * 16000)
    for segment, start in zip(segments, begun):
        first = round(start * 16000)
        assert (samples[first : first + len(segment.samples)] == segment.samples).all()
        assert not samples[first + len(segment.samples) :][:4000].any()
