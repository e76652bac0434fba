"""The pictures of the page: time where the page says that it runs, sizes that WebP can hold."""

import io
import warnings

import numpy as np
import pictures
import pytest
from listening import Clip, Heard, Word
from matplotlib import font_manager
from pictures import _families, draw_clip, draw_ranks, draw_similarity
from PIL import Image
from tones import speechlike


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(pictures, "_webp", lambda figure: drawn.append(figure) or b"")
    return drawn


def test_a_second_is_as_long_on_both_axes_of_two_clips_and_lies_in_the_box(figures):
    matrix = np.zeros((49, 99))
    matrix[48, 0] = 1  # the end of A like the beginning of B
    picture = draw_similarity(Clip(speechlike(1.0), 1.0), Clip(speechlike(2.0), 2.0), matrix, 2)
    (figure,) = figures
    centre, beside, above, _ = figure.axes
    assert centre.get_xlim() == (0, 2) and centre.get_ylim() == (1, 0) == beside.get_ylim()
    assert centre.images[0].get_extent() == pytest.approx([0, 99 * 0.02, 49 * 0.02, 0])
    assert centre.images[0].get_array()[48, 0] == 1
    assert (centre.get_xlabel(), beside.get_ylabel()) == ("clip B, seconds", "clip A, seconds")
    place, (left, top, width, height) = centre.get_position(), picture.box
    assert (left, 1 - top - height, width, height) == pytest.approx(place.bounds)
    inches = figure.get_size_inches()
    assert width * inches[0] == pytest.approx(2 * height * inches[1]) and width * inches[0] < 8.3
    assert beside.images[0].get_array().shape == (101, 80) and above.images[0].get_array().shape == (80, 201)
    assert beside.images[0].get_extent() == pytest.approx([0, 80, 1.005, -0.005])
    assert above.images[0].get_extent() == pytest.approx([-0.005, 2.005, 0, 80]) and above.images[0].origin == "lower"
    assert above.get_title("left").endswith("layer 2")


def test_ranks_stand_beside_their_layers(figures):
    draw_ranks([3.0, 7.0, 5.0], 20)
    (panel,) = figures[0].axes
    assert [bar.get_width() for bar in panel.patches] == [3, 7, 5]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["input", "1", "2"]
    assert panel.get_xlabel().endswith("of at most 20")


def test_the_three_largest_posteriors_are_drawn_and_the_most_that_entropy_can_be(figures):
    posteriors = np.tile(np.float32([0.1, 0.5, 0.1, 0.2, 0.1]), (49, 1))
    posteriors[10] = [0.6, 0, 0.3, 0, 0.1]
    heard = Heard([], posteriors, np.ones(49, int), [])
    picture = draw_clip(Clip(speechlike(1.0), 1.0), heard, np.arange(5) / 4, 1, "mixture")
    mel, units, largest, entropy = figures[0].axes
    places = [axes.get_position() for axes in (mel, units, entropy)]
    top = 1 - places[0].y1
    assert picture.box == pytest.approx((places[0].x0, top, places[0].width, 1 - places[2].y0 - top))
    assert picture.units == pytest.approx((1 - places[1].y1, places[1].height))
    assert "cluster of the mixture" in units.get_title("left")
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in largest.collections]
    assert tops == pytest.approx([0.6, 0.9, 1.0])
    assert "at most 2.3" in entropy.get_title("left") and entropy.get_ylim()[1] > np.log2(3)
    kilohertz = dict(zip((label.get_text() for label in mel.get_yticklabels()), mel.get_yticks()))
    assert kilohertz["1"] == pytest.approx(80 * np.log1p(1 / 0.7) / np.log1p(8 / 0.7))


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
