import gzip
import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.saving import feature_extractor
from training import decoding
from training.finetuning.beam_search import (
    LN10,
    NOT_LISTED,
    BeamSearchDecoder,
    check_language_model,
    greedy_decode,
    unknown_penalty,
)
from training.finetuning.ngram import NGram, adjusted_counts, estimate, modified_discounts
from training.finetuning.text import TextNormalizer, build_tokenizer


TEXT = ["the cat sat", "the dog sat on the cat", "a dog", "the the the", "cat", "a cat sat on a dog", "dog"]


# n-grams


def test_bigram_by_hand():
    """Counts <s>a 2, ab 1, b</s> 1, a</s> 1; continuation counts a 1, b 1, </s> 2; discounts 0.5, 1 and 1.5."""
    lm = estimate(["a b", "", "a"], order=2)
    expected = {
        ((), "a"): 0.5 / 4 + 0.5 / 4,
        ((), "</s>"): 1 / 4 + 0.5 / 4,
        ((), "zebra"): 0.5 / 4,
        (("a",), "b"): 0.5 / 2 + 0.5 * 0.25,
        (("a",), "a"): 0.5 * 0.25,
        (("<s>",), "a"): 1 / 2 + 0.5 * 0.25,
        (("a", "b"), "</s>"): 0.5 + 0.5 * 0.375,
        (("zebra",), "a"): 0.25,
    }
    for (history, word), probability in expected.items():
        assert 10 ** lm.log10_probability(history, word) == pytest.approx(probability), (history, word)
    assert lm.perplexity(["a b"]) == pytest.approx((0.625 * 0.375 * 0.6875) ** (-1 / 3))
    assert lm.perplexity(["a zebra"]) == pytest.approx((0.625 * 0.5 * 0.125 * 0.375) ** (-1 / 3))


def test_discounts():
    counts = [1] * 4 + [2] * 2 + [3] + [4]
    assert modified_discounts(counts) == pytest.approx((0.5, 2 - 3 * 0.5 / 2, 3 - 4 * 0.5))
    assert modified_discounts([1, 1, 5]) == (0.5, 1.0, 1.5)


def test_adjusted_counts():
    """Inside a sentence the number of different words before; at its start, and for the highest order, occurrences."""
    unigrams, bigrams, trigrams = adjusted_counts(["a b", "a b", "c a b"], 3)
    assert bigrams[("a", "b")] == 2 and bigrams[("<s>", "a")] == 2 and trigrams[("<s>", "a", "b")] == 2
    assert unigrams[("b",)] == 1 and unigrams[("a",)] == 2


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order):
    lm = estimate(TEXT, order)
    outcomes = sorted(lm.words) + ["</s>", "<unk>"]
    contexts = {gram for table in lm.tables[:-1] for gram in table if gram[-1] not in ("</s>", "<unk>")}
    for context in {(), ("never", "seen"), *contexts}:
        total = sum(10 ** lm.log10_probability(context, word) for word in outcomes)
        assert total == pytest.approx(1), context
    assert lm.perplexity(TEXT) < 2 * len(outcomes) / order


def test_arpa_files(tmp_path):
    lm = estimate(TEXT, 3)
    lm.save(tmp_path / "lm.arpa")
    with gzip.open(tmp_path / "lm.arpa.gz", "wb") as file:
        file.write((tmp_path / "lm.arpa").read_bytes())
    for name in ("lm.arpa", "lm.arpa.gz"):
        read = NGram.load(tmp_path / name)
        assert read.order == 3 and read.words == {"the", "cat", "sat", "dog", "on", "a"}
        other = ["the cat sat on a mat"]
        assert read.perplexity(other) == pytest.approx(lm.perplexity(other), rel=1e-5)
    (tmp_path / "lm.arpa").write_text((tmp_path / "lm.arpa").read_text().replace("<unk>", "<UNK>"))
    assert NGram.load(tmp_path / "lm.arpa").perplexity(["a mat"]) == pytest.approx(lm.perplexity(["a mat"]), rel=1e-5)
    (tmp_path / "no.arpa").write_text("hello\n")
    with pytest.raises(ValueError, match="not an ARPA file"):
        NGram.load(tmp_path / "no.arpa")
    whole = (tmp_path / "lm.arpa").read_text()
    (tmp_path / "cut.arpa").write_text(whole[: whole.index("\\3-grams:")])
    with pytest.raises(ValueError, match=r"not a whole ARPA file: .* order 2 of 3 and ends without \\end"):
        NGram.load(tmp_path / "cut.arpa")
    (tmp_path / "cut.arpa.gz").write_bytes((tmp_path / "lm.arpa.gz").read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a whole ARPA file"):
        NGram.load(tmp_path / "cut.arpa.gz")
    (tmp_path / "plain.arpa.gz").write_text(whole)
    assert NGram.load(tmp_path / "plain.arpa.gz").order == 3
    (tmp_path / "lm.arpa").write_bytes(("about it\r\n" + whole.replace("\n", "\r\n")).encode("utf-8-sig"))
    assert NGram.load(tmp_path / "lm.arpa").tables == NGram.load(tmp_path / "plain.arpa.gz").tables
    with pytest.raises(ValueError, match="no language model"):
        NGram.load(tmp_path / "absent.arpa")
    with pytest.raises(ValueError, match="no word"):
        estimate(["", " "], 2)


ARPA = r"""\data\
ngram 1=4
ngram 2=2

\1-grams:
-99 <s> -0.3
-0.5 </s>
-0.5 a -0.3
-0.5 b 0

\2-grams:
-0.3 <s> a
-0.3 a b

\end\
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-0.5 b 0", "nan b 0", "line 9: nan is no log10 of a probability"),
        ("-0.5 b 0", "0.5 b 0", "line 9: 0.5 is no log10 of a probability: it must not be above 0"),
        ("-0.5 b 0", "inf b 0", "line 9: inf is no log10"),
        ("-0.5 b 0", "-0.5 b nan", "line 9: nan is no log10 of a backoff weight"),
        ("-0.5 b 0", "-0.5", "line 9: a 1-gram needs a probability, 1 words"),
        ("-0.5 b 0", "-0.5 b c d", "line 9: a 1-gram needs"),
        ("-0.5 b 0", "b -0.5 0", "line 9: its numbers should be log10"),
        ("-0.5 b 0", "-0.5 a 0", "line 9: 'a' stands there a second time"),
        ("-0.3 a b", "-0.3 b", "line 13: a 2-gram needs"),
        ("-0.3 a b", "-0.3 c b", "line 13: 'c b' needs 'c', which is missing"),
        ("-0.3 a b", "-0.3 a c", "line 13: 'a c' needs 'c', which is missing"),
        ("-0.3 a b", "-0.3 <s> a", "line 13: '<s> a' stands there a second time"),
        ("-0.3 a b\n", "", "promises 2 2-grams and has 1 before line 14"),
        ("ngram 1=4", "ngram 1=5", "promises 5 1-grams and has 4 before line 11"),
        ("ngram 2=2", "ngram 2=two", "line 3: ngram 2=two is no count of 2-grams"),
        ("ngram 2=2", "ngram 3=2", "line 3: ngram 3=2 is no count"),
        ("\\2-grams:", "\\3-grams:", "line 11: .*2-grams: or .* should stand there, not '.*3-grams:'"),
        ("\\end\\\n", "", r"ends without \\end"),
        ("a b", "a \udcff", "line 13: the byte 0xff is not UTF-8"),
    ],
)
def test_a_line_of_an_arpa_file_that_is_wrong_is_named(tmp_path, old, new, message):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    assert NGram.load(path).words == {"a", "b"}
    path.write_bytes(ARPA.replace(old, new).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        NGram.load(path)
    assert str(path) in str(caught.value)


def test_words_that_ngrams_keep_for_themselves():
    with pytest.raises(ValueError, match="'</s>', which n-grams keep"):
        estimate(["a b", "a </s> b"], 2)


def test_a_language_model_that_does_not_fit_is_told_with_figures(caplog):
    caplog.set_level("INFO")
    tokenizer = build_tokenizer(["THE CAT", "a"])
    upper, lower = estimate(["THE CAT", "A CAT"], 2), estimate(["the cat", "a cat"], 2)
    check_language_model(upper, "lm.arpa", tokenizer, ["THE CAT"])
    assert "can write 100.0% of the words of lm.arpa" in caplog.text and "WARNING" not in caplog.text
    with pytest.raises(
        ValueError, match="0.0% of the words of the transcripts are among its 3; .*: they differ in case"
    ):
        check_language_model(lower, "lm.arpa", tokenizer, ["THE CAT"])
    with pytest.raises(ValueError, match="can write 0.0% of the words of lm.arpa"):
        check_language_model(estimate(["это кот"], 1), "lm.arpa", tokenizer, ["THE CAT"])
    keeps_case = build_tokenizer(["THE CAT the cat a A"])
    with pytest.raises(ValueError, match="can write 100.0% .* 0.0% of the words of the transcripts"):
        check_language_model(lower, "lm.arpa", keeps_case, ["THE CAT", "A CAT"])
    check_language_model(upper, "lm.arpa", tokenizer, ["THE HEAT", "TEA HAT THE"])
    assert "WARNING" in caplog.text and "40.0% of the words of the transcripts" in caplog.text


# Beam search


TOKENIZER = build_tokenizer(["AB"])  # <pad>, <s>, </s>, <unk>, |, A, B
LABELS = (0, 4, 5, 6)


def random_log_probs(num_frames: int, seed: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((num_frames, len(TOKENIZER)))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def brute_force(log_probs: np.ndarray, lm: NGram | None, alpha: float, beta: float) -> dict[tuple, float]:
    """Score of every string of labels, over all alignments."""
    likelihood = defaultdict(float)
    for path in itertools.product(LABELS, repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        likelihood[labels] += math.exp(sum(frame[label] for frame, label in zip(log_probs, path)))
    scores = {}
    for labels, value in likelihood.items():
        words = "".join({4: " ", 5: "A", 6: "B"}[label] for label in labels).split()
        log10, history = 0.0, ("<s>",)
        if lm is not None:
            for word in (*words, "</s>"):
                known = word in lm.words or word == "</s>"
                log10 += max(lm.log10_probability(history, word), NOT_LISTED) + (0 if known else unknown_penalty(word))
                history = (*history, word if known else "<unk>")
        scores[labels] = math.log(value) + (alpha * LN10 * log10 + beta * len(words) if lm else 0.0)
    return scores


@pytest.mark.parametrize("order", [None, 1, 3])
def test_the_whole_beam_is_exact(order):
    lm = None if order is None else estimate(["A AB B", "AB A", "B B A"], order)
    for seed in range(4):
        log_probs = random_log_probs(5, seed)
        scores = brute_force(log_probs, lm, 0.7, 1.1)
        decoder = BeamSearchDecoder(TOKENIZER, lm, alpha=0.7, beta=1.1, beam_width=10**6, min_log_prob=-math.inf)
        found = {tuple(prefix.tokens()): decoder.final_score(prefix) for prefix in decoder.search(log_probs)}
        assert found == pytest.approx(scores)
        best = max(scores, key=scores.get)
        assert decoder.decode(log_probs).split() == "".join({4: " ", 5: "A", 6: "B"}[n] for n in best).split()


def test_a_beam_of_fifty_finds_the_best():
    lm = estimate(["A AB B", "AB A", "B B A"], 3)
    for seed in range(4):
        log_probs = random_log_probs(6, seed)
        scores = brute_force(log_probs, lm, 0.5, 1.5)
        decoder = BeamSearchDecoder(TOKENIZER, lm, beam_width=50, min_log_prob=-math.inf)
        best = max(decoder.search(log_probs), key=decoder.final_score)
        assert len(scores) > 50 and decoder.final_score(best) == pytest.approx(max(scores.values()))


def test_the_language_model_decides_between_what_sounds_alike():
    frames = np.full((5, len(TOKENIZER)), -20.0)
    for t, labels in enumerate([(5, 6), (0,), (4,), (6,), (0,)]):  # A or B, the B slightly likelier; then " B"
        frames[t, labels] = -math.log(len(labels))
    frames[0, 6] += 0.1
    assert greedy_decode(frames, TOKENIZER) == BeamSearchDecoder(TOKENIZER).decode(frames) == "B B"
    lm = estimate(["A B"] * 5 + ["B A"], 2)
    assert BeamSearchDecoder(TOKENIZER, lm).decode(frames) == "A B"
    assert BeamSearchDecoder(TOKENIZER, lm, alpha=0.0).decode(frames) == "B B"


def test_longer_unknown_words_cost_more():
    assert [unknown_penalty("A" * length) for length in (1, 6, 12)] == [-10.0, -10.0, -20.0]


def test_no_frames_and_special_tokens():
    decoder = BeamSearchDecoder(TOKENIZER)
    assert decoder.decode(np.zeros((0, 7))) == ""
    frames = np.full((2, 7), -9.0)
    frames[:, 3] = -0.1  # <unk> is never written
    frames[1, 5] = -8.0
    assert decoder.decode(frames) == "A", "the best label that is"


def test_decode_wants_a_model_with_a_ctc_head(make_config, tmp_path):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path)
    feature_extractor().save_pretrained(tmp_path)
    with pytest.raises(
        SystemExit, match="error: .* has no CTC head, which transcripts need: give the result of a fine-tuning"
    ):
        decoding.main(["decode", "--model", str(tmp_path), "--data", str(tmp_path)])


def test_build_ngram_from_text_and_from_transcripts(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The cat.\n\nThe dog!\n")
    rows = [{"audio_filepath": "none.wav", "sentence": text} for text in ("The cat.", "The dog!")]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    TextNormalizer(case="lower").save(tmp_path)
    for source, case in (("text.txt", str.upper), ("clips.jsonl", str.lower)):
        model = ["--model", str(tmp_path)] if case is str.lower else []
        output = tmp_path / f"{source}.arpa"
        command = ["build-ngram", "--text", str(tmp_path / source), "--order", "2", "--output", str(output)]
        decoding.main([*command, *model])
        lm = NGram.load(output)
        assert lm.words == {case("the"), case("cat"), case("dog")} and lm.order == 2
        assert "2 sentences" in capsys.readouterr().out
    (tmp_path / "latin.txt").write_bytes("A caf\u00e9.".encode("latin-1"))
    with pytest.raises(SystemExit, match="error: .*latin.txt, line 1: the byte 0xe9 is not UTF-8"):
        decoding.main(["build-ngram", "--text", str(tmp_path / "latin.txt"), "--output", str(tmp_path / "x.arpa")])
    with pytest.raises(SystemExit, match="error: .* has no column"):
        bad = ["--text_column", "words", "--output", str(tmp_path / "x.arpa")]
        decoding.main(["build-ngram", "--text", str(tmp_path / "clips.jsonl"), *bad])
    assert not (tmp_path / "x.arpa").exists()
