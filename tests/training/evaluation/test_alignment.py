from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from training.data.labelled import open_labelled
from training.evaluation.alignment import phones_at_frames, read_alignment
from training.evaluation.encoders import open_encoder


def test_the_phone_at_the_centre_of_a_frame():
    # Centres lie at 12.5, 32.5, 52.5, ... ms; frames behind the last phone have none.
    phones = phones_at_frames(["A", "B", "C"], np.array([0.0325, 0.05, 0.08]), 8)
    assert phones.tolist() == ["A", "B", "C", "C"]


class Clips:
    """One clip of a second with three phones."""

    num_samples = (16000,)

    def __init__(self, ends):
        self.labels = {"phones": ["A B C"], "phone_ends": [ends]}

    def clip(self, index):
        return SimpleNamespace(name="a.wav")


@pytest.mark.parametrize("ends", ["0.2 0.5 1", "0.2 0.2 0.9", "0.2 0.5 2.5"])  # as they are; no length; one far off
def test_ends_are_read_as_they_are(ends):
    phones, found = read_alignment(Clips(ends), 0)
    assert phones == ["A", "B", "C"] and found.tolist() == [float(end) for end in ends.split()]


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ("0.2 0.5", "has 3 `phones` but 2 `phone_ends`"),
        ("0.2 0.5 0.7 0.8", "has 3 `phones` but 4 `phone_ends`"),
        ("0.2 0,5 0.7", "must be seconds, separated by spaces"),
        ("0.2 0.7 0.5", "must be finite and not fall"),
        ("0.2 0.5 inf", "must be finite and not fall"),
        ("0.2 nan 0.5", "must be finite and not fall"),
    ],
)
def test_ends_that_are_none_get_a_sentence(ends, message):
    with pytest.raises(ValueError, match=f"a.wav.*{message}"):
        read_alignment(Clips(ends), 0)


def test_ends_in_milliseconds_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    for ends, known in (("0.2 0.5 1.3", True), ("200 500 1000", False)):
        (tmp_path / "metadata.csv").write_text(f"file_name,phones,phone_ends\na.wav,A B C,{ends}\n")
        clips = open_labelled([str(tmp_path)], ["phones", "phone_ends"])
        if known:
            assert read_alignment(clips, 0)[0] == ["A", "B", "C"]
            continue
        with pytest.raises(ValueError, match="lasts 1.00 s, .*the last is 1000.* divide milliseconds by 1,000"):
            read_alignment(clips, 0)


def test_real_phones_lie_where_the_sound_is(speech):
    """Frames labelled as silence are quieter than those of stressed vowels: labels and frames are in step."""
    clips = open_labelled([str(speech / "ljspeech_phones")], ["phones", "phone_ends"]).select(range(1, 5))
    mfcc = open_encoder("mfcc")
    for i in range(len(clips)):
        loudness = mfcc([clips[i]["input_values"]])[0][0, :, 0].numpy()
        phones = phones_at_frames(*read_alignment(clips, i), len(loudness))
        silent = np.isin(phones, ["sil", "sp"])
        stressed = np.array([phone.endswith("1") for phone in phones])
        if silent.any():
            assert loudness[: len(phones)][silent].mean() < loudness[: len(phones)][stressed].mean() - 50
