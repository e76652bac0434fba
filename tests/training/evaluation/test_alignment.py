import numpy as np

from training.data.labelled import open_labelled
from training.evaluation.alignment import phones_at_frames, read_alignment
from training.evaluation.encoders import open_encoder


def test_the_phone_at_the_centre_of_a_frame():
    # Centres lie at 12.5, 32.5, 52.5, ... ms; frames behind the last phone have none.
    phones = phones_at_frames(["A", "B", "C"], np.array([0.0325, 0.05, 0.08]), 8)
    assert phones.tolist() == ["A", "B", "C", "C"]


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
