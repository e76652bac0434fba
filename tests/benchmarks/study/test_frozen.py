"""What the scores of a frozen encoder are read off."""

import pytest

from benchmarks.study.frozen import FROZEN, FrozenScore
from benchmarks.study.grid import as_flags
from benchmarks.study.report import HIGHER_IS_BETTER
from sjepa_hf.scores import LOWER_IS_BETTER
from training.evaluation.superb.arguments import choose_task, parse_arguments
from training.evaluation.superb.tasks import TASKS


@pytest.mark.parametrize("name", FROZEN)
def test_settings_are_understood_and_no_voice_is_in_two_sources(name, speech, tmp_path):
    """On the real collection: its columns have the names that the settings give."""
    score = FROZEN[name]
    rows = score.rows(speech)
    speaker = "speaker_id" if name == "diarization" else "speaker"
    heard = {source: {row[speaker] for row in found} for source, found in rows.items()}
    assert heard.keys() >= {"eval_data" if score.task == "qbe" else "train_data", "test_data"}
    assert sum(map(len, heard.values())) == len(set.union(*heard.values()))
    if "eval_data" not in rows and score.task != "asv":  # which holds speakers out by itself
        assert score.settings["split_by"] == speaker
    label = score.settings["label_column"]
    assert all(row[label] for found in rows.values() for row in found)
    if score.task in ("ks", "sid"):
        assert {row[label] for row in rows["test_data"]} <= {row[label] for row in rows["train_data"]}


@pytest.mark.parametrize("name", FROZEN)
def test_settings_are_those_of_the_command(name):
    score = FROZEN[name]
    sources = dict.fromkeys(["train_data"] if "train" in score.parts else ["eval_data", "test_data"], "x")
    flags = as_flags({"task": score.task, "model": "mfcc", **sources, **score.settings})
    assert choose_task(parse_arguments(flags)).columns == (score.settings["label_column"],)


def test_tables_take_the_better_for_the_better():
    for name, score in FROZEN.items():
        assert HIGHER_IS_BETTER[name] == (TASKS[score.task].metrics[0] not in LOWER_IS_BETTER), name


def test_one_clip_in_so_many_is_used(tmp_path):
    (tmp_path / "arabic_speech_commands").mkdir()
    lines = [f"{part}{n}.opus,{part},1.0" for part in ("train", "validation", "test") for n in range(6)]
    (tmp_path / "arabic_speech_commands" / "metadata.csv").write_text("\n".join(["file_name,split,duration", *lines]))
    rows = FrozenScore("arabic_speech_commands", "ks", every=3).rows(tmp_path)
    names = {source: [row["audio_filepath"].rpartition("/")[2] for row in found] for source, found in rows.items()}
    assert names == {
        "train_data": ["train0.opus", "train3.opus"],
        "eval_data": ["validation0.opus", "validation3.opus"],
        "test_data": ["test0.opus", "test3.opus"],
    }


def test_languages_are_those_with_voices_enough(tmp_path):
    (tmp_path / "common_voice_57_languages").mkdir()
    table = "file_name,language,speaker,duration\na.opus,de,1,1.0\nb.opus,vot,1,1.0\n"
    (tmp_path / "common_voice_57_languages" / "metadata.csv").write_text(table)
    (row,) = FROZEN["languages"].rows(tmp_path)["train_data"]
    assert row["language"] == "de"


def test_parts_and_the_folder_of_the_test_part_can_be_said(tmp_path):
    for folder, speaker in (
        ("librispeech_train_clean_5/train", "19"),
        ("librispeech_train_clean_5/validation", "6272"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        table = f"file_name,speaker_id,duration\n{speaker}.opus,{speaker},1.0\n"
        (tmp_path / folder / "metadata.csv").write_text(table)
    train, test = "librispeech_train_clean_5/train", "librispeech_train_clean_5/validation"
    rows = FrozenScore(train, "sd", test_folder=test).rows(tmp_path)
    assert {source: found[0]["speaker_id"] for source, found in rows.items()} == {
        "train_data": "19",
        "test_data": "6272",
    }
    assert FrozenScore(train, "sd", test_folder=test, parts=("test",)).rows(tmp_path).keys() == {"test_data"}
