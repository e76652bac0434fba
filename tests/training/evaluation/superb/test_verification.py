import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from training.evaluation.superb.verification import (
    MOST_TRIALS,
    SpeakerLabels,
    Trial,
    equal_error_rate,
    heard_in_training,
    made_trials,
    read_trials,
)


@pytest.mark.parametrize("ties", [False, True])
def test_the_equal_error_rate_is_where_the_toolkit_finds_it(ties):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = rng.random(60) < 0.4
        scores = rng.standard_normal(60) + targets
        scores = scores.round(0) if ties else scores
        false, true, _ = roc_curve(targets, scores)
        toolkit = brentq(lambda rate, curve: 1 - rate - curve(rate), 0, 1, args=(interp1d(false, true),))
        assert equal_error_rate(scores, targets) == pytest.approx(toolkit, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "rate"),
    [([4, 3, 2, 1], 0.0), ([1, 2, 3, 4], 1.0), ([4, 1, 3, 2], 0.5), ([1, 1, 1, 1], 0.5), ([3, 1, 1, 0], 0.25)],
)
def test_equal_error_rates_by_hand(scores, rate):
    """Two targets, then two others. Last: one target and one other tie, half of each is on the wrong side."""
    assert equal_error_rate(np.array(scores), np.array([True, True, False, False])) == pytest.approx(rate)


def test_trials_are_of_all_speakers_and_always_the_same():
    speakers = [f"s{i % 5}" for i in range(50)]
    trials = made_trials(speakers, "test")
    assert trials == made_trials(speakers, "test") and len(set(trials)) == len(trials) == 2 * 5 * 45
    assert all(trial.target == (speakers[trial.one] == speakers[trial.other]) for trial in trials)
    assert all(trial.one < trial.other for trial in trials)
    assert sum(trial.target for trial in trials) == 5 * 45
    assert {trial.one for trial in trials} | {trial.other for trial in trials} == set(range(50))
    many = made_trials([str(i % 4) for i in range(400)], "test")
    assert len(many) == len(set(many)) == MOST_TRIALS and sum(trial.target for trial in many) == MOST_TRIALS // 2
    assert {trial.one % 4 for trial in many if trial.target} == set(range(4)), "of all speakers"
    assert sum(not trial.target for trial in made_trials(["a", "a", "a", "b"], "dev")) == 3, "all that there are"
    assert sum(not trial.target for trial in made_trials(["a"] * 600 + ["b"], "dev")) == 600, "and soon"


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        (["a", "b", "c"], "3 dev clips are no two of the same speaker, so that no trial is a target: give"),
        (["a", "a"], "2 dev clips are all of one speaker, so that no trial is a non-target: give"),
    ],
)
def test_trials_need_both_kinds(speakers, message):
    with pytest.raises(ValueError, match=message):
        made_trials(speakers, "dev")


class Clips:
    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def clip(self, i):
        return type("Clip", (), {"name": self.names[i]})


def test_a_list_of_trials_is_read(tmp_path):
    clips = Clips(["/x/id1/a/1.wav", "/x/id1/b/1.wav", "/x/id2/a/1.wav"])
    path = tmp_path / "trials.txt"
    path.write_text("1 id1/a/1.wav id1/b/1.wav\n\n0 id1/a/1.wav id2/a/1.wav\n")
    assert read_trials(str(path), clips) == [Trial(True, 0, 1), Trial(False, 0, 2)]
    for text, message in {
        "1 id1/a/1.wav": "line 1 is not `label a b`",
        "1 id1/a/1.wav id1/b/1.wav id2/a/1.wav": "line 1 is not `label a b`",
        "2 id1/a/1.wav id1/b/1.wav": "line 1 is not `label a b`",
        "1 a/1.wav id1/b/1.wav": "names a/1.wav, which is the end of 2 clips of the test set",
        "1 id1/a/1.wav id1/c/1.wav": "names id1/c/1.wav, which is the end of no clip",
        "1 id1/a/1.wav id1/b/1.wav": "1 trials of .* have no non-target, a pair of clips of two speakers",
        "0 id1/a/1.wav id2/a/1.wav": "1 trials of .* have no target, a pair of two clips of one speaker",
        "": "0 trials of .* have no target",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trials(str(path), clips)
    path.write_bytes(b"1 id1/a/1.wav id1/b/1.wav\n0 id1/a/1.wav \xe4.wav\n")
    with pytest.raises(ValueError, match="trials.txt, line 2: the byte 0xe4 is not UTF-8"):
        read_trials(str(path), clips)
    with pytest.raises(ValueError, match="--trials nowhere: there is no such file"):
        read_trials("nowhere", clips)


def test_trials_of_clips_that_cannot_be_decoded_do_not_count():
    trials = [Trial(True, 0, 1), Trial(False, 0, 2), Trial(False, 1, 3)]
    labels = SpeakerLabels({"who": ["a", "b"]}, {"test": trials, "dev": [Trial(True, 0, 2), Trial(False, 0, 1)]})
    vectors = {0: torch.tensor([1.0, 0.0]), 1: torch.tensor([0.0, 1.0]), 2: torch.tensor([1.0, 0.0])}
    assert labels.equal_error_rate(vectors, "test") == (1.0, 2) and labels.equal_error_rate(vectors, "dev") == (0.0, 2)
    del vectors[1]
    with pytest.raises(ValueError, match="trials of the test set whose clips can be used have no target"):
        labels.equal_error_rate(vectors, "test")


def test_speakers_that_were_heard_are_named():
    assert heard_in_training(["a", "b"], ["b", "c", "b"], "dev") == "dev: 1 speakers are in the training clips too: b."
    assert heard_in_training(["a"], ["b"], "dev") is None


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.1, np.nan, np.inf], [True, False, False], "2 of 3 scores of trials are NaN or infinite"),
        ([0.1, 0.2], [True, True], "All 2 trials are of one kind"),
        ([0.1, 0.2], [False, False], "All 2 trials are of one kind"),
    ],
)
def test_rates_that_are_not_defined_are_refused(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        equal_error_rate(np.array(scores), np.array(targets))
