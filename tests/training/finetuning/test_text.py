import unicodedata

import pytest

from training.common.learned import cer
from training.finetuning.text import (
    TextNormalizer,
    build_tokenizer,
    check_characters,
    log_examples,
    log_spaceless,
    needed_frames,
    read_labels,
)


def test_normalisation():
    assert TextNormalizer()("  “Don’t — stop!”, she said;\nwell-known ") == "DON'T STOP SHE SAID WELL KNOWN"
    assert TextNormalizer(case="lower")("Äpfel\u0308n | ＡＢ") == "äpfel\u0308n ab"
    assert TextNormalizer(case="keep", dropped="x", spaces="")("A-xb.") == "A-b."
    assert TextNormalizer()("?!...") == ""
    with pytest.raises(ValueError, match="`text_case` is 'title'"):
        TextNormalizer(case="title")


@pytest.mark.parametrize("apostrophe", "'´`’‘‛ʼʻ′＇՚׳")
def test_every_apostrophe_is_one(apostrophe):
    for case, expected in (("upper", "DON'T"), ("lower", "don't"), ("keep", "don't")):
        assert TextNormalizer(case)(f"don{apostrophe}t") == expected
    assert TextNormalizer(dropped=apostrophe)(f"don't {apostrophe}") == "DONT"


def test_what_nobody_sees_is_dropped():
    hidden = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202e\u2066\u061c\ufe0f\u034f\u3164\ufffc\ue000\u20e3"
    for settings in ({}, {"case": "keep", "dropped": "", "spaces": ""}):
        assert TextNormalizer(**settings)("".join(f"A{c}B" for c in hidden)) == "AB" * len(hidden)
    assert TextNormalizer()("a\u0000b\u2028c\u0085d\u00a0e") == "A B C D E"
    assert TextNormalizer()("\u0301a \u0308 b¨c") == "A BC", "accents without a letter"
    assert TextNormalizer()("e\u0301") == TextNormalizer()("e\u200d\u0301") == "\u00c9"


def test_punctuation_of_other_scripts_goes_with_its_kin():
    assert TextNormalizer()("你好，世界。「是」、！？ 【注】《书》") == "你好世界是 注书"
    assert TextNormalizer()("؟ نعم، لا؛ • अच्छा। ¡sí! ‹a› 〝b〞 x־y〜z ሰላም፡ዓለም") == "نعم لا अच्छा SÍ A B X Y Z ሰላም ዓለም"
    assert TextNormalizer(dropped=",")("a，1。c") == "A1。C"
    assert TextNormalizer(dropped="，")("a，1, c") == "A1 C"
    assert TextNormalizer(dropped="e\u0301")("été eté") == "T ET", "one letter, however it is composed"
    assert TextNormalizer()("col·lecció ''x'' ``y'' 5″") == "COL·LECCIÓ X Y 5"
    bare = TextNormalizer("keep", "", "")
    assert bare("「你好」。 a-b_c") == "「你好」。 a-b_c"


def test_letters_whose_plain_form_is_another_spelling_stay():
    for text in ("น้ำ", "ຄຳ", "tʰa kʷa ⁿdʲ"):
        assert TextNormalizer("keep")(text) == text
    assert TextNormalizer(dropped="ʰ")("tʰah") == "TAH"
    assert TextNormalizer("keep")("ｶﾞ ﬁ ﻻ x² ª Å") == "ガ fi لا x2 a Å"


def test_punctuation_between_letters_parts_them():
    normalizer = TextNormalizer("keep")
    for text, expected in {
        "شکر،به": "شکر به",
        "wait…what wait...what": "wait what wait what",
        "है।और a,b": "है और a b",
        "3,5 1,000 a,5 e.g. a.b it's": "35 1000 a5 eg ab it's",
        "λόγος· και λόγος\u0387": "λόγος και λόγος",
        "col·lecció 5·3": "col·lecció 5·3",
        "你好，世界": "你好世界",
        "Ինչպե՞ս צה״ל EU:s": "Ինչպես צהל EUs",
    }.items():
        assert normalizer(text) == expected
    assert TextNormalizer("keep", "", "")("a،b c…d λόγος· x") == "a،b c...d λόγος· x"
    assert TextNormalizer("keep", ".", "")("a,b…c") == "a,b c"


@pytest.mark.parametrize("case", ["upper", "lower", "keep"])
def test_normalised_text_stays_as_it_is(case):
    normalizer = TextNormalizer(case)
    for code in (*range(0x3100), *range(0xA000, 0xAC00), *range(0xF900, 0x10000), *range(0x1F000, 0x1F200)):
        once = normalizer(f"a{chr(code)}b {chr(code)}")
        assert normalizer(once) == once and unicodedata.is_normalized("NFC", once), hex(code)


def test_case_of_letters_that_have_two():
    assert TextNormalizer("lower")("İstanbul ΟΔΟΣ.") == "istanbul οδος"
    assert TextNormalizer("upper")("Straße ŉ ΐ") == "STRASSE 'N \u03aa\u0301" and TextNormalizer()("ẞß") == "SSSS"


def test_what_gets_lost_is_told(caplog):
    caplog.set_level("INFO")
    log_examples(["Straße, nein -- ja, 5 Uhr."], TextNormalizer())
    assert "dropped or become spaces: ',' 2 times, '-' 2 times, '.' 1 times." in caplog.text
    assert "upper case cannot tell from others: 'ß' 1 times" in caplog.text
    assert "1 transcripts have digits" in caplog.text


@pytest.mark.parametrize("content", ["{", '{"case": "title"}', '{"kase": 1}', '{"dropped": 3}', "[]", "3", "\x00"])
def test_a_damaged_normalisation_is_told(tmp_path, content):
    (tmp_path / "text_normalization.json").write_text(content)
    with pytest.raises(ValueError, match="text_normalization.json (is damaged|is no JSON|holds (list|int) where)"):
        TextNormalizer.load(tmp_path)


def test_signs_of_the_tokenizer_are_no_text():
    with pytest.raises(ValueError, match="of train hold <pad>, which the tokenizer reads as a sign"):
        check_characters(["a <pad> b"], build_tokenizer(["a <pad> b"]), "train")


def test_normalisation_is_shown_and_travels_with_the_model(tmp_path, caplog):
    caplog.set_level("INFO")
    normalizer = TextNormalizer(case="lower", dropped="“«", spaces="_")
    normalizer.save(tmp_path)
    assert TextNormalizer.load(tmp_path) == normalizer
    log_examples(["same", "Other_one"], normalizer)
    assert "1 of 2 transcripts" in caplog.text and "Other_one  ->  other one" in caplog.text
    (tmp_path / "bare").mkdir()
    bare = TextNormalizer.load(tmp_path / "bare")
    assert bare("As it, is") == "As it, is" and "no text_normalization.json" in caplog.text
    with pytest.raises(ValueError, match="nowhere cannot be opened: there is no such directory"):
        TextNormalizer.load(tmp_path / "nowhere")


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


def test_what_wer_counts_without_spaces_is_told(caplog):
    caplog.set_level("INFO")
    log_spaceless(["THE CAT", *["CAT"] * 19])
    assert not caplog.text
    log_spaceless(["THE CAT", *["CAT"] * 20])
    assert "Hardly any transcript has a space: look at CER" in caplog.text


def test_an_unknown_character_counts_once():
    tokenizer = build_tokenizer(["ABC"])
    labels = tokenizer("AXC").input_ids
    assert cer([read_labels(labels, tokenizer)], ["AXC"]) == pytest.approx(1 / 3)


def test_signs_of_begin_and_end_are_no_text():
    tokenizer = build_tokenizer(["AB"])  # <pad>, <s>, </s>, <unk>, |, A, B
    assert read_labels([1, 5, 1, 5, 2, 4, 6, 6, 2], tokenizer) == "AA B"


def test_equal_neighbours_need_a_blank_between_them():
    assert [needed_frames(labels) for labels in ([], [5], [5, 6], [5, 5], [5, 5, 5, 6, 6])] == [0, 1, 2, 3, 8]
