"""Scores: read from what evaluations wrote, sources named without folders or keys."""

import json
from pathlib import Path

import pytest
from cards import superb_rows, write_lines

from sjepa_hf import model_card
from sjepa_hf.scores import data_name, data_names, read_scores


def test_probes_give_the_best_layer(checkpoint, tmp_path):
    scores = [
        {"label": "phones", "classifier": "linear", "subject": s, "layer": layer, "mean": mean, "deviation": 0.01}
        for s, layer, mean in (("mine", 0, 0.4), ("mine", 1, 0.6), ("mine", 2, 0.5), ("MFCC", None, 0.3))
    ]
    task = {"level": "frame", "rows": 900, "classes": 39, "splits": 3}
    found = {"checkpoints": {"mine": str(checkpoint)}, "data": ["/data/lj"], "protocol": {}, "scores": scores}
    (tmp_path / "probes.json").write_text(json.dumps(found | {"tasks": {"phones": task}}))
    (score,) = read_scores(tmp_path / "probes.json", checkpoint)
    assert (score.value, score.text, score.runs) == (0.6, "0.600 ± 0.010", "3 splits")
    assert score.task == "phones, linear probe of layer 1 (the best)" and score.baselines == {"MFCC": "0.300 ± 0.010"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "holds no results"),
        ('{"some": "thing"}', "holds no results"),
        ("", "holds no results"),
    ],
)
def test_files_without_results_are_refused(checkpoint, tmp_path, content, sentence):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*x.json {sentence}"):
        model_card.main([str(checkpoint), "--results", str(tmp_path / "x.json")])
    assert not (checkpoint / "README.md").exists()


def test_results_of_another_model_are_refused(checkpoint, tmp_path):
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(tmp_path / "another"))
    with pytest.raises(SystemExit, match="no score of .*mine, only of .*another, mfcc"):
        model_card.main([str(checkpoint), "--results", str(path)])


def test_sources_are_named_without_their_folders():
    assert data_name("/home/ada/libri/test") == "libri/test"
    assert data_name("/home/ada/words") == "words"
    assert data_name("speech_commands::v0.02::test") == "speech_commands::v0.02::test"
    assert data_name("ada/words") == "ada/words"
    assert data_names(["/data/train_a", "/data/train_b"]) == "train_a + train_b"


def test_one_split_has_no_deviation(checkpoint, tmp_path):
    scores = [
        {"label": "words", "classifier": "linear", "subject": s, "layer": 1, "mean": 0.5, "deviation": 0.0}
        for s in ("mine", "/home/ada/final", "MFCC")
    ]
    task = {"level": "utterance", "rows": 9, "classes": 3, "splits": 1}
    found = {"data": ["/data/lj"], "protocol": {}, "scores": scores, "tasks": {"words": task}}
    found["checkpoints"] = {"mine": str(checkpoint), "/home/ada/final": "/home/ada/final"}
    (tmp_path / "probes.json").write_text(json.dumps(found))
    (score,) = read_scores(tmp_path / "probes.json", checkpoint)
    assert (score.text, score.runs, score.baselines) == ("0.500", "1 split", {"final": "0.500", "MFCC": "0.500"})


def test_names_of_sources_have_no_folders_and_no_keys():
    assert data_name("https://host/a/b.parquet?key=secret") == "b.parquet"
    assert data_name("zip://a.wav::/home/ada/secret/b.zip") == "a.wav::b.zip"
    assert data_name("/") == "/" and data_name("../words") == "../words"
    assert data_name(str(Path.home() / "train")) == "train"
