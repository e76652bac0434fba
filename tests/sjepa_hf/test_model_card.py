"""A card says what was measured and how, names what else was measured beside it, and invents nothing."""

import ast
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cards import card, facts_of, superb_rows, write_superb
from transformers import HubertConfig, HubertForCTC

import sjepa_hf
from sjepa_hf import model_card
from sjepa_hf.facts import Facts
from sjepa_hf.scores import Score, write_scores
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.result import FineTuningResult, score_rows


ROW = Score("mine", "words, linear probe", "audio-classification", "words", "test", "accuracy", 0.5)


def test_what_was_not_measured_does_not_appear(checkpoint):
    written = card(checkpoint)
    assert "None was measured." in written.text and written.data.eval_results is None
    assert "No record of the training was kept" in written.text
    assert written.data.pipeline_tag == "feature-extraction" and written.data.license is None
    assert not (checkpoint / ".eval_results").exists()
    assert "0.1M parameters in the encoder" in written.text  # of 0.13M in all
    assert "![" not in written.text


def test_scores_stand_beside_their_baselines(checkpoint, tmp_path):
    path = write_superb(tmp_path / "ks.json", superb_rows(checkpoint))
    written = card(checkpoint, "--results", path)
    assert "| metric | this model | MFCC | untrained |" in written.text
    assert "| accuracy | **0.850 ± 0.071** | 0.500 (1 seed) | 0.600 (1 seed) |" in written.text
    assert "on words (20 test clips, a share held out at random; 100 steps" in written.text
    assert "; 2 seeds; ± the standard deviation over the seeds):" in written.text
    (result,) = written.data.eval_results
    assert (result.metric_value, result.dataset_name, result.task_type) == (0.85, "words", "audio-classification")


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("accuracy", (0.7, 0.9, 0.4), "0.700 | **0.900** | 0.400"),
        ("eer", (0.2, 0.3, 0.1), "0.200 | 0.300 | **0.100**"),
        ("per", (0.5, 0.5001, 0.6), "**0.500** | **0.500** | 0.600"),
    ],
)
def test_the_best_of_a_row_is_bold_by_the_direction_of_its_measure(checkpoint, tmp_path, metric, values, shown):
    subjects = (str(checkpoint), "mfcc", "untrained:x/y")
    write_scores(
        tmp_path / "x.json", [replace(ROW, subject=s, metric=metric, value=v) for s, v in zip(subjects, values)]
    )
    assert f" | {shown} |" in card(checkpoint, "--results", tmp_path / "x.json").text


def test_a_model_that_has_learned_nothing_says_so_wherever_its_figures_stand(checkpoint, tmp_path):
    facts = facts_of(tmp_path, {"result_data": {"words": {"dataset_id": "ada/words"}}})
    rows = [row | {"learned": row["encoder"] == "mfcc" or row["seed"] == 1} for row in superb_rows(checkpoint)]
    written = card(checkpoint, "--facts", facts, "--results", write_superb(tmp_path / "ks.json", rows))
    never = "0.600 (1 seed) (no better than chance)"
    said = "not better than chance in every run"
    assert f"| accuracy | 0.850 ± 0.071 ({said}) | **0.500** (1 seed) | {never} |" in written.text
    assert said in written.data.eval_results[0].metric_name
    assert said in (checkpoint / ".eval_results" / "ada_words.yaml").read_text()
    outcome = FineTuningResult(9, None, False, "luck", {"/data/libri/test": {"clips": 7, "accuracy": 0.1}})
    arguments = FineTuningArguments(model_name_or_path="x", train_data=["/data/libri/train"])
    write_scores(checkpoint / "results.json", score_rows(outcome, arguments))
    assert "| accuracy | 0.100 (no better than chance) |" in card(checkpoint).text


def test_a_recogniser_tells_its_error_rates_and_where_it_comes_from(make_config, tmp_path):
    directory = tmp_path / "asr"
    sjepa_hf.SJepaForCTC(make_config()).save_pretrained(directory)
    rates = {"greedy": {"wer": 0.5, "cer": 0.2}, "lm": {"wer": 0.4, "cer": 0.19}}
    outcome = FineTuningResult(90, 60, True, "better than chance", {"/data/libri/test": {"clips": 7} | rates})
    arguments = FineTuningArguments(model_name_or_path="ada/encoder", train_data=["/data/libri/train"])
    write_scores(directory / "results.json", score_rows(outcome, arguments))
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
        "**Speech recognition, greedy decoding**, on libri/test (7 test clips, best checkpoint by held-out clips",
        "n-gram**, on libri/test (7 test clips, best checkpoint by held-out clips (step 60); 1 seed):",
        "| wer (lower is better) | 0.400 |",
        'pipeline("automatic-speech-recognition", "ada/asr", trust_remote_code=True)',
    ):
        assert line in written.text, line
    assert written.data.base_model == "ada/encoder"
    assert [r.metric_value for r in written.data.eval_results] == [0.5, 0.2, 0.4, 0.19]
    assert "learned without labels" in written.text and "self-supervised-learning" in written.data.tags
    (directory / "training.json").write_text(json.dumps(record | {"from_scratch": True}))
    written = card(directory, "--repo_id", "ada/asr")
    assert "trained here on labels alone" in written.text and "without labels" not in written.text
    assert written.data.tags == ["speech", "s-jepa"]


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


FIRST = {
    "kind": "pretraining",
    "data": {"sources": ["list.jsonl"]},
    "steps": 6000,
    "hours_heard": 10.8,
    "facts": {"data": "17.6 h of books (CC BY 4.0)", "license": "apache-2.0", "datasets": ["some/books"]},
}
SECOND = {
    "kind": "pretraining",
    "base_checkpoint": "cards/first",
    "data": {"sources": ["digits"]},
    "steps": 500,
    "hours_heard": 1.0,
    "base": FIRST,
}
THIRD = SECOND | {"base_checkpoint": "second/final", "steps": 200, "hours_heard": 0.4, "base": SECOND, "settings": {}}


def test_a_card_tells_all_that_the_weights_have_heard(checkpoint):
    (checkpoint / "training.json").write_text(json.dumps(THIRD))
    written = card(checkpoint)
    for line in (
        "- Sources: digits\n- Pretraining continued from second/final\n",
        "- second/final: heard 1.0 hours of audio (repeats counted) in 500 steps; sources: digits; from cards/first\n",
        "- cards/first: heard 10.8 hours of audio (repeats counted) in 6,000 steps; sources: list.jsonl;"
        " 17.6 h of books (CC BY 4.0); licence: apache-2.0\n",
        "- Heard 24 minutes of audio (repeats counted) in 200 steps, 12.2 hours with all before\n",
    ):
        assert line in written.text, line
    assert written.data.datasets == ["some/books"] and written.data.base_model is None and written.data.license is None
    for unknown in ({"base": None}, {"base": SECOND | {"base": FIRST | {"base_checkpoint": "lost"}}}):
        (checkpoint / "training.json").write_text(json.dumps(THIRD | unknown))
        assert "in 200 steps\n" in card(checkpoint).text, "no sum where one was not recorded"


def test_what_a_base_has_heard_is_no_matter_from_scratch(checkpoint):
    tuned = {"kind": "fine-tuning", "data": {"sources": ["words"], "clips": 3, "hours": 0.5}, "steps": 90}
    tuned |= {"base_checkpoint": "second/final", "base": SECOND, "settings": {}}
    (checkpoint / "training.json").write_text(json.dumps(tuned))
    assert "- cards/first: heard 10.8 hours" in card(checkpoint).text
    (checkpoint / "training.json").write_text(json.dumps(tuned | {"from_scratch": True}))
    written = card(checkpoint)
    assert "heard" not in written.text and written.data.datasets is None
    after = THIRD | {"base_checkpoint": "words/final", "base": tuned | {"from_scratch": True}}
    (checkpoint / "training.json").write_text(json.dumps(after))
    text = card(checkpoint).text
    assert "- words/final: fine-tuned on 30 minutes of audio in 90 steps; sources: words; with the configur" in text
    assert "cards/first: heard" not in text


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
    path = write_superb(tmp_path / "ks.json", superb_rows(checkpoint))
    written = card(checkpoint, "--facts", tmp_path / "facts.yaml", "--results", path)
    assert written.data.license == "apache-2.0" and "# Tiny" in written.text
    assert "- Data: 10 h of LibriSpeech (CC BY 4.0)" in written.text and "- Heard read English alone." in written.text
    (entry,) = yaml.safe_load((checkpoint / ".eval_results" / "some_words.yaml").read_text())
    assert entry["dataset"] == {"id": "some/words", "task_id": "test"} and entry["value"] == 0.85
    assert entry["notes"].startswith("accuracy; keyword spotting")


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
    written = card(checkpoint, "--results", write_superb(tmp_path / "ks.json", rows))
    assert "<script>" not in written.text and "&lt;script>" in written.text and r"**A \| b \[c](java" in written.text
    assert r"| a\|b | x y \| z |" in written.text and "| kwargs | {'a': \\[1, None]} |" in written.text
    assert r"- Sources: 0\*, 1\*" in written.text and "and 28 more, 5.4 minutes" in written.text


def test_a_directory_of_any_name_has_code_that_runs(checkpoint, tmp_path):
    odd = checkpoint.rename(tmp_path / 'it\'s "mine"\\')
    (code,) = re.findall(r"```python\n(.*?)```", card(odd).text, re.DOTALL)
    names = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert names.count(odd.name) == 2


def test_a_directory_whose_name_is_not_utf_8_has_a_card(checkpoint, tmp_path, monkeypatch, capsysbinary):
    odd = tmp_path / os.fsdecode(b"n\xff")
    shutil.copytree(checkpoint, odd, ignore=shutil.ignore_patterns("*.safetensors"))  # which Rust could not open there
    monkeypatch.setattr(sys, "argv", ["model_card", str(odd)])
    model_card.main()
    text = (odd / "README.md").read_text(encoding="utf-8")
    assert "# n\\udcff" in text
    for block in re.findall("```python\n(.*?)```", text, re.S):
        assert os.fsdecode(b"n\xff") in [node.value for node in ast.walk(ast.parse(block)) if hasattr(node, "value")]
    assert b"n\\udcff/README.md" in capsysbinary.readouterr().out


def test_figures_that_are_not_finite_stay_out_of_the_metadata(checkpoint, tmp_path):
    rows = superb_rows(checkpoint)
    rows[0]["metrics"]["accuracy"] = float("nan")
    facts = facts_of(tmp_path, {"result_data": {"words": {"dataset_id": "ada/words"}}})
    written = card(checkpoint, "--facts", facts, "--results", write_superb(tmp_path / "ks.json", rows))
    assert "| accuracy | nan | 0.500 (1 seed) | **0.600** (1 seed) |" in written.text
    assert written.data.eval_results is None
    assert not (checkpoint / ".eval_results").exists()


def test_subjects_of_one_name_all_stand_in_the_table(checkpoint, tmp_path):
    rows = superb_rows(checkpoint)
    others = ("/a/final", "/b/final", "untrained:/a", "untrained:/b", "mfcc")
    rows = rows[:1] + [rows[2] | {"encoder": name, "metrics": {"accuracy": n / 10}} for n, name in enumerate(others)]
    text = card(checkpoint, "--results", write_superb(tmp_path / "ks.json", rows)).text
    assert "| metric | this model | a/final | b/final | untrained a | untrained b | MFCC |" in text
    assert "| accuracy | **0.900** | 0.000 | 0.100 | 0.200 | 0.300 | 0.400 |" in text


@pytest.mark.parametrize("name", ["training.json", "results.json", "loss.png"])
def test_a_card_that_is_made_without_a_file_that_is_there_says_so(checkpoint, name, caplog):
    card(checkpoint)
    assert "The card is made without" not in caplog.text
    (checkpoint / name).write_text("")
    card(checkpoint)
    assert f"/{name}: it is empty." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("training.json", "{torn", "training.json is no JSON"),
        ("training.json", "[]", "training.json holds list"),
        ("training.json", '{"data": {"hours": 2}}', "training.json of .* is not as it was written"),
        ("training.json", '{"data": {"sources": ["x"], "hours": "2"}}', "is not as it was written"),
        ("config.json", '{"model_type": "sjepa"}', "config.json or training.json of .* is not as it was written"),
        ("results.json", '{"scores": [1]}', r"results.json is not a scores file \(score 1 is 1, no object\)"),
        ("results.json", '{"scores": {"x": {"clips": 1, "accuracy": 1}}}', "results.json is not a scores file"),
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


def test_the_card_that_comes_with_the_clone_has_the_words_of_today():
    tiny = Path(__file__).parents[2] / "model_cards" / "tiny"
    made = model_card.card_files(tiny, Facts.read(tiny / "facts.yaml"), repo_id="sjepa-tiny")["README.md"]
    ours = (tiny / "README.md").read_text(encoding="utf-8")
    told, made = (text.partition(model_card.MARK)[2].partition("## Results") for text in (ours, made))
    assert told[0] == made[0]
    assert all("± the standard deviation" in block for block in told[2].split("\n**")[1:] if " ± 0" in block)


def test_figures_have_four_digits_and_no_base_that_the_hub_would_refuse(checkpoint, tmp_path):
    write_scores(tmp_path / "x.json", [replace(ROW, subject=str(checkpoint), value=0.123456)])
    for base, shown in (("ada/encoder", "ada/encoder"), ("../ada/encoder", None), ("a b", None)):
        (checkpoint / "training.json").write_text(json.dumps({"kind": "pretraining", "base_model": base}))
        written = card(checkpoint, "--results", tmp_path / "x.json")
        assert written.data.base_model == shown
    assert written.data.eval_results[0].metric_value == 0.1235


def test_hours_in_all_are_known_where_each_pretraining_tells_its_own():
    first = {"kind": "pretraining", "hours_heard": 2.0}
    tuned = {"kind": "fine-tuning", "base_checkpoint": "b", "base": first}
    own = {"kind": "pretraining", "hours_heard": 3.0, "base_checkpoint": "a"}
    assert model_card.hours_in_all(own | {"base": first}) == model_card.hours_in_all(own | {"base": tuned}) == 5.0
    assert model_card.hours_in_all(first) is None, "it is said already"
    for unknown in ({"kind": "pretraining"}, first | {"base_checkpoint": "older"}):
        assert model_card.hours_in_all(own | {"base": unknown}) is None
