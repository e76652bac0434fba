import pytest

from sjepa_hf.durations import audio_amount, duration


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0001, "0.36 seconds"),
        (0.01, "36 seconds"),
        (0.09, "5.4 minutes"),
        (0.5, "30 minutes"),
        (1, "1.0 hours"),
        (1234.5, "1,234 hours"),
    ],
)
def test_audio_has_the_unit_that_suits_it(hours, words):
    assert audio_amount(hours) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "40 seconds"), (600, "10 minutes"), (7500, "2 h 5 min"), (2 * 86400 + 3 * 3600, "2 days 3 h")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
