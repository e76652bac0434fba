import gzip

import pytest

from training.finetuning.ngram import NGram, adjusted_counts, estimate, modified_discounts


TEXT = ["the cat sat", "the dog sat on the cat", "a dog", "the the the", "cat", "a cat sat on a dog", "dog"]


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
        ("-0.5 b 0", "nan b 0", "line 9: nan is not the log10 of a probability"),
        ("-0.5 b 0", "0.5 b 0", "line 9: 0.5 is not the log10 of a probability: it must not be above 0"),
        ("-0.5 b 0", "inf b 0", "line 9: inf is not the log10"),
        ("-0.5 b 0", "-0.5 b nan", "line 9: nan is not the log10 of a backoff weight"),
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
        ("ngram 2=2", "ngram 2=two", "line 3: ngram 2=two is not a count of 2-grams"),
        ("ngram 2=2", "ngram 3=2", "line 3: ngram 3=2 is not a count"),
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
