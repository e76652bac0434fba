import pytest

from training.evaluation.superb.labels import (
    ClassLabels,
    TokenLabels,
    class_mean,
    read_lexicon,
    recognised_slots,
    score,
    slots,
)


SLOTTED = "A B-size very large E-size cup B-drink tea E-drink"


def test_class_labels():
    labels = ClassLabels({"action": ["on", "off", "on"], "object": ["lamp", "lamp", "fan"]})
    assert labels.sizes == [2, 2]
    seen = {"action": ["off", "up"], "object": ["fan", "fan"]}
    assert [t.tolist() for t in labels.encode(seen)] == [[0, 0], [-100, 0]]
    assert labels.decode([0, 0]) == labels.references(seen)[0] == "off | fan"


def test_slot_columns_become_slots():
    labels = ClassLabels({"size": ["big", "", "small"], "number of shots": ["", "two", ""]}, slots=True)
    texts = labels.references({"size": ["big", ""], "number of shots": ["two", ""]})
    assert [slots(text) for text in texts] == [[("size", "big"), ("number_of_shots", "two")], []]
    assert labels.decode([labels.values["size"].index(""), 1]) == "B-number_of_shots two E-number_of_shots"


@pytest.mark.parametrize(
    ("kind", "text", "normalised", "length"),
    [
        ("characters", "it's  a b", "IT'S A B", 10),
        ("characters", "one", "ONE", 5),
        ("characters", "e\u0301ẞ น้ำ", "\u00c9SS น้ำ", 9),
        ("phones", "SIL HH AY1 sp DH spn", "HH AY1 DH", 4),
        ("phones", "B EH0 R | AH0", "B EH0 R AH0", 5),
        ("slot_characters", SLOTTED, "A B-size VERY LARGE E-size CUP B-drink TEA E-drink", 25),
    ],
)
def test_texts_survive_their_tokens(kind, text, normalised, length):
    labels = TokenLabels({"text": [text, text]}, kind)
    (tokens, _) = labels.encode({"text": [text, text]})
    assert labels.references({"text": [text]}) == [normalised]
    assert labels.decode(tokens.tolist()) == normalised and len(tokens) == length and 0 not in tokens
    last = [labels.tokens[n] for n in tokens][-2:]
    assert last[-1] == "<eos>" and (last[0] == " ") == (kind == "characters")


@pytest.mark.parametrize("lexicon", [None, {"AHA": "AH0 HH AA1", "OH": "OW0"}])
def test_phones_without_their_stress(lexicon):
    texts = {"phones": ["AH0 HH AA1 | OW0"] if lexicon is None else ["aha oh"]}
    if lexicon is not None:
        lexicon = lexicon | {"YE": "Y IY1 sp"}  # a word that is not in training: its phones are tokens none the less
    labels = TokenLabels(texts, "phones", lexicon, stress=False)
    assert labels.tokens == [
        "<blank>",
        "<eos>",
        "AA",
        "AH",
        "HH",
        *([] if lexicon is None else ["IY"]),
        "OW",
        *("Y" * bool(lexicon)),
    ]
    assert labels.references(texts) == ["AH HH AA OW"] == [labels.decode(labels.encode(texts)[0].tolist())]
    assert TokenLabels(texts, "phones", lexicon).references(texts) == ["AH0 HH AA1 OW0"]


def test_an_answer_ends_where_s3prl_ends_it():
    for kind, text, answer in (("phones", "A B", "A"), ("characters", "AB", "AB")):
        labels = TokenLabels({"text": [text]}, kind)
        assert labels.decode([labels.tokens.index(token) for token in ("A", "<eos>", "B")]) == answer


def test_tokens_that_training_lacks_are_left_out():
    labels = TokenLabels({"text": ["ab a"]}, "characters")
    assert labels.decode(labels.encode({"text": ["abc a"]})[0].tolist()) == "AB A"


def test_slot_values_of_imperfect_output():
    assert recognised_slots("A B-size BIG E-size B-drink TEA") == [("size", "BIG")]
    assert recognised_slots("B-size B-drink BIG E-size") == [("size", "BIG")]
    assert recognised_slots("B-size BIG E-size B-size E-size") == [("size", "BIG")]


def test_words_with_a_hyphen_are_no_slots():
    labels = TokenLabels({"text": ["an e-mail B-size big E-size", "b-side"]}, "slot_characters")
    text = labels.references({"text": ["an e-mail b-side"]})[0]
    assert text == "AN E-MAIL B-SIDE" and labels.decode(labels.encode({"x": [text]})[0]) == text
    assert {token for token in labels.tokens if len(token) > 1} >= {"B-size", "E-size"}
    assert not {"E-MAIL", "B-SIDE"} & set(labels.tokens)


def test_lexicon(tmp_path):
    (tmp_path / "lexicon.txt").write_text("A AH0\nA EY1\ncab K AE1 B\n\n")
    lexicon = read_lexicon([str(tmp_path / "lexicon.txt")])
    assert lexicon == {"A": "AH0", "CAB": "K AE1 B"}
    assert TokenLabels({"text": ["a cab"]}, "phones", lexicon).references({"text": ["a cab"]}) == ["AH0 K AE1 B"]
    with pytest.raises(ValueError, match="lacks the word 'TAXI'"):
        TokenLabels({"text": ["a taxi"]}, "phones", lexicon)
    (tmp_path / "lexicon.txt").write_bytes(b"A AH0\n\xe4 EH1\n")
    with pytest.raises(ValueError, match="lexicon.txt, line 2: the byte 0xe4 is not UTF-8"):
        read_lexicon([str(tmp_path / "lexicon.txt")])
    with pytest.raises(ValueError, match="--lexicon nowhere.txt"):
        read_lexicon(["nowhere.txt"])


def test_scores():
    assert score(("accuracy",), ["a", "b", "c", "a"], ["a", "b", "d", "b"]) == {"accuracy": 0.5}
    assert score(("per",), ["K AE1", "B"], ["K AE1 B", "B"]) == {"per": 0.25}
    found = score(("slot_type_f1", "slot_value_cer"), ["B-size bug E-size"], ["B-size big E-size B-x y E-x"])
    assert found == {"slot_type_f1": pytest.approx(2 / 3), "slot_value_cer": 0.5}


def test_one_label_only():
    with pytest.raises(ValueError, match="Column 'who' has the one value 'x'"):
        ClassLabels({"who": ["x", "x"]})


def test_slot_values_are_cut_as_the_toolkit_cuts_them():
    """Within a value, slot tokens go between words; at its outer edges they stay, where references keep all."""
    for text, value in (
        ("B-size B-drink BIG E-size", "BIG"),
        ("B-size BIG E-drink E-size", "BIG"),
        ("B-size BIG B-drink ONE E-size", "BIG ONE"),
        ("B-size E-drink BIG E-size", "E-drink BIG"),
        ("B-size BIG B-drink E-size", "BIG B-drink"),
    ):
        assert recognised_slots(text) == [("size", value)], text
    assert slots("B-size B-drink BIG E-size") == [("size", "B-drink BIG")]
    found = score(("slot_value_cer",), ["B-size E-x BIG E-size"], ["B-size BIG E-size"])
    assert found == {"slot_value_cer": pytest.approx(4 / 3)}
    assert score(("slot_value_cer",), ["B-size B-drink BIG E-size"], ["B-size BIG E-size"]) == {"slot_value_cer": 0}


def test_classes_count_alike_in_their_mean():
    assert class_mean(["a", "a", "b", "b"], ["a", "a", "a", "b"]) == (2 / 3 + 1) / 2
