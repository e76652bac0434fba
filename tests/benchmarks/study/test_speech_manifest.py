"""The manifest that is trained on: all of the collection, and nothing that is scored."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.study import speech_manifest
from benchmarks.study.speech_manifest import FOLDERS, LANGUAGES, NINE_HOURS, manifest_rows, speech_folder


ROWS = {  # folder -> rows of its metadata; what is trained on has "kept" in its name, what is not, "held"
    "librispeech_train_clean_5/train": [{"file_name": "kept.flac", "speaker_id": "19"}],
    "librispeech_251_speakers": [
        {"file_name": "held.flac", "speaker_id": "7859"},
        {"file_name": "kept.flac", "speaker_id": "20"},
    ],
    "ljspeech_phones": [{"file_name": f"{'held' if n < 120 else 'kept'}{n}.flac"} for n in range(122)],
    "digits_8khz": [{"file_name": "3_held_15.flac"}, {"file_name": "3_kept-sharealike_16.flac"}],
    "keywords": [{"file_name": "alexa/kept.flac"}],
    "coffee_orders": [{"file_name": "kept.flac"}],
    "speechocean762": [
        {"file_name": "kept.flac", "speaker": "1", "split": "train"},
        {"file_name": "held.flac", "speaker": "2", "split": "test"},
    ],
    "arabic_speech_commands": [
        {"file_name": "kept.flac", "split": "train"},
        {"file_name": "held1.flac", "split": "validation"},
        {"file_name": "held2.flac", "split": "test"},
    ],
    "common_voice_57_languages": [
        {"file_name": "de/held.flac", "speaker": "000000000c", "language": "de"},
        {"file_name": "de/kept.flac", "speaker": "000000000d", "language": "de"},
        {"file_name": "vot/kept.flac", "speaker": "000000000c", "language": "vot"},  # has too few speakers to score
    ],
    "telephone_prompts": [
        {"file_name": "kept-sharealike.flac", "language": "es"},
        {"file_name": "kept.flac", "language": "ru"},
    ],
    "kathleen": [{"file_name": "kept.flac"}],
    "kerstin": [{"file_name": "kept.flac"}],
}


@pytest.fixture
def collection(tmp_path) -> Path:
    for folder, rows in ROWS.items():
        (tmp_path / "speech" / folder).mkdir(parents=True)
        with (tmp_path / "speech" / folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "duration"])
            writer.writeheader()
            writer.writerows(row | {"duration": 36} for row in rows)
    return tmp_path / "speech"


def written(collection: Path, *options: str) -> list[str]:
    """Names of the clips in the manifest, with their folders."""
    manifest = collection.parent / "train.jsonl"
    speech_manifest.main([str(collection), str(manifest), *options])
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert all(row.keys() == {"audio_filepath", "duration"} for row in rows), "no label is heard"
    return [str(Path(row["audio_filepath"]).relative_to(collection)) for row in rows]


def test_everything_is_trained_on_but_what_is_scored(collection, capsys):
    every = [f"{folder}/{row['file_name']}" for folder, rows in ROWS.items() for row in rows]
    assert written(collection) == [name for name in every if "kept" in name]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == list(FOLDERS) == list(ROWS)
    assert "digits_8khz                          1 clips   0.01 hours" in said
    assert said[-1].startswith("15 clips, 0.15 hours")


def test_the_first_study_heard_six_folders(collection):
    assert {name.rpartition("/")[0].removesuffix("/alexa") for name in written(collection, "--nine_hours")} == set(
        NINE_HOURS
    )


def test_what_is_to_be_shared_alike_can_stay_out(collection):
    assert set(written(collection)) - set(written(collection, "--no_share_alike")) == {
        "digits_8khz/3_kept-sharealike_16.flac",
        "telephone_prompts/kept-sharealike.flac",
    }


def test_parts_of_the_real_collection_have_no_speaker_in_common(speech):
    sizes = {}
    for folder in ("speechocean762", "arabic_speech_commands", "common_voice_57_languages"):
        parts = {part: manifest_rows(speech, folder, part) for part in ("train", "validation", "test")}
        if folder == "common_voice_57_languages":
            parts = {name: [row for row in rows if row["language"] in LANGUAGES] for name, rows in parts.items()}
            for language in LANGUAGES:
                rows = [row for rows in parts.values() for row in rows if row["language"] == language]
                assert len({row["speaker"] for row in rows}) >= 40, language
        heard = {name: {row["speaker"] for row in rows} for name, rows in parts.items()}
        assert not heard["train"] & heard["test"] and not heard["train"] & heard["validation"]
        sizes[folder] = [len(rows) for rows in parts.values()]
    assert sizes == {
        "speechocean762": [1750, 0, 1750],
        "arabic_speech_commands": [2160, 720, 720],
        "common_voice_57_languages": [1680, 0, 750],
    }


def test_the_collection_is_what_the_command_line_names_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SJEPA_SPEECH", str(tmp_path / "there"))
    assert speech_folder(None) == tmp_path / "there"
    assert speech_folder(tmp_path / "here") == tmp_path / "here"
    monkeypatch.delenv("SJEPA_SPEECH")
    with pytest.raises(ValueError, match="--speech, or SJEPA_SPEECH"):
        speech_folder(None)
