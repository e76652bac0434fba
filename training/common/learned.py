"""Has a model learned anything at all? Its answers are compared with what chance gives.

A transcript is compared with texts that cannot know the clip, only its length: equally long pieces from elsewhere in
all transcripts, and transcripts of clips of similar length. Classes are compared with the same answers in random
order, and with always answering the commonest class. A model has learned if it beats the mean of chance by three
standard deviations, since the best of many evaluations is judged. Where even perfect answers would not, the clips are
too few.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np


JUDGED = 200  # transcripts that are compared with chance, which takes 38 error rates
TRIES = 10  # other places, and other clips, that say what chance gives
MARGIN = 0.02  # by which a character error rate must be below chance
DEVIATIONS = 3.0  # standard deviations of chance that count as chance
MOSTLY = 0.9  # share of empty texts from which on it is the blank that was learned


class Verdict(NamedTuple):
    """
    Attributes:
        learned: None where the clips are too few, or too much alike, to tell.
        reason: a sentence.
    """

    learned: bool | None
    reason: str


def judge_texts(texts: Sequence[str], references: Sequence[str], symbol: str = "character") -> Verdict:
    """
    Whether transcripts have to do with their clips, of which at most `JUDGED` are looked at, of all lengths alike.

    Args:
        texts, references: as normalised, one each a clip, in any order; references are not empty.
        symbol: what each of their characters is called.
    """
    count, empty = len(texts), sum(not text.strip() for text in texts)
    if empty >= MOSTLY * count:
        return Verdict(False, f"{empty} of {count} texts are empty: nearly all that is written is the blank")
    if len(set(references)) == 1:
        return Verdict(None, f"all {count} clips have the same transcript")
    if len(set(texts)) == 1:
        return Verdict(False, f"all {count} texts are alike: {texts[0][:40]!r}")
    by_length = sorted(range(count), key=lambda i: len(references[i]))
    judged = by_length[:: math.ceil(count / JUDGED)]
    texts, references = [texts[i] for i in judged], [references[i] for i in judged]
    clips = f"{len(judged)} of {count} clips" if len(judged) < count else f"{count} clips"
    if cer_by_chance(references, references) < MARGIN:
        return Verdict(None, f"{clips} are too few to tell knowledge from luck")
    rate, chance = cer(texts, references), cer_by_chance(texts, references)
    return Verdict(
        rate <= chance - MARGIN, f"the {symbol} error rate of {clips} is {rate:.4f}, and {chance:.4f} by chance"
    )


def judge_classes(answers: Sequence, labels: Sequence) -> Verdict:
    """
    Whether classes have to do with their clips.

    Args:
        answers, labels: one each a clip, of any type.
    """
    count, guesses, truths = len(labels), Counter(answers), Counter(labels)
    accuracy = sum(a == b for a, b in zip(answers, labels)) / count
    name, most = truths.most_common(1)[0]
    share = most / count
    random, deviation = hits_by_chance(guesses, truths)
    chance = max(share, random + DEVIATIONS * deviation)
    if len(truths) == 1:
        return Verdict(None, f"all {count} clips have the same label")
    if len(guesses) == 1:
        return Verdict(False, f"all {count} answers are {next(iter(guesses))!r}")
    best, spread = hits_by_chance(truths, truths)
    if best + DEVIATIONS * spread >= 1:
        return Verdict(None, f"{count} clips are too few to tell knowledge from luck")
    if accuracy <= share:
        reason = f"accuracy {accuracy:.4f} on {count} clips is not above the {share:.4f} of always answering {name!r}"
        return Verdict(False, reason)
    reason = f"accuracy on {count} clips is {accuracy:.4f}, where luck reaches {chance:.4f}"
    return Verdict(accuracy > chance, reason)


def cer(texts: Sequence[str], references: Sequence[str]) -> float:
    """Character error rate of all texts together."""
    return float(jiwer.cer(list(references), list(texts)))


def cer_by_chance(texts: Sequence[str], references: Sequence[str]) -> float:
    """The lowest character error rate that texts without knowledge of their clips may have."""
    rates = [[cer(tried, references) for tried in kind] for kind in unknowing(texts)]
    return max(0.0, min([1.0, *(float(np.mean(kind) - DEVIATIONS * np.std(kind)) for kind in rates if kind)]))


def unknowing(texts: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """
    Texts that cannot know their clips, at most `TRIES` lists of each kind: equally long pieces from elsewhere in all
    texts joined, and texts of neighbours: of clips of similar length where the texts are in the order of lengths.
    """
    row, ends = "".join(texts), np.cumsum([len(text) for text in texts])
    moved = []
    for place in len(row) * np.arange(1, TRIES + 1) // (TRIES + 1):
        turned = row[place:] + row[:place]
        moved.append([turned[end - len(text) : end] for end, text in zip(ends, texts)])
    shifted = [[*texts[n:], *texts[:n]] for n in range(1, min(TRIES, len(texts)))]
    return moved, shifted


def hits_by_chance(guesses: Counter, truths: Counter) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy if the guesses were dealt out to the clips at random."""
    count = truths.total()
    names = sorted(set(guesses) | set(truths), key=str)
    a, b = (np.array([counter[name] for name in names], float) / count for counter in (guesses, truths))
    mean = float(a @ b)
    variance = (mean - (a * b) @ (a + b) + mean**2) / max(1, count - 1)
    return mean, max(0.0, float(variance)) ** 0.5
