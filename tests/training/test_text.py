import pytest

from training.text import TextNormalizer, build_tokenizer, check_characters, log_examples, needed_frames


def test_normalisation():
    assert TextNormalizer()("  “Don’t — stop!”, she said;\nwell-known ") == "DON'T STOP SHE SAID WELL KNOWN"
    assert TextNormalizer(case="lower")("Äpfel\u0308n | ＡＢ") == "äpfel\u0308n ab"
    assert TextNormalizer(case="keep", dropped="x", spaces="")("A-xb.") == "A-b."
    assert TextNormalizer()("?!...") == ""
    with pytest.raises(ValueError, match="`text_case` is 'title'"):
        TextNormalizer(case="title")


def test_normalisation_is_shown_and_travels_with_the_model(tmp_path, caplog):
    caplog.set_level("INFO")
    normalizer = TextNormalizer(case="lower", dropped="“«", spaces="_")
    normalizer.save(tmp_path)
    assert TextNormalizer.load(tmp_path) == normalizer
    log_examples(["same", "Other_one"], normalizer)
    assert "1 of 2 transcripts" in caplog.text and "Other_one  ->  other one" in caplog.text
    bare = TextNormalizer.load(tmp_path / "elsewhere")
    assert bare("As it, is") == "As it, is" and "no text_normalization.json" in caplog.text


def test_vocabulary(tmp_path):
    tokenizer = build_tokenizer(["BAD ÄB", "A'C"])
    assert len(tokenizer) == 11 and tokenizer.get_vocab()["|"] == 4
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.pad_token_id == 0
    ids = tokenizer("BAD A'C").input_ids
    assert tokenizer.decode(ids) == "BAD A'C" and ids[3] == 4 and 3 not in ids
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)("BAD A'C").input_ids == ids
    with pytest.raises(ValueError, match="no characters"):
        build_tokenizer(["", " "])


def test_unknown_characters_are_named_with_their_counts(caplog):
    tokenizer = build_tokenizer(["ABC"])
    check_characters(["AB CAB"], tokenizer, "train")
    assert not caplog.text
    check_characters(["A2XX", "X"], tokenizer, "dev/")
    assert "dev/: characters outside the vocabulary: 'X' 3 times, '2' 1 times." in caplog.text
    with pytest.raises(ValueError, match="No character of the transcripts of dev/ .* `text_case`"):
        check_characters(["abc ab"], tokenizer, "dev/")


def test_equal_neighbours_need_a_blank_between_them():
    assert [needed_frames(labels) for labels in ([], [5], [5, 6], [5, 5], [5, 5, 5, 6, 6])] == [0, 1, 2, 3, 8]
