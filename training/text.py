"""Transcripts: normalisation that travels with the model, and the vocabulary of a CTC tokenizer."""

import json
import logging
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from transformers import Wav2Vec2CTCTokenizer


logger = logging.getLogger(__name__)

FILE_NAME = "text_normalization.json"
DROPPED = '.,?!;:"()[]{}“”„«»‹›…¿¡*'
SPACES = "-–—‐‑−/_|"  # the bar separates words in a CTC vocabulary
CASES = {"upper": str.upper, "lower": str.lower, "keep": str}
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|")


@dataclass(frozen=True)
class TextNormalizer:
    """
    What transcripts become before they are learnt or compared: Unicode NFKC, curly apostrophes as ', the case, some
    characters as spaces, some dropped, and single spaces between words.

    Args:
        case: "upper" (as LibriSpeech's transcripts and language models are), "lower" or "keep".
        dropped: characters that are removed.
        spaces: characters that become spaces.
    """

    case: str = "upper"
    dropped: str = DROPPED
    spaces: str = SPACES

    def __post_init__(self):
        if self.case not in CASES:
            raise ValueError(f"`text_case` is {self.case!r}; choose {', '.join(CASES)}.")

    def __call__(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'")
        text = text.translate({ord(c): " " for c in self.spaces} | {ord(c): None for c in self.dropped})
        return " ".join(CASES[self.case](text).split())

    def save(self, directory: str | Path) -> None:
        """Write `text_normalization.json` beside the model."""
        (Path(directory) / FILE_NAME).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "TextNormalizer":
        """The normalisation of a saved model; one without the file gets its transcripts as they are, and a warning."""
        path = Path(directory) / FILE_NAME
        if not path.is_file():
            logger.warning("%s has no %s: transcripts are taken as they are written.", directory, FILE_NAME)
            return cls(case="keep", dropped="", spaces="")
        return cls(**json.loads(path.read_text()))


def log_examples(before: Sequence[str], normalizer: TextNormalizer, count: int = 3) -> None:
    """Show in the log what normalisation does, on transcripts that it changes if there are any."""
    changed = [text for text in before if normalizer(text) != text]
    logger.info("Normalisation changes %d of %d transcripts, for example:", len(changed), len(before))
    for text in (changed or before)[:count]:
        logger.info("  %s  ->  %s", shorten(text, 90), shorten(normalizer(text), 90))


def build_tokenizer(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """
    A tokenizer over the characters of normalised transcripts: `<pad>` (the blank) 0, `<s>` 1, `</s>` 2, `<unk>` 3, the
    word delimiter `|` 4, then the characters in order.

    Raises:
        ValueError: if the transcripts have no character.
    """
    characters = sorted(set().union(*texts) - {" ", "|"})
    if not characters:
        raise ValueError("The transcripts hold no characters once they are normalised: see `drop_characters`.")
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *characters))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path), clean_up_tokenization_spaces=False)


def check_characters(texts: Sequence[str], tokenizer: Wav2Vec2CTCTokenizer, name: str) -> None:
    """
    Name in the log the characters of normalised transcripts that a tokenizer does not know, with their counts.

    Raises:
        ValueError: if it knows none of them.
    """
    counts = Counter("".join(texts))
    spaces = counts.pop(" ", 0)
    known = tokenizer.get_vocab()
    unknown = {character: count for character, count in counts.most_common() if character not in known}
    if len(unknown) == len(counts):
        raise ValueError(
            f"No character of the transcripts of {name} is in the tokenizer's vocabulary"
            f" ({' '.join(sorted(known)[:40])}): is `text_case` the tokenizer's?"
        )
    if spaces and tokenizer.word_delimiter_token not in known:
        unknown[" "] = spaces
    if unknown:
        named = ", ".join(f"{character!r} {count} times" for character, count in unknown.items())
        logger.warning("%s: characters outside the vocabulary: %s.", name, named)


def needed_frames(labels: Sequence[int]) -> int:
    """Frames that CTC needs for these labels: one for each, and one more for a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in zip(labels, labels[1:]))
