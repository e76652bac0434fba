"""Transcripts: normalisation that travels with the model, and the vocabulary of a CTC tokenizer."""

import logging
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten

from transformers import Wav2Vec2CTCTokenizer

from sjepa_hf.contents import read_json
from sjepa_hf.opening import file_of, open_config
from sjepa_hf.scores import json_text
from sjepa_hf.transcripts import UNKNOWN_SIGN, with_blanks


logger = logging.getLogger(__name__)

FILE_NAME = "text_normalization.json"
DROPPED = '.,?!;:"()[]{}“”„«»‹›…¿¡*'
SPACES = "-–—‐‑−/_|"  # the bar separates words in a CTC vocabulary
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|")
APOSTROPHES = "’‘‛ʼʻ´`′＇՚׳ꞌ\u1fbd"
WORD_SPACES = "፡་・"  # marks between words: Ethiopic, Tibetan, Japanese
KIN = {"Pd": "-", "Pc": "_", "Ps": "(", "Pe": ")", "Pi": '"', "Pf": '"', "Po": "."}  # of other scripts' punctuation
SPELLED = "·‰‱"  # punctuation to Unicode, but part of words (Catalan's l·l) or said
PARTING = ",;!?¡¿…،؛؟۔।॥、。፣፤፥።፧།༎၊။។៕"  # what parts the words beside it, whether or not a space follows
NEVER_SEEN = ("Cf", "Cs", "Co", "Cn", "Me")  # categories: marks of direction, soft hyphens, private, unassigned, ...
PARTED = re.compile(rf"[{PARTING}]+|\.{{2,}}|·")
BLANK = {  # letters and marks that leave nothing on the page: variation selectors, joiners, fillers
    *range(0xFE00, 0xFE10),
    *range(0x180B, 0x1810),
    *range(0xE0100, 0xE01F0),
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFC),
}
COUNTED = 40  # characters that a line of the log names
CASES = {
    "upper": lambda text: text.upper().replace("ẞ", "SS"),  # as ß
    "lower": lambda text: text.lower().replace("i\u0307", "i"),  # İ
    "keep": str,
}


class Table(dict):
    """For `str.translate`: what each character becomes, found out when it is first met."""

    def __init__(self, becomes: Callable[[str], str | None]):
        self.becomes = becomes

    def __missing__(self, code: int) -> str | None:
        self[code] = self.becomes(chr(code))
        return self[code]


def _plain(character: str) -> str | None:
    """
    A character's compatibility form (NFKC); ' for all that look like it; None for a free-standing accent: NFKC would
    turn it into a space with an accent. Letters stay whose form is another spelling: raised and lowered ones (ʰ), and
    those whose form begins with a mark (Thai ำ, whose tone mark stands before it).
    """
    if character in APOSTROPHES:
        return "'"
    normal = unicodedata.normalize("NFKC", character)
    if normal[0] == " " and len(normal) > 1:
        return None
    kind, form = unicodedata.category(character), unicodedata.decomposition(character).partition(" ")[0]
    raised = kind == "Lm" and form in ("<super>", "<sub>")
    marked = kind == "Lo" and form == "<compat>" and unicodedata.category(normal[0])[0] == "M"
    return character if raised or marked else normal


PLAIN = Table(_plain)


@dataclass(frozen=True)
class TextNormalizer:
    """
    What transcripts become before they are learnt or compared: Unicode NFKC (but raised letters, and Thai and Lao am,
    stay), every kind of apostrophe as ', the case, some characters as spaces, some dropped, and single spaces between
    words. What nobody sees is dropped too: soft hyphens, marks of direction, zero-width spaces, accents without a
    letter.

    Punctuation of other scripts goes where its kin in ASCII goes: dashes with -, brackets with (, quotes with ", any
    other mark, such as 。 or ؟, with the full stop. A comma or a question mark that is dropped between two letters
    leaves a space, as several full stops do, but not between Chinese or Japanese letters.

    Args:
        case: "upper" (as LibriSpeech's transcripts and language models are), "lower" or "keep".
        dropped: characters that are removed.
        spaces: characters that become spaces.

    Raises:
        ValueError: for an unknown case, and for characters that are not in a string.
    """

    case: str = "upper"
    dropped: str = DROPPED
    spaces: str = SPACES

    def __post_init__(self):
        if not isinstance(self.case, str) or self.case not in CASES:
            raise ValueError(f"`text_case` is {self.case!r}; choose {', '.join(CASES)}.")
        for name in ("dropped", "spaces"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be a string of characters, got {getattr(self, name)!r}.")

    def __call__(self, text: str) -> str:
        # Before the case, for letters that have one only in their plain form (ª), and after it, for what it takes
        # apart (ΐ in upper case) or makes an apostrophe of (Ꞌ in lower case).
        text = CASES[self.case](self._replaced(text))
        return " ".join(filter(None, map(_grounded, self._replaced(text).split())))

    def _replaced(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.translate(PLAIN)).translate(PLAIN)
        text = re.sub("'{2,}", '"', text)
        text = PARTED.sub(self._parted, text).translate(self._table)
        return unicodedata.normalize("NFC", text)

    def _parted(self, found: re.Match) -> str:
        """What marks between words become, where they would be dropped: a space between letters of a spaced script."""
        marks, (start, end) = found[0], found.span()
        before, after = found.string[max(0, start - 1) : start], found.string[end : end + 1]
        if marks == "·":  # the Greek semicolon, where a word ends with it
            return marks if after.isalnum() or not _is_letter(before) or self._table[ord(";")] == ";" else ";"
        spaced = "W" not in map(unicodedata.east_asian_width, before + after)
        parted = spaced and _is_letter(before) and after.isalpha() and not marks.translate(self._table)
        return " " if parted else marks

    @cached_property
    def _table(self) -> Table:
        dropped, spaces = (_set(characters) for characters in (self.dropped, self.spaces))

        def becomes(character: str) -> str | None:
            kind = unicodedata.category(character)
            kin = None if character.isascii() or character in SPELLED else KIN.get(kind)
            if character in spaces or kin in spaces or character.isspace() or kind == "Cc":
                return " "
            if character in WORD_SPACES and spaces:
                return " "
            unseen = kind in NEVER_SEEN or ord(character) in BLANK
            return None if unseen or character in dropped or kin in dropped else character

        return Table(becomes)

    def lost(self, texts: Iterable[str]) -> Counter[str]:
        """How often each character occurs that is dropped or becomes a space; without spaces, and accents."""
        counts = Counter()
        for text in texts:
            counts.update(text)
        seen = {c: n for c, n in counts.items() if not c.isspace() and not unicodedata.category(c).startswith("M")}
        return Counter({character: count for character, count in seen.items() if not self(character)})

    def save(self, directory: str | Path) -> None:
        """Write `text_normalization.json` beside the model."""
        content = json_text(asdict(self), indent=2) + "\n"
        (Path(directory) / FILE_NAME).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: str | Path) -> "TextNormalizer":
        """
        The normalisation of a saved model, in a directory or on the Hub; one without the file gets its transcripts as
        they are, and a warning.

        Raises:
            ValueError: if there is no such model, the Hub cannot be asked for the file, or it is not one that `save`
                writes.
        """
        if not Path(checkpoint).is_dir():
            open_config(checkpoint)  # is there such a model?
        path = file_of(checkpoint, FILE_NAME)
        if path is None:
            logger.warning("%s has no %s: transcripts are taken as they are written.", checkpoint, FILE_NAME)
            return cls(case="keep", dropped="", spaces="")
        found = read_json(path)
        try:
            return cls(**found)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def _set(characters: str) -> set[str]:
    """The characters as they stand in normalised text."""
    characters = unicodedata.normalize("NFC", characters)
    found = (unicodedata.normalize("NFC", character.translate(PLAIN)) for character in characters)
    return set(characters) | {c for c in found if len(c) == 1}


def _is_letter(character: str) -> bool:
    """Whether it is a letter, or a mark on one; False for "", an end of the text."""
    return character != "" and unicodedata.category(character)[0] in "LM"


def _grounded(word: str) -> str:
    """The word without accents before its first letter."""
    while word and unicodedata.category(word[0]).startswith("M"):
        word = word[1:]
    return word


def log_examples(before: Sequence[str], normalizer: TextNormalizer) -> None:
    """Show in the log what normalisation changes, and what gets lost."""
    changed = [text for text in before if normalizer(text) != text]
    said = ", for example:" if changed else "."
    logger.info("Normalisation changes %d of %d transcripts%s", len(changed), len(before), said)
    for text in changed[:3]:
        logger.info("  %s  ->  %s", shorten(text, 90), shorten(normalizer(text), 90))
    lost = normalizer.lost(before)
    if lost:
        logger.info("Characters that are dropped or become spaces: %s.", counted(lost))
    letters = Counter(c for text in before for c in text if not c.isascii() and c.isalpha())
    back = {"upper": str.lower, "lower": str.upper, "keep": str}[normalizer.case]
    merged = Counter({c: n for c, n in letters.items() if back(CASES[normalizer.case](c)) != back(c)})
    if merged:
        logger.info("Letters that %s case cannot tell from others: %s.", normalizer.case, counted(merged))
    digits = sum(any(c.isdigit() for c in text) for text in before)
    if digits:
        logger.info("%d transcripts have digits: they are learnt as they are written, not as they are said.", digits)


def counted(characters: Counter[str]) -> str:
    """The most frequent characters and how often they occur, at most `COUNTED`."""
    named = [f"{character!r} {count} times" for character, count in characters.most_common(COUNTED)]
    return ", ".join(named + ["..."] * (len(characters) > COUNTED))


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
        path.write_text(json_text(vocabulary), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path), clean_up_tokenization_spaces=False)


def check_characters(texts: Sequence[str], tokenizer: Wav2Vec2CTCTokenizer, name: str) -> None:
    """
    Name in the log the characters of normalised transcripts that a tokenizer does not know, with their counts.

    Raises:
        ValueError: if it knows none of them, or takes a piece of the transcripts for one of its special tokens.
    """
    for token in tokenizer.all_special_tokens:
        if len(token) > 1 and any(token in text for text in texts):
            raise ValueError(
                f"The transcripts of {name} hold {token}, which the tokenizer reads as a sign of its own: take it out"
                " or drop its characters with `drop_characters`."
            )
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
        logger.warning("%s: characters outside the vocabulary: %s.", name, counted(Counter(unknown)))


def is_spaceless(texts: Sequence[str]) -> bool:
    """Whether hardly any transcript, below 5 %, has a space: of a script without, or of single words."""
    return sum(" " in text for text in texts) < 0.05 * len(texts)


def log_spaceless(texts: Sequence[str]) -> None:
    """Say in the log what the word error rate counts where normalised transcripts have no spaces."""
    if is_spaceless(texts):
        logger.info("Hardly any transcript has a space: look at CER; WER counts whole transcripts, not words.")


def read_labels(labels: Sequence[int], tokenizer: Wav2Vec2CTCTokenizer) -> str:
    """
    The text of the best label of each frame; `<unk>` is one sign, as what it stands for was one character, and what
    stands for no text is read as a blank.
    """
    text = tokenizer.decode(with_blanks(labels, tokenizer))
    if tokenizer.unk_token:
        text = text.replace(tokenizer.unk_token, UNKNOWN_SIGN)
    return " ".join(text.split())


def needed_frames(labels: Sequence[int]) -> int:
    """Frames that CTC needs for these labels: one for each, and one more for a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in zip(labels, labels[1:]))
