"""
Beam search for CTC with a word n-gram, and the greedy reading that needs none.

The search and the n-grams are our own: pyctcdecode pins numpy below 2, and torchaudio's decoder is in maintenance.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from transformers import Wav2Vec2CTCTokenizer

from sjepa_hf.transcripts import UNKNOWN_SIGN, silent_labels
from training.common.naming import several
from training.finetuning.ngram import BEGIN, END, UNKNOWN, Gram, NGram
from training.finetuning.text import is_spaceless, read_labels


logger = logging.getLogger(__name__)

ALPHA, BETA, BEAM_WIDTH = 0.5, 1.5, 100  # the paper's
UNKNOWN_WORD, USUAL_LENGTH = -10.0, 6  # see `unknown_penalty`; pyctcdecode's values
NOT_LISTED = -10.0  # log10 P of <unk> and </s> in a language model that has no entry for them
USELESS, FITTING = 0.05, 0.5  # shares of words that a language model and a recogniser have in common
LN10 = math.log(10)


class Prefix:
    """
    A string of labels, one node of the tree of all strings that the search has met.

    Attributes:
        blank, label: ln P of the alignments so far that end in the blank, or in the last label.
        words: score of the words that are complete, alpha * ln P_LM + beta each.
        context: what the language model remembers of them.
        word: the word that is being spelled.
    """

    __slots__ = ("parent", "token", "children", "blank", "label", "new_blank", "new_label", "words", "context", "word")

    def __init__(self, parent: "Prefix | None", token: int, words: float, context: Gram, word: str):
        self.parent, self.token, self.children = parent, token, {}
        self.blank = self.label = self.new_blank = self.new_label = -math.inf
        self.words, self.context, self.word = words, context, word

    def tokens(self) -> list[int]:
        found, node = [], self
        while node.parent is not None:
            found.append(node.token)
            node = node.parent
        return found[::-1]


class BeamSearchDecoder:
    """
    CTC prefix beam search (Hannun et al., arXiv 1408.2873) with shallow fusion of a word n-gram. It looks for the
    string of labels of the highest

        ln P_CTC(labels) + alpha * ln P_LM(words, </s>) + beta * number of words,

    P_CTC summed over all alignments. Words are not limited to a lexicon: one that the n-gram does not know has its
    P(<unk>) and `unknown_penalty`, which is charged as soon as no known word begins like it. Exact but for the beam
    and for the labels below `min_log_prob`.

    Args:
        tokenizer: of its special tokens only `<unk>` is written, as one sign.
        lm: word n-gram.
        alpha, beta, beam_width: as above; strings that are kept from frame to frame.
        min_log_prob: labels of a frame that are less likely are not tried, its best one always is.
    """

    def __init__(
        self,
        tokenizer: Wav2Vec2CTCTokenizer,
        lm: NGram,
        *,
        alpha: float = ALPHA,
        beta: float = BETA,
        beam_width: int = BEAM_WIDTH,
        min_log_prob: float = -5.0,
    ):
        if beam_width < 1:
            raise ValueError(f"`beam_width` is {beam_width}; the search needs at least 1.")
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise ValueError(f"`alpha` is {alpha} and `beta` is {beta}; the search needs finite weights.")
        self.blank, self.delimiter = tokenizer.pad_token_id, tokenizer.word_delimiter_token_id
        vocabulary, silent = tokenizer.get_vocab().items(), silent_labels(tokenizer)
        self.characters = {number: token for token, number in vocabulary if number not in silent}
        if tokenizer.unk_token_id in self.characters:
            self.characters[tokenizer.unk_token_id] = UNKNOWN_SIGN
        self.alpha, self.beta, self.beam_width, self.min_log_prob = alpha, beta, beam_width, min_log_prob
        self.lm, self.known = lm, lm.words
        self.beginnings = {word[:n] for word in self.known for n in range(1, len(word) + 1)}

    def decode(self, log_probs: np.ndarray) -> str:
        """The best text for ln P of the labels of each frame, `(num_frames, vocab_size)`."""
        return self.text(max(self.search(log_probs), key=self.final_score))

    def search(self, log_probs: np.ndarray) -> list[Prefix]:
        """The strings that are left after the last frame."""
        root = Prefix(None, self.blank, 0.0, (BEGIN,), "")
        root.blank = 0.0
        beam = [root]
        for frame in log_probs:
            tried = set(np.flatnonzero(frame >= self.min_log_prob).tolist()) & self.characters.keys()
            best = max(self.characters, key=frame.__getitem__) if not tried else None
            labels = [(token, float(frame[token])) for token in (tried or {best})]
            beam = self.step(beam, labels)
        return beam

    def step(self, beam: list[Prefix], labels: list[tuple[int, float]]) -> list[Prefix]:
        """Extend every string by one frame; keep the best ones."""
        reached: dict[Prefix, None] = {}  # in the order they are met, so that ties are settled alike in every run
        for prefix in beam:
            total = log_add(prefix.blank, prefix.label)
            for token, log_prob in labels:
                if token == self.blank:
                    prefix.new_blank = log_add(prefix.new_blank, total + log_prob)
                    reached[prefix] = None
                    continue
                if token == prefix.token:  # the same label goes on, or comes again after a blank
                    prefix.new_label = log_add(prefix.new_label, prefix.label + log_prob)
                    reached[prefix] = None
                    before = prefix.blank
                else:
                    before = total
                child = prefix.children.get(token) or self.extend(prefix, token)
                child.new_label = log_add(child.new_label, before + log_prob)
                reached[child] = None
        for prefix in reached:
            prefix.blank, prefix.label = prefix.new_blank, prefix.new_label
            prefix.new_blank = prefix.new_label = -math.inf
        alive = [prefix for prefix in reached if prefix.blank > -math.inf or prefix.label > -math.inf]
        return sorted(alive, key=self.score, reverse=True)[: self.beam_width]

    def extend(self, prefix: Prefix, token: int) -> Prefix:
        """The string with one more label; a word delimiter completes the word."""
        if token == self.delimiter:
            child = Prefix(prefix, token, *self.complete(prefix), "")
        else:
            child = Prefix(prefix, token, prefix.words, prefix.context, prefix.word + self.characters[token])
        prefix.children[token] = child
        return child

    def complete(self, prefix: Prefix) -> tuple[float, Gram]:
        """Score and context once the word that is being spelled, if any, is complete."""
        if not prefix.word:
            return prefix.words, prefix.context
        known = prefix.word in self.known
        log10 = self.lm.log10_probability(prefix.context, prefix.word if known else UNKNOWN)
        log10 = log10 if known else max(log10, NOT_LISTED) + unknown_penalty(prefix.word)
        context = self.lm.context((*prefix.context, prefix.word if known else UNKNOWN))
        return prefix.words + self.alpha * LN10 * log10 + self.beta, context

    def score(self, prefix: Prefix) -> float:
        """Score of a string while the search goes on."""
        unknown = prefix.word and prefix.word not in self.beginnings
        penalty = self.alpha * LN10 * unknown_penalty(prefix.word) if unknown else 0.0
        return log_add(prefix.blank, prefix.label) + prefix.words + penalty

    def final_score(self, prefix: Prefix) -> float:
        """Score of a string that ends here."""
        words, context = self.complete(prefix)
        words += self.alpha * LN10 * max(self.lm.log10_probability(context, END), NOT_LISTED)
        return log_add(prefix.blank, prefix.label) + words

    def text(self, prefix: Prefix) -> str:
        spelled = (" " if token == self.delimiter else self.characters[token] for token in prefix.tokens())
        return " ".join("".join(spelled).split())


def unknown_penalty(word: str) -> float:
    """What is added to log10 P of a word outside the language model: the longer, the less likely its spelling."""
    return UNKNOWN_WORD * max(1.0, len(word) / USUAL_LENGTH)


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def greedy_decode(log_probs: np.ndarray, tokenizer: Wav2Vec2CTCTokenizer) -> str:
    """The text of the best label of each frame, `(num_frames, vocab_size)`."""
    return read_labels(log_probs.argmax(-1).tolist(), tokenizer)


def check_language_model(lm: NGram, name: str, tokenizer: Wav2Vec2CTCTokenizer, texts: Sequence[str]) -> None:
    """
    Say how far a language model fits: which share of its words the tokenizer can write, weighted by how likely they
    are, and which share of the words of normalised transcripts it knows.

    Raises:
        ValueError: if one of them is below 5 %.
    """
    characters = set(tokenizer.get_vocab())
    chances = {word: 10 ** lm.tables[0][(word,)][0] for word in lm.words}
    writable = sum(chance for word, chance in chances.items() if characters.issuperset(word))
    writable /= sum(chances.values()) or 1.0
    counts = Counter(word for text in texts for word in text.split())
    unknown = Counter({word: count for word, count in counts.items() if word not in chances})
    known = 1 - unknown.total() / max(1, counts.total())
    said = (
        f"the tokenizer can write {writable:.1%} of the words of {name} (by their probability), and {known:.1%} of the"
        f" words of the transcripts are among its {len(chances)}"
    )
    if min(writable, known) >= FITTING:
        logger.info("Language model: %s.", said)
        return
    most = several(sorted(chances, key=chances.get, reverse=True), 5)
    said += f"; its most likely ones are {most}, the transcripts' are {several(dict(counts.most_common(5)))}"
    folded = {word.casefold() for word in chances}
    if known < FITTING and counts.total() and all(word.casefold() in folded for word, _ in unknown.most_common(5)):
        said += ": they differ in case"
    if min(writable, known) < USELESS:
        if is_spaceless(texts):
            raise ValueError(
                f"`lm`: {said}. Hardly any transcript has a space, so that each counts as one word: put spaces between"
                " words, in the transcripts and in the model's text, or leave `lm` out."
            )
        raise ValueError(f"`lm`: {said}. `training.decoding build-ngram --model MODEL` makes one that fits.")
    logger.warning("Language model: %s.", said)
