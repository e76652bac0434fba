"""Scores: rows that come back as they were written, a checkpoint's own beside the others, names without folders."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cards import superb_rows, write_superb

from sjepa_hf import model_card
from sjepa_hf.scores import (
    THIS_MODEL,
    Score,
    data_name,
    data_names,
    json_text,
    markdown_table,
    read_scores,
    scores_of,
    short_names,
    write_scores,
)


ROW = Score("mine", "phones, linear probe", "audio-classification", "lj", "test", "accuracy", 0.5)
FULL = replace(ROW, deviation=0.01, runs="3 splits", values=[0.4, 0.5, 0.6], protocol="39 classes", clips=9, layer=0)


def refused(path: Path, content) -> str:
    """The sentence about a file with this content."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read_scores(path)
    return str(caught.value)


def test_rows_come_back_and_what_else_is_known_stays(tmp_path):
    path = tmp_path / "probes.json"
    write_scores(path, [ROW, FULL], clips=9, verdict="Zoë's")
    assert read_scores(path) == [ROW, FULL]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["clips"], found["verdict"]) == (9, "Zoë's") and "layer" not in found["scores"][0]


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    path = tmp_path / "ks.json"
    nan = math.nan
    write_scores(
        path, [replace(FULL, value=nan, deviation=nan, values=[nan, 0.5, math.inf])], loss=[nan, {"x": -math.inf}]
    )

    def no_json(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(path.read_text(), parse_constant=no_json)
    assert found["loss"] == [None, {"x": None}] and found["scores"][0]["values"] == [None, 0.5, None]
    (score,) = read_scores(path)
    assert math.isnan(score.value) and score.text == "nan" and math.isnan(score.values[0])
    assert json_text({"a": (1, nan)}) == '{"a": [1, null]}'


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"value": True}, "`value` is True, no number"),
        ({"value": "0.5"}, "`value` is '0.5', no number"),
        ({"deviation": False}, "`deviation` is False, no number"),
        ({"values": [0.5, True]}, r"`values` is [0.5, True], no list of numbers"),
        ({"values": 0.5}, "`values` is 0.5, no list of numbers"),
        ({"layer": 1.5}, "`layer` is 1.5, no number from 0"),
        ({"layer": True}, "`layer` is True, no number from 0"),
        ({"clips": -1}, "`clips` is -1, no number from 0"),
        ({"learned": 1}, "`learned` is 1, no truth value"),
        ({"subject": None}, "`subject` is None, no text"),
        ({"runs": 3}, "`runs` is 3, no text"),
        ({"mean": 0.5}, "has a field `mean`, which is unknown"),
    ],
)
def test_a_row_with_a_wrong_field_is_named(tmp_path, change, why):
    good = {"subject": "a", "task": "b", "task_type": "c", "data": "d", "split": "e", "metric": "f", "value": 1}
    said = refused(tmp_path / "probes.json", {"scores": [good, good | change]})
    assert said.startswith(f"{tmp_path}/probes.json is not a scores file (score 2") and why in said
    del good["metric"]
    assert "score 1 has no `metric`" in refused(tmp_path / "probes.json", {"scores": [good]})
    assert "score 1 is [], no object" in refused(tmp_path / "probes.json", {"scores": [[]]})


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("results.json", {"scores": {"/x": {"clips": 2, "accuracy": 1}}}, "`python -m training.finetune_ctc` or"),
        ("probes.json", {"scores": [{"label": "phones", "mean": 0.5}]}, "`python -m training.probe` writes it anew."),
        ("ks.jsonl", '{"task": "ks"}\n{"task": "ks"}\n', "give ks.json beside it, which `python -m training.superb`"),
        ("ks.jsonl", '{"task": "ks"}\n', "give ks.json beside it, which `python -m training.superb`"),
        ("x.json", "not json", "`python -m training.superb` (TASK.json), `training.probe` (probes.json) or a fine-"),
        ("x.json", "", "is not a scores file (not one JSON object): `python"),
        ("x.json", "[1]", "(probes.json)"),
        ("x.json", "[" * 100_000, "(probes.json)"),
        ("x.json", {"some": "thing"}, "(no list under the key `scores`)"),
    ],
)
def test_other_files_are_answered_with_the_command_that_writes_them(tmp_path, name, content, way_out):
    said = refused(tmp_path / name, content)
    assert said.startswith(f"{tmp_path / name} is not a scores file (") and way_out in said and "\n" not in said


def test_a_card_is_not_made_from_such_a_file(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="error: .*absent.json is not a scores file .*No such file"):
        model_card.main([str(checkpoint), "--results", str(tmp_path / "absent.json")])
    assert not (checkpoint / "README.md").exists()


def test_probes_give_the_best_layer(checkpoint, tmp_path):
    data = "c/dev + /home/ada/d/dev"
    mine = [
        replace(ROW, subject=str(checkpoint), data=data, layer=n, value=v, deviation=0.01, runs="3 splits")
        for n, v in enumerate((math.nan, 0.6, 0.5, 0.4))
    ]
    others = [replace(ROW, subject="mfcc", data=data, value=0.3, deviation=0.01, runs="3 splits")]
    others += [replace(ROW, subject="untrained:x/y", data=data, layer=n, value=v) for n, v in enumerate((0.2, 0.1))]
    write_scores(tmp_path / "probes.json", [*mine, *others])
    (score,) = scores_of(checkpoint, tmp_path / "probes.json")
    assert (score.value, score.text, score.runs) == (0.6, "0.600 ± 0.010", "3 splits")
    assert score.task == "phones, linear probe of layer 1 (the best)" and score.data == "c/dev + d/dev"
    told = {name: (other.text, other.runs) for name, other in score.baselines.items()}
    assert told == {"MFCC": ("0.300 ± 0.010", "3 splits"), "untrained": ("0.200", "1 seed")}


def test_the_best_error_rate_is_the_lowest(checkpoint, tmp_path):
    rows = [
        replace(ROW, subject=str(checkpoint), metric="per", layer=n, value=v) for n, v in enumerate((0.4, 0.2, 0.3))
    ]
    write_scores(tmp_path / "x.json", rows)
    (score,) = scores_of(checkpoint, tmp_path / "x.json")
    assert (score.value, score.layer) == (0.2, 1)


def test_tasks_data_splits_and_metrics_are_kept_apart(checkpoint, tmp_path):
    rows = [replace(ROW, subject=str(checkpoint), value=0.1)]
    rows += [replace(rows[0], **change, value=0.2) for change in ({"task": "b"}, {"data": "b"}, {"split": "b"})]
    rows += [replace(rows[0], metric="wer"), replace(ROW, subject="mfcc", data="b", value=0.9)]
    write_scores(tmp_path / "x.json", rows)
    found = scores_of(checkpoint, tmp_path / "x.json")
    assert len(found) == 5 and [score.baselines for score in found] == [{}, {}, {"MFCC": rows[-1]}, {}, {}]


def test_results_of_another_model_are_refused(checkpoint, tmp_path):
    path = write_superb(tmp_path / "ks.json", superb_rows(tmp_path / "another"))
    with pytest.raises(SystemExit, match="no score of .*mine, only of .*another, mfcc"):
        model_card.main([str(checkpoint), "--results", str(path)])
    (tmp_path / "asr").mkdir()
    write_scores(tmp_path / "asr" / "results.json", [replace(ROW, subject=THIS_MODEL)])
    with pytest.raises(SystemExit, match="asr/results.json: no score of .*mine, only of .*/asr"):
        model_card.main([str(checkpoint), "--results", str(tmp_path / "asr" / "results.json")])


def test_results_beside_a_model_are_its_own_wherever_it_goes(checkpoint, tmp_path):
    write_scores(checkpoint / "results.json", [replace(ROW, subject=THIS_MODEL)])
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert [score.value for score in scores_of(moved, moved / "results.json")] == [0.5]


def test_subjects_have_short_names_that_tell_them_apart():
    assert short_names(["mfcc", "untrained:/a/x", "/a/x"]) == {
        "mfcc": "MFCC", "untrained:/a/x": "untrained", "/a/x": "x"
    }  # fmt: skip
    several = ["untrained:/a/x", "untrained:/b/y", "/a/final", "/b/final/", "c/z", "/q/a/final"]
    assert list(short_names(several).values()) == [
        "untrained x", "untrained y", "a/final", "b/final", "z", "a/final (2)"
    ]  # fmt: skip
    home = str(Path.home() / "final")
    assert list(short_names([home, "/b/final"]).values()) == ["final", "b/final"], "not the user's name"


def test_sources_are_named_without_their_folders():
    assert data_name("/home/ada/libri/test") == "libri/test"
    assert data_name("/home/ada/words") == "words"
    assert data_name("speech_commands::v0.02::test") == "speech_commands::v0.02::test"
    assert data_name("ada/words") == "ada/words"
    assert data_names(["/data/train_a", "/data/train_b"]) == "train_a + train_b"


def test_names_of_sources_have_no_folders_and_no_keys():
    assert data_name("https://host/a/b.parquet?key=secret") == "b.parquet"
    assert data_name("zip://a.wav::/home/ada/secret/b.zip") == "a.wav::b.zip"
    assert data_name("/") == "/" and data_name("..") == ".."
    assert data_name(str(Path.home() / "train")) == data_name("~/train") == "train"


def test_a_path_is_known_by_a_dot_or_by_being_there(tmp_path, monkeypatch):
    assert data_name("../words.jsonl") == data_name("./words.jsonl") == "words.jsonl"
    assert data_name("../train") == "train" and data_name("../words/train") == "words/train"
    (tmp_path / "ada" / "words").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert data_name("ada/words") == "words" and data_name("ada/others") == "ada/others"
    assert data_name("a" * 300 + "/b") == "a" * 300 + "/b", "longer than any file's name"


def test_a_table_in_markdown():
    assert markdown_table(["a", "b"], [["1", ""], ["2", "3"]]) == "| a | b |\n|---|---|\n| 1 |  |\n| 2 | 3 |"
    assert markdown_table(["a"], []) == "| a |\n|---|"


def test_names_that_are_not_utf_8_end_up_as_escapes_that_read_the_same():
    value = {"a": [os.fsdecode(b"n\xff"), "\u00e9 \U0001f600"]}
    text = json_text(value)
    assert text == '{"a": ["n\\udcff", "\u00e9 \U0001f600"]}' and json.loads(text.encode()) == value
