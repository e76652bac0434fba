import json
import math
import time

import numpy as np
import pytest
from sklearn.model_selection import GroupShuffleSplit
from voices import edit

from training.data.labelled import open_labelled
from training.evaluation.layer_features_of_clips import readable_clips
from training.evaluation.probes.tasks import distinct_splits, phone_task, utterance_task


def test_splits_are_by_clip_and_frames_are_bounded(two_voices):
    clips, counts = readable_clips(open_labelled([str(two_voices)], ["phones", "phone_ends"]), None, 0)
    task = phone_task(clips, counts, num_splits=3, max_frames=100, seed=0)
    assert len(task.classes) == 100 and set(task.classes) == {"LO", "HI"}
    for fit, score in task.splits:
        sides = [set(task.rows.clips[side].tolist()) for side in (fit, score)]
        assert not sides[0] & sides[1] and len(sides[1]) == 4 and len(fit) + len(score) == 100
    assert any(set(fit) != set(task.splits[0][0]) for fit, _ in task.splits[1:])


def test_pieces_of_a_recording_are_on_one_side(two_voices, tmp_path):
    rows = [
        {"audio_filepath": str(two_voices / f"{i}.wav"), "offset": o, "duration": 0.1, "voice": "ab"[i % 2]}
        for i in range(12)
        for o in (0.0, 0.1)
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(tmp_path / "pieces.jsonl")], ["voice"])
    for fit, score in utterance_task(clips, "voice", 5, 0).splits:
        assert not {i // 2 for i in fit} & {i // 2 for i in score} and len(score) == 6
    alone = clips.select([0, 1, 2, 3])  # two pieces, but one recording of each voice
    with pytest.raises(ValueError, match=r"0 class.* at least two recordings \(2 with a single one\)"):
        utterance_task(alone, "voice", 3, 0)


def test_clips_of_one_recording_are_kept_apart_by_nothing(two_voices, tmp_path):
    rows = [
        {"audio_filepath": str(two_voices / "0.wav"), "offset": o / 50, "duration": 0.1, "voice": "ab"[o % 2]}
        for o in range(10)
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(tmp_path / "pieces.jsonl")], ["voice"])
    assert utterance_task(clips, "voice", 5, 0).describe()["apart"] is None


def test_few_owners_are_split_in_each_way_once(two_voices, caplog):
    clips = open_labelled([str(two_voices)], [], optional=["voice", "mood"])
    clips.labels["mood"] = list("xy" * 8)
    clips.labels["voice"] = [str(i // 2 % 4) for i in range(16)]
    task = utterance_task(clips, "mood", 10, 0, split_by="voice")
    scored = {frozenset(clips.labels["voice"][i] for i in score) for _, score in task.splits}
    assert len(scored) == len(task.splits) == task.describe()["splits"] == 4
    assert task.describe()["scored_share"] == 0.25
    assert (
        "mood: 4 values of `voice` can be split in 4 ways that leave two classes to fit, each of which is taken once,"
        " in place of 10 splits" in caplog.text
    )
    assert len(distinct_splits(np.arange(6), np.array(list("ababab")), 10, 0)) == 10, "of the 15 ways there are"


def test_every_split_has_two_classes_to_fit(two_voices):
    """Of four women and two men, one of the 15 ways of scoring two leaves women alone."""
    clips = open_labelled([str(two_voices)], [], optional=["voice", "mood"])
    clips.labels["voice"] = [str(i % 6) for i in range(16)]
    clips.labels["mood"] = ["man" if i % 6 < 2 else "woman" for i in range(16)]
    task = utterance_task(clips, "mood", 20, 0, split_by="voice")
    told = task.describe()
    assert (told["level"], told["classes"], told["commonest_class_share"]) == ("utterance", 2, 10 / 16)
    assert len(task.splits) == 14 and all(len(set(task.classes[fit])) == 2 for fit, _ in task.splits)


def test_splits_of_many_owners_are_those_of_scikit_learn():
    owners = np.repeat(np.arange(40), 3)
    wanted = GroupShuffleSplit(10, test_size=0.2, random_state=3).split(owners, groups=owners)
    ours = distinct_splits(owners, owners.astype(str), 10, 3)
    for (fit, score), (their_fit, their_score) in zip(ours, wanted, strict=True):
        assert (fit == their_fit).all() and (score == their_score).all()


def test_all_of_many_ways_are_found_soon():
    """Of 20 owners, three of whom keep their class alive, asked for more splits than the 4,828 ways there are."""
    owners, start = np.repeat(np.arange(20), 50), time.process_time()
    splits = distinct_splits(owners, np.where(owners < 3, "rare", "often"), 5000, 0)
    assert (
        len({frozenset(score.tolist()) for _, score in splits}) == len(splits) == math.comb(20, 4) - math.comb(17, 16)
    )
    assert time.process_time() - start < 10


def test_labels_that_cannot_be_probed(two_voices):
    clips = open_labelled([str(two_voices)], [], optional=["voice", "mood"])
    clips.labels["mood"] = ["x"] * 16
    with pytest.raises(ValueError, match="`mood` has 1 class.*needs two"):
        utterance_task(clips, "mood", 3, 0)
    clips.labels["mood"] = list(map(str, range(16)))
    with pytest.raises(ValueError, match=r"`mood` has 0 class.* \(16 with a single one\)"):
        utterance_task(clips, "mood", 3, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"phone_ends": "0.1 0.2"}, "0.wav has 3 `phones` but 2 `phone_ends`"),
        ({"phone_ends": "0.1 x 0.3"}, "0.wav: `phone_ends` must be seconds"),
        ({"phone_ends": "0.1 0.3 0.2"}, "0.wav: `phone_ends` must be finite and not fall"),
        ({"phone_ends": "0.1 nan 0.2"}, "0.wav: `phone_ends` must be finite and not fall"),
        ({"phones": "", "phone_ends": ""}, "`phones`: none of the clips has any"),
    ],
)
def test_alignments_that_make_no_sense(two_voices, columns, message):
    edit(two_voices, **columns)
    clips, counts = readable_clips(open_labelled([str(two_voices)], [], optional=["phones", "phone_ends"]), 5, 0)
    with pytest.raises(ValueError, match=message.replace("0.wav", r"\d+.wav")):
        phone_task(clips, counts, 3, None, 0)


def test_a_column_is_kept_apart_in_all_probes_but_its_own(two_voices):
    columns = ["voice", "mood", "phones", "phone_ends"]
    clips, counts = readable_clips(open_labelled([str(two_voices)], [], optional=columns), None, 0)
    voices = np.array(clips.labels["voice"])
    phones = phone_task(clips, counts, num_splits=6, max_frames=None, seed=0, split_by="voice")
    mood = utterance_task(clips, "mood", 6, 0, split_by="voice")
    assert phones.describe()["level"] == "frame"
    for task in (phones, mood):
        assert task.describe()["apart"] == "voice"
        for fit, score in task.splits:
            assert not set(voices[task.rows.clips[fit]]) & set(voices[task.rows.clips[score]])
    voice = utterance_task(clips, "voice", 6, 0, split_by="voice")
    assert voice.describe()["apart"] == "recordings"
    assert all(set(voice.classes[score]) <= set(voice.classes[fit]) for fit, score in voice.splits)
    clips.labels["one"] = ["x"] * len(clips)
    with pytest.raises(ValueError, match=r"`phones` has 0 class.* two values of `one` \(2 with a single one\)"):
        phone_task(clips, counts, 3, None, 0, split_by="one")
