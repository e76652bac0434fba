"""Labels of SUPERB: what columns become, and back: classes, phones, characters, slots; and the metrics over them."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import recall_score
from torch import Tensor

from training.common.metrics import load_metric
from training.data.metadata import decoded


NO_PHONES = {"", "sil", "sp", "spn", "|"}  # silences, and bars between words: no part of what is recognised
END = "<eos>"
FIRST_CHARACTER = 0x4E00  # of a block that is large enough for any set of tokens
SLOT_TOKEN = re.compile(r"\b[BE]-\S*[a-z]\S*")  # a word in capitals, such as E-MAIL, is none


class ClassLabels:
    """
    Classes of label columns, those of the training data.

    Args:
        labels: labels of the training clips by column.
        slots: the columns are slots. A clip's text is then "B-slot value E-slot ..." without those that are empty,
            else the values of its columns.
    """

    def __init__(self, labels: dict[str, list[str]], slots: bool = False):
        self.slots = slots
        self.values = {column: sorted(set(values)) for column, values in labels.items()}
        for column, values in self.values.items():
            if len(values) < 2:
                raise ValueError(f"Column '{column}' has the one value '{values[0]}': there is nothing to tell apart.")

    @property
    def sizes(self) -> list[int]:
        return [len(values) for values in self.values.values()]

    def encode(self, labels: dict[str, list[str]]) -> list[Tensor]:
        """Class numbers `(num_columns,)` of each clip; -100 for what the training data lacks."""
        numbers = [{value: n for n, value in enumerate(values)} for values in self.values.values()]
        rows = zip(*(labels[column] for column in self.values))
        return [torch.tensor([number.get(value, -100) for number, value in zip(numbers, row)]) for row in rows]

    def decode(self, classes: Sequence[int]) -> str:
        return self._text([values[n] for values, n in zip(self.values.values(), classes)])

    def references(self, labels: dict[str, list[str]]) -> list[str]:
        return [self._text(row) for row in zip(*(labels[column] for column in self.values))]

    def _text(self, row: Sequence[str]) -> str:
        if not self.slots:
            return " | ".join(row)
        names = [column.replace(" ", "_") for column in self.values]
        return " ".join(f"B-{name} {value} E-{name}" for name, value in zip(names, row) if value)


class TokenLabels:
    """
    Tokens of a text column, those of the training data; 0 is the CTC blank. As in S3PRL every text ends with `<eos>`,
    one of "characters" with a space before it: heads learn much faster so (docs/evaluation.md). They are in NFC, as in
    fine-tuning.

    Args:
        labels: the text column of the training clips, by its name.
        kind: "characters" (in capitals), "phones" (between spaces, without silences and the bars between words), or
            "slot_characters", where words such as `B-size` and `E-size` are one token each, and stand around the value
            of a slot.
        lexicon: phones of each word in capitals; "phones" are then looked up in it, and the tokens are all of its
            phones, whatever the training data has of them.
        stress: phones keep the digit that says how they are stressed (ARPAbet); else AH0 and AH1 are AH.
    """

    def __init__(
        self, labels: dict[str, list[str]], kind: str, lexicon: dict[str, str] | None = None, stress: bool = True
    ):
        self.kind, self.lexicon, self.stress = kind, lexicon, stress
        texts = self.references(labels)
        known = texts if lexicon is None else map(self._phones, lexicon.values())
        self._last = [" ", END] if kind == "characters" else [END]
        tokens = sorted({token for text in known for token in self._tokens(text) + self._last} - {END})
        self.tokens = ["<blank>", END, *tokens]
        if kind == "slot_characters" and not any(map(SLOT_TOKEN.fullmatch, tokens)):
            (column,) = labels
            raise ValueError(
                f"The texts of column '{column}' hold no slots (B-slot value E-slot): annotate them, or name columns"
                " of slot values with --slot_columns."
            )

    @property
    def sizes(self) -> list[int]:
        return [len(self.tokens)]

    def encode(self, labels: dict[str, list[str]]) -> list[Tensor]:
        """Token numbers `(num_tokens,)` of each clip, without tokens that the training data lacks."""
        number = {token: n for n, token in enumerate(self.tokens)}
        texts = [self._tokens(text) + self._last for text in self.references(labels)]
        return [torch.tensor([number[token] for token in text if token in number], dtype=torch.long) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        found = [self.tokens[n] for n in tokens]
        if self.kind != "characters" and END in found:  # as S3PRL, which in asr goes on behind it
            found = found[: found.index(END)]
        found = [token for token in found if token != END]
        if self.kind == "phones":
            return " ".join(found)
        return _squeezed("".join(f" {token} " if len(token) > 1 else token for token in found))

    def one_character_each(self, text: str) -> str:
        """A text of `decode` with a character of its own for each token."""
        number = {token: n for n, token in enumerate(self.tokens)}
        return "".join(chr(FIRST_CHARACTER + number.get(token, len(number))) for token in self._tokens(text))

    def references(self, labels: dict[str, list[str]]) -> list[str]:
        """The texts in the form that `decode` gives them."""
        (texts,) = labels.values()
        return [self._normalised(text) for text in texts]

    def _normalised(self, text: str) -> str:
        if self.lexicon is not None:
            words = text.upper().split()
            unknown = [word for word in words if word not in self.lexicon]
            if unknown:
                raise ValueError(f"The lexicon lacks the word '{unknown[0]}': add a line '{unknown[0]} PHONES ...'.")
            text = " ".join(self.lexicon[word] for word in words)
        if self.kind == "phones":
            return self._phones(text)
        keep = SLOT_TOKEN.fullmatch if self.kind == "slot_characters" else (lambda word: None)
        text = " ".join(word if keep(word) else word.upper().replace("ẞ", "SS") for word in text.split())
        return unicodedata.normalize("NFC", text)

    def _phones(self, text: str) -> str:
        phones = [phone for phone in text.split() if phone.lower() not in NO_PHONES]
        return " ".join(phones if self.stress else (phone.rstrip("012") for phone in phones))

    def _tokens(self, text: str) -> list[str]:
        if self.kind == "phones":
            return text.split()
        tokens: list[str] = []
        words = text.split(" ")
        slots = [self.kind == "slot_characters" and bool(SLOT_TOKEN.fullmatch(word)) for word in words]
        for n, (word, is_slot) in enumerate(zip(words, slots)):
            tokens += [word] if is_slot else list(word)
            last = n + 1 == len(words)
            opens = is_slot and word[0] == "B"
            closes_next = not last and slots[n + 1] and words[n + 1][0] == "E"
            if not (last or opens or closes_next):
                tokens.append(" ")
        return tokens


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def read_lexicon(paths: Sequence[str]) -> dict[str, str]:
    """
    Phones of each word from files of lines `WORD PHONE PHONE ...`, such as LibriSpeech's; the first pronunciation of a
    word counts, as in s3prl.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    lexicon: dict[str, str] = {}
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"--lexicon {path}: there is no such file.")
        for line in decoded(Path(path)).splitlines():
            word, *phones = line.split() or [""]
            if phones:
                lexicon.setdefault(word.upper(), " ".join(phones))
    return lexicon


def score(metrics: Sequence[str], predictions: list[str], references: list[str]) -> dict[str, float]:
    """The metrics of SUPERB by name, as fractions: "per" is the error rate over phones, "accuracy" that of whole texts
    (of all columns), slot metrics are over the slots that a text holds."""
    results = {}
    for name in metrics:
        metric = "wer" if name == "per" else name
        forms = (recognised_slots, slots) if name.startswith("slot_") else (str, str)
        pair = {
            key: list(map(form, texts))
            for key, form, texts in zip(("predictions", "references"), forms, (predictions, references))
        }
        results[name] = float(load_metric(metric).compute(**pair)[metric])
    return results


def check_references(kind: str, references: Sequence[str], split: str) -> None:
    """Raise a ValueError if a split's texts, with labels of this kind, hold nothing that errors are counted over."""
    holds = {"phones": ("phone", str), "slots": ("slot", slots), "slot_characters": ("slot", slots)}
    what, found = holds.get(kind, ("label", str))
    if not any(map(found, references)):
        raise ValueError(f"None of the {len(references)} {split} clips has a {what}: there is nothing to score.")


def class_mean(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Accuracy where all classes of the references count alike, however many clips each has."""
    return float(recall_score(references, predictions, labels=sorted(set(references)), average="macro"))


def check_finite(scores: np.ndarray, what: str) -> None:
    """Raise a ValueError if a score, of such things in words, is NaN or infinite."""
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(
            f"{bad} of {scores.size} scores of {what} are NaN or infinite: the head has diverged, so lower"
            " `learning_rate`, or an encoder gives such features."
        )


def slots(text: str) -> list[tuple[str, str]]:
    """Slot and value of each "B-slot value E-slot"."""
    return re.findall(r"B-(\S+) (.+?) E-\1", _squeezed(text))


def recognised_slots(text: str) -> list[tuple[str, str]]:
    """
    `slots` of what a model wrote. As S3PRL has it, slot tokens within a value go where they stand between words: one
    that opens with the space behind it, one that closes with the space before it. At the other edge of the value they
    stay, and cost characters.
    """
    return [(slot, re.sub(r" E-\S+", "", re.sub(r"B-\S+ ", "", value))) for slot, value in slots(text)]
