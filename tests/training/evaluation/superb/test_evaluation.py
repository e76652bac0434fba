"""What an evaluation makes of its settings and clips, before and beside the training of heads."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from training.data.manifest import MissingColumn
from training.evaluation.superb import evaluation
from training.evaluation.superb.arguments import parse_arguments
from training.evaluation.superb.evaluation import Evaluation, fresh_head, hyperparameters, make_labels, warn_of_unseen
from training.evaluation.superb.labels import ClassLabels
from training.evaluation.superb.tasks import TASKS
from training.evaluation.superb.training import SplitResult
from training.evaluation.superb.verification import Trial


class Clips(list):
    """Labels of clips that have no audio."""

    hours = 0.12345678

    @property
    def labels(self):
        return {"label": list(self)}


def opened(*options, folds=(), digests=()) -> Evaluation:
    """An evaluation whose clips, and the digests of their audio, are given."""
    made = Evaluation(parse_arguments([*options, "--model", "mfcc"]))
    made.folds = dict(folds)
    made._digests = {(fold, name): keys for fold, splits in digests for name, keys in splits.items()}
    return made


def test_superb_s_own_clips_are_attenuated(monkeypatch):
    given = []
    monkeypatch.setattr(evaluation, "FrozenFeatures", lambda *told: given.append(told))
    clips, keys = {None: {"test": Clips("ab")}}.items(), {None: {"test": ["a", "b"]}}.items()
    for options, gain in (([], -3.0), (["--train_data", "mine"], 0.0)):
        one = opened("--task", "ks", *options, folds=clips, digests=keys)
        one.features(None, "encoder", "store")
        assert given.pop()[2:] == ("store", True, ["a", "b"], gain) and one.settings.get("gain", 0.0) == gain


def test_other_trials_or_splits_are_other_data():
    splits, digests = {"train": Clips("ab"), "test": Clips("ab")}, {"train": ["1", "2"], "test": ["3", "4"]}
    own = ["--task", "asv", "--train_data", "a", "--test_data", "b", "--trials", "c"]
    found = set()
    for target, clips, keys in (
        (True, splits, digests),
        (False, splits, digests),
        (True, splits, {"train": digests["test"], "test": digests["train"]}),
        (True, {"train": Clips("ab"), "test": Clips("ac")}, digests),
    ):
        one = opened(*own, folds=[(None, clips)], digests=[(None, keys)])
        one.labels = {None: SimpleNamespace(trials={"test": [Trial(target, 0, 1)]})}
        found.add(one.data_digest)
    assert len(found) == 4


def test_each_split_is_compared_with_the_test_set_but_not_by_what_cannot_be_read(caplog):
    keys = {"train": ["a", None], "dev": ["b", None], "test": ["b", None, "c", None]}
    opened("--task", "ks", folds=[(None, keys)], digests=[(None, keys)]).warn_of_shared()
    (said,) = caplog.messages
    assert said.startswith("ks: 1 of the test clips are in the dev split too")


def test_what_a_result_depends_on_is_told():
    data = ["--train_data", "a", "--model", "mfcc"]

    def settings(task, *options, lexicon=None, own=data):
        arguments = parse_arguments(["--task", task, *own, *options])
        return hyperparameters(evaluation.choose_task(arguments), arguments, lexicon)

    assert settings("sid").keys() >= {"eval_fraction", "learning_rate", "batch_size", "max_steps", "eval_steps"}
    for given, held_out in ((["test"], True), (["eval"], True), (["test", "eval"], False)):
        options = [word for name in given for word in (f"--{name}_data", name)]
        assert ("eval_fraction" in settings("sid", *options)) == held_out
    one, other = (settings("pr", lexicon={"A": phone})["lexicon_digest"] for phone in ("AH0", "EY1"))
    assert one != other and "lexicon_digest" not in settings("pr")
    assert settings("asv", "--test_data", "b", "--trials", "c")["trials"] == "c" and "trials" not in settings("asv")
    for task, head_units in (("asr", True), ("asv", True), ("sd", True), ("pr", False), ("sid", False)):
        assert ("head_units" in settings(task)) == head_units
    assert "silence" in settings("ks") and "silence" not in settings("sid")
    assert settings("asr")["spec_augment"] and not settings("pr")["spec_augment"]


class Features(list):
    """Features of clips, those of the first of which cannot be used."""

    def __getitem__(self, indices):
        return [list.__getitem__(self, i) for i in indices]


def head_of(task, *options, subject="fbank", seed=0, pooled=False):
    shape = (3, 8) if pooled else (3, 5, 8)
    arguments = parse_arguments(["--task", task, "--model", "mfcc", "--train_data", "a", *options])
    features = Features([None, torch.randn(shape, generator=torch.Generator().manual_seed(1))])
    return fresh_head(TASKS[task], features, SimpleNamespace(sizes=[7]), seed, subject, arguments)


def test_heads_are_as_the_settings_say():
    asr = head_of("asr", "--head_units", "6")
    assert asr.projector.weight.shape == (6, 8) and asr.augment and asr.layer_sum.scores.shape == (3,)
    pr = head_of("pr", "--stacked_frames", "2")
    assert pr.projector[0].weight.shape == (256, 16) and not pr.augment
    assert head_of("asv", "--head_units", "6").speakers.shape == (7, 6)
    assert head_of("sd", "--head_units", "6").rnn.hidden_size == 6
    assert head_of("sid", pooled=True).classifier.weight.shape == (7, 256)


def test_only_mfcc_are_normed_over_the_training_set():
    assert [head_of("pr", subject=name).layer_sum.normed for name in ("mfcc", "fbank", "x")] == [True, False, False]


def test_a_head_begins_as_its_seed_says():
    first, again, other = (head_of("sid", seed=seed, pooled=True).classifier.weight for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


def test_no_head_without_a_clip_that_can_be_used():
    with pytest.raises(ValueError, match="None of the training clips can be used"):
        fresh_head(TASKS["sid"], Features([None]), None, 0, "mfcc", None)


def test_trials_are_of_their_own_split(monkeypatch, caplog):
    """Dev set and test set are looked through for speakers of the training clips; a list is of the test set alone."""
    monkeypatch.setattr(evaluation, "made_trials", lambda speakers, name: [name, *speakers])
    monkeypatch.setattr(evaluation, "read_trials", lambda path, clips: [path, *clips])
    task = replace(TASKS["asv"], columns=("label",))
    splits = {"train": Clips("ab"), "dev": Clips("bc"), "test": Clips("ad")}
    own = ["--task", "asv", "--model", "mfcc", "--train_data", "x", "--test_data", "y"]
    labels = make_labels(task, splits, None, parse_arguments(own))
    assert labels.trials == {"dev": ["dev", "b", "c"], "test": ["test", "a", "d"]}
    assert [said.split(".")[0] for said in caplog.messages] == [
        "dev: 1 speakers are in the training clips too: b",
        "test: 1 speakers are in the training clips too: a",
    ]
    labels = make_labels(task, splits, None, parse_arguments([*own, "--trials", "z"]))
    assert labels.trials == {"dev": ["dev", "b", "c"], "test": ["z", "a", "d"]}


def test_unseen_labels_are_counted_by_clip(caplog):
    warn_of_unseen("dev", Clips("aabcc"), ClassLabels({"label": ["a", "b"]}))
    assert caplog.messages[0].startswith("dev: 2 clips have a label that no training clip has")


def test_a_result_tells_of_what_could_be_used_and_how_the_weights_were_drawn():
    splits = {"train": Clips("abc"), "test": Clips("abcd")}
    one = opened("--task", "sid", "--untrained_seed", "5", folds=[(None, splits)], digests=[(None, splits)])
    for subject, seed in (("untrained:x", 5), ("x", None)):
        found = one._record(subject, SimpleNamespace(digest="d"), None, 0, SplitResult({"accuracy": 1.0}, 3))
        assert found["clips"] == {"train": 3, "test": 3} and found["hours"]["test"] == 0.1235
        assert found["hyperparameters"].get("untrained_seed") == seed and "untrained_seed" not in one.settings


def test_what_is_wrong_with_data_names_the_option_that_mends_it():
    one = opened("--task", "sid", "--train_data", "a", "--split_by", "age", "--label_column", "who")
    for column, way in (("age", "split_by"), ("who", "label_column")):
        with pytest.raises(ValueError, match=f"--task sid: .* Name another with --{way}"), one._named_errors():
            raise MissingColumn(f"no column {column}", column)
