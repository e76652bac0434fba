import numpy as np
import pytest
import torch

from training.evaluation.superb import diarization
from training.evaluation.superb.diarization import ActivityLabels, Mixtures, active, diarization_error_rate


class Clips:
    """Clips of a constant each, of as many samples as `num_samples` says; the last cannot be used."""

    def __init__(self, speakers):
        self.labels = {"who": speakers}
        self.num_samples = [16000 + 800 * i if i % 3 else 4000 for i in range(len(speakers))]

    def __len__(self):
        return len(self.num_samples)

    def __getitem__(self, i):
        return None if i + 1 == len(self) else {"input_values": np.full(self.num_samples[i], i + 1.0, np.float32)}


def test_mixtures_are_of_two_speakers_and_always_the_same():
    speakers = list("aabbcc")
    mixtures, again = Mixtures(Clips(speakers), "who", "dev"), Mixtures(Clips(speakers), "who", "dev")
    assert len(mixtures) == 6 and mixtures.num_samples == again.num_samples
    heard = 0
    for i, other in enumerate(mixtures.others):
        assert speakers[i] != speakers[other]
        if 5 in (i, other):
            assert mixtures[i] is None
            continue
        heard += 1
        waveform, start = mixtures[i]["input_values"], mixtures.starts[i]
        np.testing.assert_array_equal(waveform, again[i]["input_values"])
        one, two = 10 ** (mixtures.loudness[i] / 20)
        assert len(waveform) == mixtures.num_samples[i]
        assert waveform[: min(start, 100)] == pytest.approx(one) and 0 <= start < mixtures.clips.num_samples[i]
        both = slice(start, min(mixtures.clips.num_samples[i], start + mixtures.clips.num_samples[other]))
        assert waveform[both] == pytest.approx(one + two)
        activity = mixtures.activity(i)
        level = activity.numpy() @ [one, two]  # a frame's own centre says who is heard
        assert waveform[np.arange(len(activity)) * 320 + 200] == pytest.approx(level)
        own, end = mixtures.clips.num_samples[i], start + mixtures.clips.num_samples[other]
        assert mixtures.num_samples[i] == max(own, end)
    assert heard > 1 and len(set(mixtures.others)) > 3
    assert mixtures.hours == pytest.approx(sum(mixtures.num_samples) / 16000 / 3600)
    assert mixtures.labels == {
        "who": [f"{speakers[i]} + {speakers[other]}" for i, other in enumerate(mixtures.others)]
    }
    assert np.all((mixtures.loudness >= -33) & (mixtures.loudness <= -25)) and np.ptp(mixtures.loudness, 1).min() > 0
    encoded = ActivityLabels({"train": mixtures}).encode({})
    assert len(encoded) == 6 and all(torch.equal(x, mixtures.activity(i)) for i, x in enumerate(encoded))
    mixtures.others[1], mixtures.starts[1] = 3, 5000  # its 4000 samples end within the first
    assert mixtures.activity(1)[:, 1].nonzero()[:, 0].tolist() == list(range(15, 28)), "centres at 320 n + 200"
    with pytest.raises(ValueError, match="The 3 dev clips are all of the speaker 'a': mixtures need clips of two"):
        Mixtures(Clips(list("aaa")), "who", "dev")


def test_keys_tell_mixtures_apart_and_none_where_a_clip_is_not_read(monkeypatch):
    monkeypatch.setattr(diarization, "clip_keys", lambda clips: ["a", "b", "c", "d", "e", None])
    mixtures = Mixtures(Clips(list("aabbcc")), "who", "dev")
    keys = mixtures.keys()
    assert [key is None for key in keys] == [5 in (i, other) for i, other in enumerate(mixtures.others)]
    known = [key for key in keys if key]
    assert len(known) == len(set(known)) > 1 and mixtures.keys() == keys
    mixtures.loudness = mixtures.loudness + 1
    assert not set(mixtures.keys()) & set(known)


def naive_error_rate(found, right):
    errors, speech = 0, 0
    for one, other in zip(found, right):
        tries = []
        for columns in ([0, 1], [1, 0]):
            count = 0
            for a, b in zip(one[:, columns], other):
                matched = sum(x and y for x, y in zip(a, b))
                missed, false = max(sum(b) - sum(a), 0), max(sum(a) - sum(b), 0)
                count += missed + false + min(sum(a), sum(b)) - matched
            tries.append(count)
        errors, speech = errors + min(tries), speech + sum(map(sum, other))
    return errors / speech


def test_the_error_rate_is_that_of_a_naive_count():
    rng = np.random.default_rng(0)
    found, right = ([(rng.random((n, 2)) < 0.3).astype(int) for n in (40, 7, 90)] for _ in range(2))
    assert diarization_error_rate(found, right) == pytest.approx(naive_error_rate(found, right))
    assert diarization_error_rate([x[:, ::-1] for x in right], right) == 0
    assert diarization_error_rate([np.zeros_like(x) for x in right], right) == 1


def test_the_error_rate_of_a_split_is_that_of_its_own_mixtures():
    """By their numbers, whatever the rate of the features; what is missed counts over what is spoken."""
    splits = {"train": "aabbcc", "dev": "abcabca"}
    mixtures = {name: Mixtures(Clips(list(speakers)), "who", name) for name, speakers in splits.items()}
    right = {i: mixtures["dev"].activity(i) for i in (4, 1)}
    logits = {i: 0.4 * (2 * x.repeat_interleave(2, 0) - 1) for i, x in right.items()}
    assert ActivityLabels(mixtures).error_rate(logits, "dev") < 0.01
    logits[4] = -logits[4].abs()
    missed = right[4].sum() / (right[4].sum() + right[1].sum())
    assert ActivityLabels(mixtures).error_rate(logits, "dev") == pytest.approx(missed.item(), abs=0.01)


def test_short_bursts_and_gaps_are_filtered():
    logits = torch.full((60, 2), -3.0)
    logits[20:40, 0], logits[30, 0], logits[10:14, 1] = 3.0, -3.0, 3.0
    found = active(logits)
    assert found[20:40, 0].all() and found[:, 0].sum() == 20 and not found[:, 1].any()


def test_rates_that_are_not_defined_are_refused():
    silence = [np.zeros((5, 2), bool)] * 2
    with pytest.raises(ValueError, match="Nobody speaks in the 2 recordings"):
        diarization_error_rate([np.ones((5, 2), bool)] * 2, silence)
    with pytest.raises(ValueError, match="3 of 10 scores of frames of the dev mixtures are NaN or infinite"):
        ActivityLabels({}).error_rate({0: torch.tensor([[torch.nan] * 2] + [[1.0] * 2] * 3 + [[torch.inf, 0]])}, "dev")
