"""Facts: of any type, named where they cannot be used."""

import datetime

import pytest
from cards import card, facts_of, superb_rows, write_superb
from huggingface_hub import metadata_load

from sjepa_hf import model_card


def test_unknown_facts_are_named(checkpoint, tmp_path):
    (tmp_path / "facts.yaml").write_text("licence: mit")
    with pytest.raises(SystemExit, match="the facts are fields among .*license"):
        model_card.main([str(checkpoint), "--facts", str(tmp_path / "facts.yaml")])


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
        "datasets": [f"ada/words-{i}" for i in range(300)],
        "intended_use": "one\n\ntwo",
        "limits": [datetime.date(2026, 1, 2), None, "---"][::2],
        "result_data": {"words": {"name": "W | {{ x }}\n| a |", "dataset_id": "ada/words"}},
    }
    path = write_superb(tmp_path / "ks.json", superb_rows(checkpoint))
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
        ("result_data: {words: {dataset_id: ../../x}}", "dataset_id` is not the name of a data set on the Hub"),
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
