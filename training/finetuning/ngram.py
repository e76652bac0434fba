"""Word n-grams with backoff: estimated from text (interpolated modified Kneser-Ney), kept in ARPA files.

Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1998 (TR-10-98), section 3;
adjusted counts and sentence boundaries as in Heafield et al., "Scalable modified Kneser-Ney language model
estimation", ACL 2013.
"""

import gzip
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from sjepa_hf.saving import files_written_aside
from training.common.naming import printable, several


BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
RESERVED = {BEGIN, END, UNKNOWN}
NEVER = -99.0  # log10 of a word that is never predicted: <s>
ROUNDING = 1e-4  # log10 of a probability of 1 may be that far above 0 in a file
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where a text is too small to estimate them, as in KenLM's --discount_fallback

Gram = tuple[str, ...]


class NGram:
    """
    A backoff model.

    Attributes:
        tables (`list[dict[Gram, tuple[float, float]]]`): for each order from 1, log10 probability and log10 backoff
            weight of every n-gram.
    """

    def __init__(self, tables: list[dict[Gram, tuple[float, float]]]):
        self.tables = tables

    @property
    def order(self) -> int:
        return len(self.tables)

    @property
    def words(self) -> set[str]:
        """All words but the sentence boundaries and `<unk>`."""
        return {gram[0] for gram in self.tables[0]} - {BEGIN, END, UNKNOWN}

    def log10_probability(self, history: Gram, word: str) -> float:
        """log10 P(word | history); words outside the vocabulary count as `<unk>`, -inf if that has no entry."""
        if (word,) not in self.tables[0]:
            word = UNKNOWN
        history = self.context(history)
        backoff = 0.0
        while True:
            found = self.tables[len(history)].get((*history, word))
            if found is not None:
                return backoff + found[0]
            if not history:
                return -math.inf
            backoff += self.tables[len(history) - 1].get(history, (0.0, 0.0))[1]
            history = history[1:]

    def context(self, history: Gram) -> Gram:
        """The last words of a history, those that the model looks at."""
        return history[max(len(history) - self.order + 1, 0) :]

    def perplexity(self, sentences: Iterable[str]) -> float:
        """Perplexity per word, the ends of the sentences counted as words."""
        total, count = 0.0, 0
        for sentence in sentences:
            history = (BEGIN,)
            for word in (*sentence.split(), END):
                total, count = total + self.log10_probability(history, word), count + 1
                history = self.context((*history, word if (word,) in self.tables[0] else UNKNOWN))
        return 10 ** (-total / count)

    def save(self, path: str | Path) -> None:
        """Write an ARPA file, whole or not at all."""
        path = Path(path)
        with files_written_aside(path.parent) as aside, open(aside / path.name, "w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            for number, table in enumerate(self.tables, start=1):
                file.write(f"ngram {number}={len(table)}\n")
            for number, table in enumerate(self.tables, start=1):
                file.write(f"\n\\{number}-grams:\n")
                for gram, (probability, backoff) in table.items():
                    weight = f"\t{backoff:.7g}" if number < self.order else ""
                    file.write(f"{probability:.7g}\t{' '.join(gram)}{weight}\n")
            file.write("\n\\end\\\n")

    @classmethod
    def load(cls, path: str | Path) -> "NGram":
        """
        Read an ARPA file, also gzipped. It is held in Python dicts: fit for some ten million n-grams.

        Raises:
            ValueError: if there is no such file or it is not a whole and sound ARPA file; the message names the line.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"There is no language model {path}: `training.decoding build-ngram` makes one.")
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        try:
            with (gzip.open if zipped else open)(path, "rb") as file:
                return cls(_read_arpa(file, str(path)))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole ARPA file: {error}") from None


def _read_arpa(lines: Iterable[bytes], path: str) -> list[dict[Gram, tuple[float, float]]]:
    """The tables of `NGram`. Raises ValueError with the line that is wrong."""
    tables: list[dict[Gram, tuple[float, float]]] = []
    promised: list[int] = []
    begun = ended = False
    number = 0
    for number, content in enumerate(lines, start=1):
        try:
            line = content.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            byte = f"0x{content[error.start]:02x}"
            raise ValueError(
                f"{path}, line {number}: the byte {byte} is not UTF-8: it is not an ARPA file, or in another encoding."
            ) from None
        if not line or not (begun or line == "\\data\\"):
            continue  # anything may stand before the data
        begun = True
        if tables and not line.startswith("\\"):
            try:
                _add(tables, line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}.") from None
            continue
        if tables and len(tables) <= len(promised) and len(tables[-1]) != promised[len(tables) - 1]:
            raise ValueError(
                f"{path} is not a whole ARPA file: it promises {promised[len(tables) - 1]} {len(tables)}-grams and has"
                f" {len(tables[-1])} before line {number}."
            )
        if line == "\\end\\":
            ended = True
            break
        if line.startswith("ngram ") and not tables:
            order, _, count = line.removeprefix("ngram ").partition("=")
            if order.strip() != str(len(promised) + 1) or not count.strip().isdecimal():
                raise ValueError(
                    f"{path}, line {number}: {printable(line[:40])} is not a count of {len(promised) + 1}-grams."
                )
            promised.append(int(count))
        elif line == f"\\{len(tables) + 1}-grams:":
            tables.append({})
        elif line != "\\data\\":
            raise ValueError(
                f"{path}, line {number}: \\{len(tables) + 1}-grams: or \\end\\ should stand there, not"
                f" {printable(line[:40])!r}."
            )
    if not tables:
        raise ValueError(f"{path} is not an ARPA file: it has no \\1-grams: section.")
    if not ended or len(promised) != len(tables):
        ending = "" if ended else " and ends without \\end\\"
        raise ValueError(
            f"{path} is not a whole ARPA file: it has n-grams up to order {len(tables)} of {len(promised)}{ending}"
            f" after line {number}."
        )
    if not tables[0]:
        raise ValueError(f"{path} is not an ARPA file: it has no word.")
    return tables


def _add(tables: list[dict[Gram, tuple[float, float]]], line: str) -> None:
    """Add the n-gram of a line to the last table. Raises ValueError if it cannot stand there."""
    order, fields = len(tables), line.split()
    if not order + 1 <= len(fields) <= order + 2:
        raise ValueError(f"a {order}-gram needs a probability, {order} words and perhaps a backoff weight")
    try:
        probability = float(fields[0])
        backoff = float(fields[-1]) if len(fields) == order + 2 else 0.0
    except ValueError:
        raise ValueError("its numbers should be log10 of a probability and of a backoff weight") from None
    if not probability <= ROUNDING:  # as NaN is not
        raise ValueError(f"{printable(fields[0])} is not the log10 of a probability: it must not be above 0")
    if not math.isfinite(backoff):
        raise ValueError(f"{printable(fields[-1])} is not the log10 of a backoff weight")
    gram = tuple(fields[1 : order + 1])
    if "<UNK>" in gram:  # as LibriSpeech's language models write it
        gram = tuple(UNKNOWN if word == "<UNK>" else word for word in gram)
    if order > 1:
        for part in (gram[:-1], gram[-1:]):
            if part not in tables[len(part) - 1]:
                raise ValueError(
                    f"'{several([' '.join(gram)])}' needs '{several([' '.join(part)])}', which is missing"
                )
    table = tables[-1]
    before = len(table)
    table[gram] = (min(probability, 0.0), backoff)
    if len(table) == before:
        raise ValueError(f"'{several([' '.join(gram)])}' stands there a second time")


def estimate(sentences: Iterable[str], order: int) -> NGram:
    """
    An interpolated modified Kneser-Ney model of whitespace-separated words, nothing pruned. The vocabulary is that of
    the text with `</s>` and `<unk>`; unigrams are interpolated with the uniform distribution over it.

    Raises:
        ValueError: if the text holds no word, or one of <s>, </s> and <unk>.
    """
    if order < 1:
        raise ValueError(f"`order` is {order}; an n-gram needs at least 1.")
    counts = adjusted_counts(sentences, order)
    counts[0].pop((BEGIN,), None)  # never predicted
    if len(counts[0]) < 2:
        raise ValueError("The text for the language model holds no word.")
    uniform = 1 / (len(counts[0]) + 1)  # and <unk>
    probabilities: list[dict[Gram, float]] = []
    weights: list[dict[Gram, float]] = []  # gamma: what each context leaves to the lower order
    for n, table in enumerate(counts):
        discounts = modified_discounts(table.values())
        totals, left = Counter(), defaultdict(float)
        for gram, count in table.items():
            totals[gram[:-1]] += count
            left[gram[:-1]] += discounts[min(count, 3) - 1]
        weights.append({context: left[context] / totals[context] for context in totals})
        probabilities.append({})
        for gram, count in table.items():
            context = gram[:-1]
            lower = probabilities[n - 1][gram[1:]] if n else uniform
            own = (count - discounts[min(count, 3) - 1]) / totals[context]
            probabilities[n][gram] = own + weights[n][context] * lower
    probabilities[0][(UNKNOWN,)] = weights[0][()] * uniform

    tables = []
    for n, table in enumerate(probabilities):
        above = weights[n + 1] if n + 1 < order else {}
        tables.append({g: (math.log10(p), math.log10(above[g]) if g in above else 0.0) for g, p in table.items()})
    begin = weights[1].get((BEGIN,)) if order > 1 else None
    tables[0][(BEGIN,)] = (NEVER, math.log10(begin) if begin else 0.0)
    return NGram(tables)


def adjusted_counts(sentences: Iterable[str], order: int) -> list[Counter]:
    """
    For each order from 1: how often an n-gram occurs (highest order, and n-grams at the start of a sentence), else
    how many different words precede it.
    """
    counts = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = sentence.split()
        if not words:
            continue
        if not RESERVED.isdisjoint(words):
            raise ValueError(
                f"The text holds '{sorted(RESERVED.intersection(words))[0]}', which n-grams keep for themselves."
            )
        words = (BEGIN, *words, END)
        for n in range(1, order + 1):
            counts[n - 1].update(words[i : i + n] for i in range(len(words) - n + 1))
    for n in range(order - 1):
        preceding = Counter(gram[1:] for gram in counts[n + 1])
        counts[n] = Counter({g: c if g[0] == BEGIN else preceding[g] for g, c in counts[n].items()})
    return counts


def modified_discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """Discounts of n-grams that occur once, twice, and more often; fixed ones where the text does not give them."""
    occurrences = Counter(counts)
    n1, n2, n3, n4 = (occurrences[k] for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    usable = all(0 < discount <= k for k, discount in enumerate(found, start=1))
    return found if usable else FALLBACK_DISCOUNTS
