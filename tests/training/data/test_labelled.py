import csv
import json

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features
from torch.utils.data import DataLoader

import training.data.labelled
from training import pack
from training.data.bad_audio import BadAudioError
from training.data.labelled import choose_column, open_labelled
from training.data.workers import start_method


def tone(seconds: float, pitch: float = 200.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * 16000)) / 16000)


@pytest.fixture
def folder(tmp_path):
    """Ten clips of 0.5 to 1.4 s, the third 30 s long, with transcripts in metadata.csv."""
    rows = []
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", tone(30 if i == 3 else 0.5 + i / 10), 16000)
        rows.append({"file_name": f"{i}.wav", "text": f"clip {i}", "who": "ab"[i % 2]})
    write_metadata(tmp_path, rows)
    return tmp_path


def write_metadata(folder, rows):
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_folder_with_metadata(folder):
    clips = open_labelled([str(folder)], ["text", "who"], max_seconds=20)
    assert len(clips) == 9 and "clip 3" not in clips.labels["text"]
    assert clips[4]["text"] == "clip 5" and clips[4]["who"] == "b"
    assert len(clips[4]["input_values"]) == clips.num_samples[4] == 16000
    assert clips.hours == pytest.approx(sum(0.5 + i / 10 for i in range(10) if i != 3) / 3600)
    rest, held_out = clips.hold_out(0.2, seed=1)
    assert len(held_out) == 2 and set(rest.labels["text"]) | set(held_out.labels["text"]) == set(clips.labels["text"])
    assert rest[0]["text"] == rest.labels["text"][0]


def test_pieces_of_a_recording_stay_together(folder, tmp_path, caplog):
    rows = [{"audio_filepath": f"{i}.wav", "offset": o, "duration": 0.2} for i in (0, 1, 2, 4, 5) for o in (0, 0.2)]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(tmp_path / "pieces.jsonl")], [])
    assert clips.groups().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for seed in range(5):
        parts = clips.hold_out(0.2, seed)
        files = [{part.clip(i).name for i in range(len(part))} for part in parts]
        assert [len(part) for part in parts] == [8, 2] and not files[0] & files[1]
    uneven = clips.select([0, 1, 2, 4, 5, 6, 7, 8, 9])  # a single clip is all that may be held out of nine
    assert {tuple(len(part) for part in uneven.hold_out(0.1, seed)) for seed in range(5)} == {(8, 1)}
    single = clips.select([0, 1])
    assert [len(part) for part in single.hold_out(0.5)] == [1, 1] and "pieces of one recording" in caplog.text


def test_speakers_stay_apart_and_labels_are_shared_out(folder, tmp_path):
    rows = [
        {"audio_filepath": f"{number}.wav", "offset": offset, "duration": 0.2, "who": who, "label": label}
        for number, offset, who, label in [
            *((0, 0, "ann", "x"), (0, 0.2, "bob", "y")),  # heard in one recording
            *((1, 0, "bob", "x"), (2, 0, "cyd", "y"), (4, 0, "cyd", "x"), (5, 0, "dan", "y")),
        ]
    ]
    (tmp_path / "voices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(tmp_path / "voices.jsonl")], ["who", "label"])
    groups = clips.groups("who").tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 0, 3, 3, 5]
    for seed in range(5):
        rest, held_out = clips.hold_out(0.3, seed, apart="who")
        assert not set(rest.labels["who"]) & set(held_out.labels["who"]) and 1 <= len(held_out) <= 3
        rest, held_out = clips.select([1, 2, 3, 4]).hold_out(0.5, seed, evenly=["label"])
        assert sorted(held_out.labels["label"]) == ["x", "y"]
    with pytest.raises(ValueError, match="All 3 clips belong together"):
        clips.select([0, 1, 2]).hold_out(0.5, apart="who")


def test_manifest_parquet_and_class_folders_give_the_same(folder, tmp_path):
    manifest = tmp_path / "clips.jsonl"
    entries = [{"audio_filepath": f"{i}.wav", "label": "odd" if i % 2 else "even"} for i in range(5)]
    manifest.write_text("\n".join(map(json.dumps, entries)))
    by_class = tmp_path / "classes"
    for entry in entries:
        (by_class / entry["label"]).mkdir(parents=True, exist_ok=True)
        (by_class / entry["label"] / entry["audio_filepath"]).symlink_to(folder / entry["audio_filepath"])
    audio = [{"bytes": None, "path": str(folder / f"{i}.wav")} for i in range(5)]
    features = Features({"audio": Audio(decode=False), "label": ClassLabel(names=["even", "odd"])})
    table = Dataset.from_dict({"audio": audio, "label": [i % 2 for i in range(5)]}).cast(features)
    table.to_parquet(tmp_path / "clips.parquet")
    found = [
        open_labelled([str(path)], ["label"], classes=True)
        for path in (manifest, tmp_path / "clips.parquet", by_class)
    ]
    for clips in found:
        pairs = sorted(zip(clips.num_samples, clips.labels["label"]))
        assert pairs == sorted(zip(found[0].num_samples, found[0].labels["label"])) and len(pairs) == 5
    Dataset.from_dict({"audio": audio, "label": [1, 2, 3, 4, 5]}).to_parquet(tmp_path / "numbers.parquet")
    assert open_labelled([str(tmp_path / "numbers.parquet")], ["label"]).labels["label"] == list("12345")


def test_bad_clips_are_left_out_and_named(folder, caplog):
    (folder / "0.wav").write_bytes(b"no audio")
    (folder / "1.wav").unlink()
    rows = list(csv.DictReader(open(folder / "metadata.csv")))
    rows[2]["text"] = rows[4]["who"] = " "
    write_metadata(folder, rows)
    clips = open_labelled([str(folder)], ["text"], optional=["who"], max_bad_fraction=0.5)
    assert len(clips) == 7 and clips.labels["who"][1] == ""
    assert "0.wav: corrupt" in caplog.text and "1.wav: missing" in caplog.text and "2.wav: no text" in caplog.text


def test_the_share_of_bad_clips_is_that_of_all(folder):
    seconds = [0.05 if 50 <= i < 53 else 0.2 for i in range(100)]
    rows = [{"audio_filepath": f"{i % 10}.wav", "duration": duration} for i, duration in enumerate(seconds)]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(open_labelled([str(path)], [])) == 97
    with pytest.raises(BadAudioError, match="3 of 100 clips were skipped .* or leave those clips out"):
        open_labelled([str(path)], [], max_bad_fraction=0.02)
    soundfile.write(folder / "0.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    numbers = [0 if 50 <= i < 53 else 1 + i % 9 for i in range(100)]
    path.write_text("".join(json.dumps({"audio_filepath": f"{number}.wav"}) + "\n" for number in numbers))
    assert len(open_labelled([str(path)], []).readable()[0]) == 97
    with pytest.raises(BadAudioError, match="3 of 100 clips were skipped .* or leave those clips out"):
        open_labelled([str(path)], [], max_bad_fraction=0.02).readable()


def test_audio_that_breaks_only_when_decoded(folder, caplog):
    soundfile.write(folder / "5.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    clips = open_labelled([str(folder)], ["text"], max_seconds=2)
    assert clips[4] is None and "5.wav: non_finite" in caplog.text
    kept, lengths = clips.readable()
    assert kept.labels["text"] == [f"clip {i}" for i in (0, 1, 2, 4, 6, 7, 8, 9)] and lengths == kept.num_samples
    for workers in (0, 2):
        filled = clips.filled()
        start = start_method() if workers else None
        loader = DataLoader(
            filled, 1, collate_fn=lambda e: e[0]["text"], num_workers=workers, multiprocessing_context=start
        )
        for _ in range(12):  # more clips, and more bad ones, than would end a run that counted each time
            assert list(loader) == [f"clip {i}" for i in (0, 1, 2, 4, 6, 6, 7, 8, 9)]
        assert filled.bad == {"non_finite": 1}
    assert [example["text"] for _, example in zip(range(20), filled)] == list(loader), "for ends behind the last one"
    with pytest.raises(BadAudioError, match=r"None of 1 clips can be used \(1 non_finite\); the log names them"):
        clips.select([4]).filled()[0]


def test_silence_is_data_for_a_class_and_bad_for_a_text(folder, caplog):
    soundfile.write(folder / "5.wav", np.zeros(16000), 16000)
    classes = open_labelled([str(folder)], ["who"], classes=True)
    for clips in (classes, classes.select([5]), classes.filled(), classes.cut([True] * 10, 0.4, 0.4)):
        silent = [clip["who"] for clip in (clips[i] for i in range(len(clips))) if not clip["input_values"].any()]
        assert silent and set(silent) == {"b"}
    assert len(classes.readable()[0]) == 10 and not caplog.text
    kept, _ = open_labelled([str(folder)], ["text"]).readable()
    assert len(kept) == 9 and "clip 5" not in kept.labels["text"]
    assert "5.wav: silent." in caplog.text and "1 of 10 clips are left out: 1 silent." in caplog.text


def test_what_decides_on_a_length_is_named(folder, caplog):
    rows = [{"audio_filepath": "0.wav", "offset": i / 1000, "duration": 0.2 if i < 50 else 0.1} for i in range(60)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadAudioError, match=r"10 too_short.* or lower min_seconds \(to 0.025 at the least\) or raise"):
        open_labelled([str(folder / "list.jsonl")], [], min_seconds=0.15)
    assert "0.wav: too_short, shorter than min_seconds." in caplog.text
    open_labelled([str(folder)], ["text"], max_seconds=2)
    assert "1 clips longer than 2 s (max_seconds) were left out" in caplog.text


def test_a_clip_that_is_listed_twice_is_held_out_twice(folder):
    (folder / "rare.jsonl").write_text(json.dumps({"audio_filepath": "0.wav", "who": "a", "text": "clip 0"}))
    clips = open_labelled([str(folder), *2 * [str(folder / "rare.jsonl")]], ["who"], classes=True)
    for seed in range(6):
        parts = clips.hold_out(0.4, seed, evenly=["who"])
        copies = [sum(len(part[i]["input_values"]) == 8000 for i in range(len(part))) for part in parts]
        assert sorted(copies) == [0, 3]


def test_a_file_is_one_recording_however_its_path_is_spelled(folder, tmp_path_factory, monkeypatch):
    """Relative and absolute, through a linked folder, as a linked file."""
    beside = tmp_path_factory.mktemp("beside")
    (beside / "link").symlink_to(folder, target_is_directory=True)
    (beside / "other").mkdir()
    (beside / "other" / "a.wav").symlink_to(folder / "0.wav")
    write_metadata(beside / "other", [{"file_name": "a.wav", "text": "clip 0", "who": "a"}])
    monkeypatch.chdir(folder.parent)
    link, other = str(beside / "link"), str(beside / "other")
    specs = [folder.name, str(folder), link, other]
    clips = open_labelled(specs, ["text"])
    assert len(clips) == 31 and len(set(clips.groups())) == 10
    rest, held = clips.hold_out(0.3)
    assert set(rest.labels["text"]).isdisjoint(held.labels["text"]) and not held.also_in(rest)
    found = open_labelled([other, link], ["text"])
    assert found.also_in(rest) == sum(text in rest.labels["text"] for text in found.labels["text"])
    write_metadata(beside / "other", [{"file_name": "a.wav", "text": "no", "who": "a"}])
    with pytest.raises(ValueError, match="is listed twice, with text clip 0 and no"):
        open_labelled(specs, ["text"])


def test_a_pack_remembers_which_clips_are_pieces_of_one_recording(folder, tmp_path):
    rows = [
        {"audio_filepath": str(folder / f"{i}.wav"), "offset": start, "duration": 0.2, "text": f"{i}"}
        for i in (0, 1, 2, 4, 5)
        for start in (0.0, 0.2, 0.2)
    ]
    manifest = tmp_path / "pieces.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack.main(["--data", str(manifest), "--columns", "text", "--output", str(tmp_path / "packed")])
    clips = open_labelled([str(tmp_path / "packed")], ["text"])
    assert (
        clips.groups().tolist()
        == [i // 3 for i in range(15)]
        == open_labelled([str(manifest)], ["text"]).groups().tolist()
    )
    rest, held = clips.hold_out(0.4)
    assert len(held) == 6 and set(rest.labels["text"]).isdisjoint(held.labels["text"])
    twice = open_labelled([str(tmp_path / "packed"), str(tmp_path / "packed")], ["text"])
    assert twice.groups().tolist() == 2 * clips.groups().tolist()


def test_a_source_that_goes_away_ends_the_reading(folder):
    rows = [{"audio_filepath": f"{i % 3}.wav", "offset": i / 1000, "duration": 0.2} for i in range(60)]
    (folder / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(folder / "pieces.jsonl")], []).filled()
    assert all(clips[i] for i in range(60))
    (folder / "0.wav").unlink()
    with pytest.raises(BadAudioError, match="more than max_bad_fraction"):
        [clips[i] for i in range(60)]


def test_the_share_of_bad_clips_is_exact_once_all_were_met(folder):
    rows = [{"audio_filepath": f"{i if i < 4 else 9}.wav", "offset": i / 1000, "duration": 0.2} for i in range(60)]
    (folder / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(folder / "pieces.jsonl")], []).filled()
    for number in range(4):
        (folder / f"{number}.wav").unlink()
    assert all(clips[i] for i in range(59, -1, -1) if i != 0)  # 3 of 59
    with pytest.raises(BadAudioError, match="4 of 60 clips were skipped"):
        clips[0]


def test_the_share_of_bad_clips_is_judged_over_all_workers(folder):
    """Each of four workers meets fewer clips than the share is judged on."""
    rows = [
        {"audio_filepath": f"{i % 2 if 32 <= i < 52 or i == 59 else 9}.wav", "offset": i / 1000} for i in range(60)
    ]
    (folder / "pieces.jsonl").write_text("\n".join(json.dumps(row | {"duration": 0.2}) for row in rows))
    clips = open_labelled([str(folder / "pieces.jsonl")], []).filled()
    for number in range(2):
        (folder / f"{number}.wav").unlink()
    with pytest.raises(BadAudioError, match=r"of \d\d clips were skipped \(\d+ missing\), more than max_bad_fraction"):
        list(DataLoader(clips, 1, collate_fn=len, num_workers=4))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["sentence"], {}, "no column 'sentence'; it has file_name, text, who"),
        (["input_values"], {}, "cannot be called input_values, which is the audio"),
        (["text"], {"max_seconds": 0.2}, "no usable clip .* 10 are too long"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, labels, options, message):
    with pytest.raises(ValueError, match=message):
        open_labelled([str(folder)], labels, **options)


def test_a_column_is_chosen_by_opening_the_source_once(folder, monkeypatch):
    opened, open_source = [], training.data.labelled.open_source
    monkeypatch.setattr(
        training.data.labelled, "open_source", lambda *a, **options: opened.append(a) or open_source(*a, **options)
    )
    assert choose_column([str(folder)], None, ["words", "who", "text"], "text_column", "transcripts") == "who"
    assert len(opened) == 1
    with pytest.raises(ValueError, match="transcripts was found .words, label.: .*; it has file_name, text, who. If"):
        choose_column([str(folder)], None, ["words", "label"], "text_column", "transcripts")


def test_a_folder_without_labels_says_what_to_write(folder):
    (folder / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="metadata.csv .* nor a subfolder for each text"):
        open_labelled([str(folder)], ["text"], classes=True)
    with pytest.raises(ValueError, match="columns file_name, text and who"):
        open_labelled([str(folder)], ["text", "who"])


def test_real_transcripts(speech):
    clips = open_labelled([str(speech / "librispeech_train_clean_5/validation")], ["transcription"])
    assert len(clips) > 200 and all(text.isupper() for text in clips.labels["transcription"])
