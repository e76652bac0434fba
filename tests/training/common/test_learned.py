"""What counts as learned: never noise, the blank, or one answer for all."""

from collections import Counter

import numpy as np
import pytest

from training.common.learned import hits_by_chance, judge_classes, judge_texts


SENTENCES = [
    "SHE HAD A THIN AWKWARD FIGURE",
    "AND THEN SHE SAID IN A COMMANDING UNDERTONE GO ON BILLY",
    "IT WAS THE REFLECTION OF THE TORCH WHICH WAS BURNING",
    "IN MOYNE'S HOME UP IN HARLEM",
]


def noisy(texts: list[str], share: float, seed: int = 0) -> list[str]:
    """Texts of which a share of the characters is drawn anew."""
    rng = np.random.default_rng(seed)
    letters = list("ETAOIN SHRDLU")
    return ["".join(rng.choice(letters) if rng.random() < share else c for c in text) for text in texts]


def test_a_poor_recogniser_has_learned_and_noise_has_not():
    for share in (0.0, 0.4, 0.7):
        assert judge_texts(noisy(SENTENCES, share), SENTENCES).learned is True, share
    for seed in range(5):  # of the right length and letters, and still nothing
        verdict = judge_texts(noisy(SENTENCES, 1.0, seed), SENTENCES)
        assert verdict.learned is False and "by chance" in verdict.reason


def test_words_of_the_right_number_are_no_more_than_chance():
    """Texts of eight clips that have nothing to do with them but their length."""
    rng, words = np.random.default_rng(0), " ".join(SENTENCES).split()
    learned = 0
    for _ in range(20):
        lengths = sorted(rng.integers(1, 6, 8))
        texts, references = ([" ".join(rng.choice(words, n)) for n in lengths] for _ in range(2))
        learned += judge_texts(texts, references).learned is True
    assert learned <= 1


def test_a_phrase_that_all_transcripts_share_is_no_knowledge():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 20)
    texts, references = (
        [f"TURN ON THE LIGHT IN THE {''.join(rng.choice(list('ABCDEFGHIJ'), n))}" for n in lengths] for _ in range(2)
    )
    assert judge_texts(texts, references).learned is False and judge_texts(references, references).learned is True


def test_the_order_of_the_clips_is_no_matter():
    """Several sources come one after another, each in the order of its own lengths."""
    rng = np.random.default_rng(0)
    sources = [noisy(SENTENCES, 0.9, seed) for seed in range(6)]
    references = [text for source in sources for text in sorted(source, key=len)]
    texts = [text for source in sources for text in sorted(noisy(source, 0.5), key=len)]
    expected = judge_texts(*zip(*sorted(zip(texts, references), key=lambda pair: len(pair[1]))))
    assert judge_texts(texts, references).learned is expected.learned is True
    unknowing = [" ".join(rng.permutation(text.split())) for text in np.roll(texts, 4)]
    by_length = sorted(zip(unknowing, references), key=lambda pair: len(pair[1]))
    assert judge_texts(unknowing, references) == judge_texts(*zip(*by_length))


def test_of_many_clips_some_of_all_lengths_are_judged():
    references = [text[:length] for length in range(1, 24) for text in noisy(SENTENCES * 5, 0.8, length)]
    verdict = judge_texts(noisy(references, 0.5), references)
    assert verdict.learned is True and "the character error rate of 154 of 460 clips is 0." in verdict.reason
    assert judge_texts(noisy(references, 1.0), references).learned is False
    assert "414 of 460 texts are empty" in judge_texts([""] * 414 + references[414:], references).reason


def test_the_blank_and_one_text_for_all_are_nothing_learned():
    verdict = judge_texts(["", "", "", ""], SENTENCES)
    assert verdict.learned is False and "4 of 4 texts are empty" in verdict.reason
    verdict = judge_texts(["THE MAN"] * 4, SENTENCES)
    assert verdict.learned is False and "all 4 texts are alike: 'THE MAN'" in verdict.reason
    assert judge_texts([text[:3] for text in reversed(SENTENCES)], SENTENCES).learned is False


def test_what_is_counted_has_its_name():
    assert judge_texts(SENTENCES, SENTENCES, "phone").reason.startswith("the phone error rate of")


def test_single_letters_can_be_learned():
    """Where every transcript is one letter, its order says nothing and its clip all."""
    letters = list("ABCDEFBADCFE")
    assert judge_texts(letters, letters).learned is True
    assert judge_texts(letters[1:] + letters[:1], letters).learned is False


def test_equal_transcripts_cannot_be_told_apart():
    assert judge_texts(["YES", "YES"], ["YES", "YES"]).learned is None


@pytest.mark.parametrize(
    ("answers", "learned", "reason"),
    [
        ("AAAAAABBBBBB", True, "where luck reaches"),
        ("AAAAAAAAAAAA", False, "all 12 answers are 'A'"),
        ("ABABAABABABB", False, "where luck reaches"),
        ("BBBBBBAAAAAA", False, "not above the 0.5000 of always answering 'A'"),
    ],
)
def test_classes(answers, learned, reason):
    verdict = judge_classes(list(answers), list("AAAAAABBBBBB"))
    assert verdict.learned is learned and reason in verdict.reason


def test_an_uneven_set_is_not_won_by_its_commonest_class():
    labels = ["no"] * 90 + ["yes"] * 10
    one_yes_wrong = ["no"] * 89 + ["yes"] + ["no"] * 10
    assert "not above the 0.9000" in judge_classes(one_yes_wrong, labels).reason
    assert judge_classes(["no"] * 90 + ["yes"] * 5 + ["no"] * 5, labels).learned is True


def test_too_few_clips_say_nothing():
    verdict = judge_classes(list("AAAABBBB"), list("AAAABBBB"))
    assert verdict.learned is None and "8 clips are too few" in verdict.reason
    verdict = judge_texts(["YES", "NO"], ["YES", "NO"])
    assert verdict.learned is None and "2 clips are too few" in verdict.reason
    assert judge_classes(["A", "A"], ["A", "A"]).learned is None


def test_luck_is_what_random_dealing_gives():
    """The mean and deviation of the formula, against a thousand random orders."""
    rng = np.random.default_rng(0)
    answers, labels = rng.integers(0, 3, 40), np.r_[np.zeros(20, int), rng.integers(0, 3, 20)]
    hits = [(rng.permutation(answers) == labels).mean() for _ in range(1000)]
    mean, deviation = hits_by_chance(Counter(answers.tolist()), Counter(labels.tolist()))
    assert mean == pytest.approx(np.mean(hits), abs=0.01) and deviation == pytest.approx(np.std(hits), rel=0.1)
