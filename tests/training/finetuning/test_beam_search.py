import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from training.finetuning.beam_search import (
    LN10,
    NOT_LISTED,
    BeamSearchDecoder,
    check_language_model,
    greedy_decode,
    unknown_penalty,
)
from training.finetuning.ngram import NGram, estimate
from training.finetuning.text import build_tokenizer


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
    thai = ["สวัสดีครับ", "ขอบคุณมาก"]
    with pytest.raises(ValueError, match="has a space, so that each counts as one word: .* or leave `lm` out"):
        check_language_model(estimate(["ขอบคุณครับ"], 1), "lm.arpa", build_tokenizer(thai), thai)
    keeps_case = build_tokenizer(["THE CAT the cat a A"])
    with pytest.raises(ValueError, match="can write 100.0% .* 0.0% of the words of the transcripts"):
        check_language_model(lower, "lm.arpa", keeps_case, ["THE CAT", "A CAT"])
    check_language_model(upper, "lm.arpa", tokenizer, ["THE HEAT", "TEA HAT THE"])
    assert "WARNING" in caplog.text and "40.0% of the words of the transcripts" in caplog.text


TOKENIZER = build_tokenizer(["AB"])  # <pad>, <s>, </s>, <unk>, |, A, B


WRITTEN = {3: "\ufffd", 4: " ", 5: "A", 6: "B"}  # <unk> is one sign


def random_log_probs(num_frames: int, seed: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((num_frames, len(TOKENIZER)))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def brute_force(log_probs: np.ndarray, lm: NGram, alpha: float, beta: float) -> dict[tuple, float]:
    """Score of every string of labels, over all alignments."""
    likelihood = defaultdict(float)
    for path in itertools.product((0, *WRITTEN), repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        likelihood[labels] += math.exp(sum(frame[label] for frame, label in zip(log_probs, path)))
    scores = {}
    for labels, value in likelihood.items():
        words = "".join(WRITTEN[label] for label in labels).split()
        log10, history = 0.0, ("<s>",)
        for word in (*words, "</s>"):
            known = word in lm.words or word == "</s>"
            log10 += max(lm.log10_probability(history, word), NOT_LISTED) + (0 if known else unknown_penalty(word))
            history = (*history, word if known else "<unk>")
        scores[labels] = math.log(value) + alpha * LN10 * log10 + beta * len(words)
    return scores


@pytest.mark.parametrize(("order", "alpha", "beta"), [(1, 0.7, 1.1), (3, 0.7, 1.1), (1, 0.0, 0.0)])
def test_the_whole_beam_is_exact(order, alpha, beta):
    lm = estimate(["A AB B", "AB A", "B B A"], order)
    for seed in range(4):
        log_probs = random_log_probs(5, seed)
        scores = brute_force(log_probs, lm, alpha, beta)
        decoder = BeamSearchDecoder(TOKENIZER, lm, alpha=alpha, beta=beta, beam_width=10**6, min_log_prob=-math.inf)
        found = {tuple(prefix.tokens()): decoder.final_score(prefix) for prefix in decoder.search(log_probs)}
        assert found == pytest.approx(scores)
        best = max(scores, key=scores.get)
        assert decoder.decode(log_probs).split() == "".join(WRITTEN[n] for n in best).split()


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
    assert greedy_decode(frames, TOKENIZER) == "B B"
    lm = estimate(["A B"] * 5 + ["B A"], 2)
    assert BeamSearchDecoder(TOKENIZER, lm).decode(frames) == "A B"
    assert BeamSearchDecoder(TOKENIZER, lm, alpha=0.0).decode(frames) == "B B"


def test_longer_unknown_words_cost_more():
    assert [unknown_penalty("A" * length) for length in (1, 6, 12)] == [-10.0, -10.0, -20.0]


def test_no_frames_and_special_tokens():
    decoder = BeamSearchDecoder(TOKENIZER, estimate(["A B"], 1), alpha=0.0, beta=0.0)
    assert decoder.decode(np.zeros((0, 7))) == ""
    frames = np.full((2, 7), -9.0)
    frames[:, 1] = -0.1  # <s> is never written
    frames[1, 5] = -8.0
    assert decoder.decode(frames) == "A", "the best label that is"


def test_an_unknown_character_is_one_sign():
    frames = np.full((4, 7), -20.0)
    frames[range(4), [5, 3, 3, 6]] = -0.1
    decoder = BeamSearchDecoder(TOKENIZER, estimate(["A B"], 1), alpha=0.0, beta=0.0)
    assert decoder.decode(frames) == greedy_decode(frames, TOKENIZER) == "A\ufffdB"


@pytest.mark.parametrize("setting", [{"beam_width": 0}, {"alpha": math.nan}, {"beta": math.inf}])
def test_settings_with_which_nothing_can_be_searched(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` is .*the search needs"):
        BeamSearchDecoder(TOKENIZER, estimate(["a b"], 1), **setting)
