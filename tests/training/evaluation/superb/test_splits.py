import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from training.evaluation.superb.splits import open_folds, open_splits
from training.evaluation.superb.tasks import TASKS


@pytest.fixture
def folder(tmp_path):
    """40 clips of noise of a quarter of a second: two tones, four speakers."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for i in range(40):
        soundfile.write(tmp_path / "clips" / f"{i}.wav", 0.1 * rng.standard_normal(4000), 16000)
    rows = [
        ["file_name", "tone", "who", "one"],
        *([f"{i}.wav", "ab"[i % 2], "xyzw"[i % 4], "same"] for i in range(40)),
    ]
    with open(tmp_path / "clips" / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(tmp_path / "clips")


def splits_of(task, column, data, split_by=None, **sources):
    task = replace(TASKS[task], columns=(column,), train_data=[data], **{"eval_data": [], "test_data": []} | sources)
    return open_splits(task, 0.2, split_by=split_by)


@pytest.mark.parametrize(("given", "sizes"), [("", (24, 8, 8)), ("eval", (32, 40, 8)), ("test", (32, 8, 40))])
def test_what_is_not_given_is_held_out(folder, given, sizes):
    splits = splits_of("sid", "who", folder, **({f"{given}_data": [folder]} if given else {}))
    assert tuple(len(splits[name]) for name in ("train", "dev", "test")) == sizes
    for name in {"dev", "test"} - {{"eval": "dev", "test": "test"}.get(given)}:
        assert [splits[name].labels["who"].count(who) for who in "xyzw"] == [2, 2, 2, 2], (
            "drawn evenly from all labels"
        )
        assert not set(splits[name].places) & set(splits["train"].places)


@pytest.mark.parametrize("task", ["sid", "sd"])
def test_each_split_is_made_of_its_own_clips(folder, tmp_path, task):
    """For diarization, so are the mixtures."""
    numbers = {"train": range(16), "eval": range(16, 28), "test": range(28, 40)}
    for name, own in numbers.items():
        rows = [{"audio_filepath": f"{folder}/{i}.wav", "who": "xyzw"[i % 4]} for i in own]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {f"{name}_data": [str(tmp_path / f"{name}.jsonl")] for name in ("eval", "test")}
    splits = splits_of(task, "who", str(tmp_path / "train.jsonl"), **sources)
    assert splits.keys() == {"train", "dev", "test"}
    for name, split in splits.items():
        clips = split.clips if task == "sd" else split
        names = [clips.clip(i).name for i in range(len(clips))]
        assert names == [f"{folder}/{i}.wav" for i in numbers[name.replace("dev", "eval")]]


def test_texts_are_held_out_by_whole_recordings(folder, tmp_path):
    rows = [
        {"audio_filepath": f"{folder}/{i}.wav", "offset": start, "duration": 0.1, "text": f"word {i}"}
        for i in range(20)
        for start in (0.0, 0.1)
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = splits_of("asr", "text", str(tmp_path / "pieces.jsonl"))
    files = {name: {part.clip(i).name for i in range(len(part))} for name, part in splits.items()}
    assert all(len(part) == 2 * len(files[name]) for name, part in splits.items())
    assert not files["train"] & files["dev"] and not files["dev"] & files["test"]


@pytest.mark.parametrize("given", ["", "test"])
def test_speakers_can_be_kept_apart(folder, given):
    splits = splits_of("ks", "tone", folder, split_by="who", **({f"{given}_data": [folder]} if given else {}))
    who = {name: set(part.labels["who"]) for name, part in splits.items() if name != given}
    assert sum(map(len, who.values())) == len(set.union(*who.values())) == 4
    assert given not in splits or len(splits[given]) == 40


def test_speakers_that_are_labels_are_always_kept_apart(folder):
    splits = splits_of("asv", "who", folder)
    who = [set(part.labels["who"]) for part in splits.values()]
    assert sum(map(len, who)) == len(set.union(*who)) == 4
    with pytest.raises(ValueError, match="two speakers and more are needed: column 'one' .* has the one value 'same'"):
        splits_of("asv", "one", folder)


def test_each_value_of_a_column_is_the_test_set_once(folder):
    task = replace(TASKS["er"], columns=("tone",), train_data=[folder])
    folds = open_folds(task, 0.2, "who")
    assert list(folds) == ["w", "x", "y", "z"]
    for name, splits in folds.items():
        assert splits["test"].labels["who"] == [name] * 10 and name not in splits["train"].labels["who"]
        assert [len(splits[part]) for part in ("train", "dev", "test")] == [24, 6, 10]
        shares = [splits[part].labels["tone"].count("a") / len(splits[part]) for part in ("train", "dev")]
        assert name not in splits["dev"].labels["who"] and shares[0] == shares[1], "drawn evenly from all labels"
        assert len({place for clips in splits.values() for place in clips.places}) == 40


def test_background_noise_is_cut_into_seconds(tmp_path, folder):
    """In training and dev set a second of noise begins every tenth of one, and nothing else is cut."""
    noise = np.sin(np.arange(56000)) * np.r_[np.full(16000, 0.2), np.full(40000, 0.4)]
    soundfile.write(tmp_path / "noise.wav", noise, 16000)
    rows = [{"audio_filepath": f"{folder}/{i}.wav", "label": ["low", "high"][i % 2]} for i in range(6)]
    rows.append({"audio_filepath": str(tmp_path / "noise.wav"), "label": "_silence_"})
    (tmp_path / "ks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "ks.jsonl")
    splits = splits_of("ks", "label", data, eval_data=[data], test_data=[data])
    assert {name: clips.labels["label"].count("_silence_") for name, clips in splits.items()} == {
        "train": 26,
        "dev": 26,
        "test": 1,
    }
    pieces = [splits["train"][i]["input_values"] for i in range(6, 32)]
    assert {len(piece) for piece in pieces} == {16000}
    for n, piece in enumerate(pieces):
        np.testing.assert_allclose(piece, noise[n * 1600 : n * 1600 + 16000], atol=1e-4)
    assert len(splits["train"]) == 32 and len(splits["test"]) == 7


@pytest.mark.parametrize(("task", "taken"), [("ks", True), ("asv", False), ("asr", False), ("sd", False)])
def test_silence_may_be_a_class_and_nothing_else(task, taken, folder):
    for number in range(40):
        soundfile.write(f"{folder}/{number}.wav", np.zeros(4000), 16000)
    test = splits_of(task, "who", folder, eval_data=[folder], test_data=[folder])["test"]
    assert (test[0] is not None) == taken
