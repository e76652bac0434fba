import pytest
from finetuning_runs import write_clips

from training.data.labelled import open_labelled
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.data import HELD_OUT, drawn, open_splits


def test_a_smaller_part_lies_in_a_larger_one(mine):
    clips = open_labelled([str(mine)], ["text"])
    parts = [drawn(clips, share * clips.hours) for share in (0.2, 0.6, 2.0)]
    names = [{part.clip(i).name for i in range(len(part))} for part in parts]
    assert names[0] < names[1] < names[2] and len(names[2]) == 20
    assert 0.2 * clips.hours <= parts[0].hours < 0.2 * clips.hours + max(clips.num_samples) / 16000 / 3600


def test_the_share_that_is_drawn_is_that_of_each_class(tmp_path, texts):
    """However rare it is: 15 clips, 4, and one."""
    clips = open_labelled(
        [str(write_clips(tmp_path, texts[:1] * 20, "label", label=lambda i: "AAAAABAAAAABAAABAABC"[i]))], ["label"]
    )
    parts = [drawn(clips, share * clips.hours - 1e-9, "label").labels["label"] for share in (0.15, 0.35, 0.6)]
    assert [[part.count(name) for name in "ABC"] for part in parts] == [[1, 1, 1], [4, 2, 1], [8, 3, 1]]
    with pytest.raises(
        ValueError, match=r"`train_hours` 0\.\d+ leaves 1 of 3 classes without a training clip: [ABC]\."
    ):
        drawn(clips, 0.1 * clips.hours - 1e-9, "label")
    arguments = FineTuningArguments(train_data=[str(tmp_path)], train_hours=0.3 * clips.hours, eval_fraction=0.3)
    train, evaluation, _ = open_splits(arguments, "label", classes=True)
    assert set(train.labels["label"]) == set("ABC") and set(evaluation[HELD_OUT].labels["label"]) == set("AB")


def test_no_class_is_held_out_whole(tmp_path, texts):
    data = write_clips(tmp_path, texts[:1] * 20, "label", label=lambda i: "ABCDEFGHIJ"[i % 10])
    arguments = FineTuningArguments(train_data=[str(data)], eval_fraction=0.4)
    train, evaluation, _ = open_splits(arguments, "label", classes=True)
    assert len(set(train.labels["label"])) == 10 and len(evaluation[HELD_OUT]) == 8


def test_clips_that_are_trained_on_and_scored_are_told(mine, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(mine.parent)
    options = dict(train_data=[str(mine)], eval_data=[mine.name], test_data=None)
    arguments = FineTuningArguments(model_name_or_path="a", **options)
    train, evaluation, _ = open_splits(arguments, "text")
    (clips,) = evaluation.values()
    said = f"{len(train)} of {len(clips)} clips of {mine.name} are of recordings that are trained on"
    assert said in caplog.text
    caplog.clear()
    open_splits(FineTuningArguments(model_name_or_path="a", train_data=[str(mine)]), "text")
    assert "trained on" not in caplog.text
