"""A card says what was measured and how, names what else was measured beside it, and invents nothing."""

import ast
import datetime
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from transformers import HubertConfig, HubertForCTC

import sjepa_hf
from sjepa_hf import model_card
from sjepa_hf.scores import data_name, data_names, read_scores


@pytest.fixture
def checkpoint(make_config, tmp_path):
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def superb_rows(checkpoint, task="ks", **changes):
    """What `training.superb` writes: two seeds of the checkpoint, and a baseline."""
    row = {
        "task": task,
        "title": "keyword spotting",
        "metrics": {"accuracy": 0.0},
        "layer_weights": [1.0],
        "clips": {"train": 80, "dev": 20, "test": 20},
        "protocol": "s3prl/s3prl",
        "hyperparameters": {"head": "pooled", "train_data": ["/data/words"], "test_data": [], "max_steps": 100},
    } | changes
    found = [(str(checkpoint), 0, 0.9), (str(checkpoint), 1, 0.8), ("mfcc", 0, 0.5), ("untrained:x/y", 0, 0.6)]
    return [row | {"encoder": name, "seed": seed, "metrics": {"accuracy": value}} for name, seed, value in found]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def card(checkpoint, *arguments) -> ModelCard:
    model_card.main([str(checkpoint), *map(str, arguments)])
    return ModelCard.load(checkpoint / "README.md")


def test_what_was_not_measured_does_not_appear(checkpoint):
    written = card(checkpoint)
    assert "None was measured." in written.text and written.data.eval_results is None
    assert "No record of the training was kept" in written.text
    assert written.data.pipeline_tag == "feature-extraction" and written.data.license is None
    assert not (checkpoint / ".eval_results").exists()
    assert "0.1M parameters in the encoder" in written.text  # of 0.13M in all
    assert "![" not in written.text


def test_scores_stand_beside_their_baselines(checkpoint, tmp_path):
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(checkpoint))
    written = card(checkpoint, "--results", path)
    assert "| metric | this model | MFCC | untrained |" in written.text
    assert "| accuracy | **0.850 ± 0.071** | 0.500 | 0.600 |" in written.text
    assert "on words (20 test clips, a share held out at random; 100 steps; s3prl/s3prl; 2 seeds)" in written.text
    (result,) = written.data.eval_results
    assert (result.metric_value, result.dataset_name, result.task_type) == (0.85, "words", "audio-classification")


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


def test_a_recogniser_tells_its_error_rates_and_where_it_comes_from(make_config, tmp_path):
    directory = tmp_path / "asr"
    sjepa_hf.SJepaForCTC(make_config()).save_pretrained(directory)
    rates = {"greedy": {"wer": 0.5, "cer": 0.2}, "lm": {"wer": 0.4, "cer": 0.19}}
    (directory / "results.json").write_text(
        json.dumps({"steps": 90, "best_step": 60, "scores": {"/data/libri/test": {"clips": 7} | rates}})
    )
    record = {
        "kind": "fine-tuning",
        "base_model": "ada/encoder",
        "base_checkpoint": "ada/encoder",
        "from_scratch": False,
        "data": {"sources": ["/data/libri/train"], "clips": 30, "hours": 0.1},
        "steps": 90,
        "hours_taken": 0.25,
        "hardware": "1 x H200",
        "software": {"torch": "2.13.0"},
        "settings": {"learning_rate": 1e-4},
    }
    (directory / "training.json").write_text(json.dumps(record))
    written = card(directory, "--repo_id", "ada/asr")
    for line in (
        "- Sources: libri/train, 30 clips, 6 minutes",
        "- Fine-tuned from ada/encoder",
        "- Took 15 minutes on 1 x H200",
        "| learning_rate | 0.0001 |",
        "on libri/test (greedy decoding; 7 clips, best checkpoint by held-out clips (step 60); 1 seed)",
        "| wer (lower is better) | **0.400** |",
        'pipeline("automatic-speech-recognition", "ada/asr", trust_remote_code=True)',
    ):
        assert line in written.text, line
    assert written.data.base_model == "ada/encoder"
    assert [r.metric_value for r in written.data.eval_results] == [0.5, 0.2, 0.4, 0.19]


def test_a_fine_tuned_model_of_another_kind_is_not_called_s_jepa(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7)
    HubertForCTC(HubertConfig(**sizes, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    written = card(tmp_path, "--repo_id", "ada/asr")
    assert written.data.pipeline_tag == "automatic-speech-recognition" and "s-jepa" not in written.data.tags
    assert 'pipeline("automatic-speech-recognition", "ada/asr")' in written.text
    for of_ours in ("trust_remote_code", "import sjepa_hf", "2606.19398", "Citation"):
        assert of_ours not in written.text, of_ours


def test_a_pretraining_tells_which_checkpoint_it_began_with(checkpoint):
    record = {"kind": "pretraining", "base_model": None, "base_checkpoint": "first/final", "steps": 9}
    (checkpoint / "training.json").write_text(json.dumps(record | {"settings": {}}))
    assert "- Pretraining continued from first/final" in card(checkpoint).text


def test_facts_and_results_on_data_sets_of_the_hub(checkpoint, tmp_path):
    facts = {
        "name": "Tiny",
        "license": "apache-2.0",
        "language": ["en"],
        "data": "10 h of LibriSpeech (CC BY 4.0)",
        "limits": "Heard read English alone.",
        "result_data": {"words": {"name": "Words", "dataset_id": "some/words", "task_id": "test"}},
    }
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts))
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(checkpoint))
    written = card(checkpoint, "--facts", tmp_path / "facts.yaml", "--results", path)
    assert written.data.license == "apache-2.0" and "# Tiny" in written.text
    assert "- Data: 10 h of LibriSpeech (CC BY 4.0)" in written.text and "- Heard read English alone." in written.text
    (entry,) = yaml.safe_load((checkpoint / ".eval_results" / "some_words.yaml").read_text())
    assert entry["dataset"] == {"id": "some/words", "task_id": "test"} and entry["value"] == 0.85
    assert entry["notes"].startswith("accuracy; keyword spotting")


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


def test_unknown_facts_are_named(checkpoint, tmp_path):
    (tmp_path / "facts.yaml").write_text("licence: mit")
    with pytest.raises(SystemExit, match="the facts are fields among .*license"):
        model_card.main([str(checkpoint), "--facts", str(tmp_path / "facts.yaml")])


def test_sources_are_named_without_their_folders():
    assert data_name("/home/ada/libri/test") == "libri/test"
    assert data_name("/home/ada/words") == "words"
    assert data_name("speech_commands::v0.02::test") == "speech_commands::v0.02::test"
    assert data_name("ada/words") == "ada/words"
    assert data_names(["/data/train_a", "/data/train_b"]) == "train_a + train_b"


def facts_of(tmp_path, content) -> str:
    """Path of a file of facts."""
    (tmp_path / "facts.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(tmp_path / "facts.yaml")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[A. Practitioner]", "A. Practitioner"),
        ("A. Practitioner", "A. Practitioner"),
        ("[Ada, Bob, Zoë Łukasz]", "Ada, Bob and Zoë Łukasz"),
        ("\n- Ada\n- 'Bob\n  of B'", "Ada and Bob of B"),
    ],
)
def test_authors_are_one_name_or_several(checkpoint, tmp_path, written, shown):
    assert f"\n- By {shown}\n" in card(checkpoint, "--facts", facts_of(tmp_path, f"authors: {written}")).text


def test_facts_of_any_type_make_a_card_that_can_be_read_again(checkpoint, tmp_path):
    facts = {
        "name": "Tiny | 'x': \"y\"\n---\nlicense: mit\n# {{ 7 * 7 }} {% for x in y %}",
        "license": "cc-by-4.0",
        "language": "en",
        "authors": [2026, "<b>Ada</b>"],
        "data": 10.5,
        "datasets": ["ada/words"] * 300,
        "intended_use": "one\n\ntwo",
        "limits": [datetime.date(2026, 1, 2), None, "---"][::2],
        "result_data": {"words": {"name": "W | {{ x }}\n| a |", "dataset_id": "ada/words"}},
    }
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(checkpoint))
    written = card(checkpoint, "--facts", facts_of(tmp_path, facts), "--results", path)
    text = (checkpoint / "README.md").read_text()
    found = metadata_load(checkpoint / "README.md")
    assert found["license"] == "cc-by-4.0" and found["language"] == ["en"] and len(found["datasets"]) == 300
    assert found["model-index"][0]["name"] == written.data.model_name
    assert "\n# Tiny | 'x': \"y\" --- license: mit # {{ 7 * 7 }} {% for x in y %}\n" in text
    assert "- By 2026 and <b>Ada</b>" in text and "- Data: 10.5" in text and "\n- one two\n" in text
    assert r"on W \| {{ x }} \| a \| (20 test clips" in text
    assert [result.metric_value for result in written.data.eval_results] == [0.85]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("language: [no, sv]", r"`language\[0\]` is a truth value: .* quotes"),
        ("license: true", "`license` is a truth value"),
        ("authors: {name: Ada}", r"`authors` should be text and is a mapping \(text with ': ' in it needs quotes\)"),
        ("limits:\n- Of rooms: it has heard none\n- other", r"`limits\[0\]` should be text and is a mapping"),
        ("datasets: [[a]]", "`datasets` should be text and is a list"),
        ("name: [a, b]", "`name` should be text and is a list"),
        ("name: '  '", "`name` is empty"),
        ("limits: [a, null]", r"`limits\[1\]` should be text"),
        ("result_data: [words]", "`result_data` should map each source"),
        ("result_data: {words: Words}", "`result_data: words` should have fields among name, dataset_id, task_id"),
        ("result_data: {words: {nam: x}}", "`result_data: words` should have fields among"),
        ("result_data: {words: {dataset_id: ../../x}}", "dataset_id` is no name of a data set on the Hub"),
        ("name: [a", r"facts.yaml, line \d, cannot be read as YAML"),
        ("- name", "the facts are fields among"),
        ("!!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_facts_that_are_no_text_are_named(checkpoint, tmp_path, content, sentence):
    with pytest.raises(SystemExit, match=f"error: .*{sentence}") as caught:
        card(checkpoint, "--facts", facts_of(tmp_path, content))
    assert "\n" not in caught.value.code and "raised in" not in caught.value.code
    assert not (checkpoint / "README.md").exists()


def test_what_is_left_empty_is_not_known(checkpoint, tmp_path):
    written = card(checkpoint, "--facts", facts_of(tmp_path, "name:\nlicense:\nauthors:\nlimits:\nresult_data:\n"))
    assert written.data.license is None and "# mine" in written.text and "By" not in written.text


def test_names_in_results_and_records_mean_nothing_to_markdown_and_html(checkpoint, tmp_path):
    used = {"train_data": ["/data/<script>alert(1)|x"]}
    rows = superb_rows(checkpoint, title="a | b\n[c](javascript:x)")
    rows = [row | {"hyperparameters": row["hyperparameters"] | used} for row in rows]
    record = {
        "kind": "pretraining",
        "data": {"sources": [f"/data/{n}*" for n in range(40)], "hours": 0.09},
        "steps": 3,
    }
    settings = {"a|b": "x\ny | z", "kwargs": {"a": [1, None]}, "lm": "<b>"}
    (checkpoint / "training.json").write_text(json.dumps(record | {"settings": settings}))
    written = card(checkpoint, "--results", write_lines(tmp_path / "ks.jsonl", rows))
    assert "<script>" not in written.text and "&lt;script>" in written.text and r"**A \| b \[c](java" in written.text
    assert r"| a\|b | x y \| z |" in written.text and "| kwargs | {'a': \\[1, None]} |" in written.text
    assert r"- Sources: 0\*, 1\*" in written.text and "and 28 more, 5.4 minutes" in written.text


def test_a_directory_of_any_name_has_code_that_runs(checkpoint, tmp_path):
    odd = checkpoint.rename(tmp_path / 'it\'s "mine"\\')
    (code,) = re.findall(r"```python\n(.*?)```", card(odd).text, re.DOTALL)
    names = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert names.count(odd.name) == 2


def test_figures_that_are_not_finite_stay_out_of_the_metadata(checkpoint, tmp_path):
    rows = superb_rows(checkpoint)
    rows[0]["metrics"]["accuracy"] = float("nan")
    facts = facts_of(tmp_path, {"result_data": {"words": {"dataset_id": "ada/words"}}})
    written = card(checkpoint, "--facts", facts, "--results", write_lines(tmp_path / "ks.jsonl", rows))
    assert "**nan ± nan**" in written.text and written.data.eval_results is None
    assert not (checkpoint / ".eval_results").exists()


def test_subjects_of_one_name_all_stand_in_the_table(checkpoint, tmp_path):
    rows = superb_rows(checkpoint)
    others = ("/a/final", "/b/final", "untrained:/a", "untrained:/b", "mfcc")
    rows = rows[:1] + [rows[2] | {"encoder": name, "metrics": {"accuracy": n / 10}} for n, name in enumerate(others)]
    text = card(checkpoint, "--results", write_lines(tmp_path / "ks.jsonl", rows)).text
    assert "| metric | this model | final | final (2) | untrained | untrained (2) | MFCC |" in text
    assert "| accuracy | **0.900** | 0.000 | 0.100 | 0.200 | 0.300 | 0.400 |" in text


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


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("training.json", "{torn", "training.json is no JSON"),
        ("training.json", "[]", "training.json holds list"),
        ("training.json", '{"data": {"hours": 2}}', "training.json of .* is not as it was written"),
        ("training.json", '{"data": {"sources": ["x"], "hours": "2"}}', "is not as it was written"),
        ("config.json", '{"model_type": "sjepa"}', "config.json or training.json of .* is not as it was written"),
        ("results.json", '{"scores": [1], "best_step": 2}', "results.json holds no results"),
        ("results.json", '{"scores": {"x": {"clips": 1, "accuracy": "a"}}, "best_step": 2}', "holds no results"),
    ],
)
def test_files_edited_by_hand_are_named(checkpoint, name, content, sentence):
    (checkpoint / name).write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        card(checkpoint)


def test_a_card_that_people_have_written_is_not_overwritten(checkpoint):
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nmine")
    with pytest.raises(SystemExit, match="README.md was written by hand"):
        card(checkpoint)
    assert (checkpoint / "README.md").read_text().endswith("mine")


def test_names_of_sources_have_no_folders_and_no_keys():
    assert data_name("https://host/a/b.parquet?key=secret") == "b.parquet"
    assert data_name("zip://a.wav::/home/ada/secret/b.zip") == "a.wav::b.zip"
    assert data_name("/") == "/" and data_name("../words") == "../words"
    assert data_name(str(Path.home() / "train")) == "train"
