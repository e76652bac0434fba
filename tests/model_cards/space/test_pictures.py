"""The pictures of the page: time where the page says that it runs, sizes that WebP can hold."""

import io
import warnings

import numpy as np
import pytest
from listening import Clip, Heard, Word
from matplotlib import font_manager
from pictures import _families, draw_clip
from PIL import Image
from tones import speechlike


@pytest.mark.parametrize(("seconds", "components"), [(0.1, 2), (0.5, 3), (18, 10)])
def test_the_time_axis_fills_the_box_that_the_line_runs_in(seconds, components):
    """In short and in wide pictures: where the box says that time begins and ends, the spectrogram does."""
    samples = speechlike(seconds)
    posteriors = np.random.default_rng(0).dirichlet(np.ones(components), (len(samples) - 400) // 320 + 1)
    heard = Heard([], posteriors.astype(np.float32), posteriors.argmax(1), [])
    picture = draw_clip(Clip(samples, seconds), heard, np.linspace(0, 1, components))
    image = np.asarray(Image.open(io.BytesIO(picture.webp)).convert("L")).astype(int)
    left, top, width, height = picture.box
    row = image[round((top + 0.1 * height) * image.shape[0])]
    dark = np.flatnonzero(row < 200)
    inside = dark[(dark > (left - 0.002) * len(row)) & (dark < (left + width + 0.002) * len(row))]
    assert inside[0] == pytest.approx(left * len(row), abs=3)
    assert inside[-1] == pytest.approx((left + width) * len(row), abs=0.01 * len(row))


def test_the_widest_picture_is_one_that_webp_can_hold():
    samples = np.zeros(60 * 16000, np.float32)
    samples[::100] = 0.1
    picture = draw_clip(Clip(samples, 60.0), Heard([], None, None, None), None, zoom=4)
    assert Image.open(io.BytesIO(picture.webp)).width <= 16383 and picture.inches == pytest.approx(216)
    assert picture.units is None  # without a cluster head


def test_words_that_no_font_can_write_are_left_out_without_a_warning():
    samples, private = speechlike(2.0), "\U000ffffd"
    pictures = []
    for text in ("", private, "you"):
        with warnings.catch_warnings(action="error"):
            words = [Word(text, 0.5, 1.0), Word("สวัสดี 你好 नमस्ते 🙂", 1.2, 1.9)]
            pictures.append(draw_clip(Clip(samples, 2.0), Heard([], None, None, words), None).webp)
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_word_is_written_in_fonts_that_have_its_letters():
    usual, other = (
        font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in ("DejaVu Sans", "STIXGeneral")
    )
    character = chr(min(set(other) - set(usual)))
    first, *rest = _families(f"a{character}")
    assert first == "DejaVu Sans" and len(rest) == 1
    assert ord(character) in font_manager.get_font(font_manager.findfont(rest[0])).get_charmap()


def test_the_strip_of_units_is_where_the_picture_says():
    samples = speechlike(2.0)
    units = np.repeat(np.arange(11), 9)  # of 20 ms each; bars of dark and of bright colours in turn
    heard = Heard([], np.full((99, 11), 1 / 11, np.float32), units, None)
    picture = draw_clip(Clip(samples, 2.0), heard, np.arange(11) % 2 * 1.0)
    image = np.asarray(Image.open(io.BytesIO(picture.webp)).convert("RGB")).astype(int)
    (left, _, width, _), (top, height) = picture.box, picture.units
    for number in range(11):
        start = 0.0025 + 0.02 * 9 * number
        column = round((left + width * (start + 0.03) / 2.0) * image.shape[1])
        for share in (0.05, 0.95):  # of the strip's height
            red, _, blue = image[round((top + share * height) * image.shape[0]), column]
            assert (red > 150 and blue < 110) if number % 2 else (red < 110 and blue < 130), (number, share)
