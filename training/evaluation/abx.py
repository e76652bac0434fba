"""ABX: how often a token X of a category lies nearer to B, of another category, than to A, of its own.

Tokens are stretches of units; their distance is that of dynamic time warping over frames, where equal units are 0
apart and others 1, as the mean along the best path (of the shortest, where several are best). Half of a tie counts as
an error.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np


PAIRS_AT_ONCE = 4096
MAX_GROUP = 5  # tokens that are kept of a category of a speaker in a context, drawn at random
MAX_CELLS = 2000  # cells that are kept, drawn at random


class Token(NamedTuple):
    """Units `(num_frames,)` of a stretch of speech, what it is, who says it, and between what it stands."""

    units: np.ndarray
    category: str
    speaker: str = ""
    context: str = ""


class AbxResult(NamedTuple):
    """Error (0: all right, 0.5: chance) as the mean over cells, and how many cells and triplets it is of."""

    error: float
    cells: int
    triplets: int


class Cell(NamedTuple):
    """Numbers of the tokens of two categories in one context: X and A are of the first, B of the second."""

    x: list[int]
    a: list[int]
    b: list[int]


def abx(tokens: Sequence[Token], across: bool, seed: int = 0) -> AbxResult | None:
    """
    ABX error within speakers (X, A and B of one voice), or across (A and B of one voice, X of another). Exact over the
    tokens (`MAX_GROUP`) and cells (`MAX_CELLS`) that are kept; None where there is no triplet.
    """
    cells = find_cells(tokens, across, np.random.default_rng(seed))
    if len(cells) > MAX_CELLS:
        drawn = np.random.default_rng(seed).permutation(len(cells))[:MAX_CELLS]
        cells = [cells[number] for number in sorted(drawn.tolist())]
    triplets = [(n, x, a, b) for n, cell in enumerate(cells) for x in cell.x for a in cell.a if a != x for b in cell.b]
    if not triplets:
        return None
    wanted = sorted({(x, other) for _, x, a, b in triplets for other in (a, b)})
    apart = dict(zip(wanted, distances([(tokens[i].units, tokens[j].units) for i, j in wanted])))
    errors = defaultdict(list)
    for cell, x, a, b in triplets:
        to_a, to_b = apart[x, a], apart[x, b]
        errors[cell].append(1.0 if to_a > to_b else 0.5 if to_a == to_b else 0.0)
    return AbxResult(float(np.mean([np.mean(of_cell) for of_cell in errors.values()])), len(errors), len(triplets))


def find_cells(tokens: Sequence[Token], across: bool, rng: np.random.Generator) -> list[Cell]:
    """All cells with a triplet: for each context, speaker (or two speakers) and ordered pair of categories."""
    groups: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, token in enumerate(tokens):
        groups[token.context][token.speaker][token.category].append(number)
    cells = []
    for context in sorted(groups):
        speakers = groups[context]
        for categories in speakers.values():
            for name, members in categories.items():
                categories[name] = sorted(rng.permutation(members)[:MAX_GROUP].tolist())
        for speaker in sorted(speakers):
            for first, second in permutations(sorted(speakers[speaker]), 2):
                a, b = speakers[speaker][first], speakers[speaker][second]
                if not across:
                    cells += [Cell(a, a, b)] if len(a) > 1 else []
                    continue
                others = [other for other in sorted(speakers) if other != speaker and first in speakers[other]]
                cells += [Cell(speakers[other][first], a, b) for other in others]
    return cells


def distances(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Distance of each pair of stretches of units, `(num_pairs,)`."""
    apart = np.empty(len(pairs))
    order = sorted(range(len(pairs)), key=lambda n: (len(pairs[n][0]), len(pairs[n][1])))
    for first in range(0, len(order), PAIRS_AT_ONCE):
        chosen = order[first : first + PAIRS_AT_ONCE]
        apart[chosen] = _warped([pairs[n][0] for n in chosen], [pairs[n][1] for n in chosen])
    return apart


def _warped(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """
    DTW of all pairs at once, cell by cell. Each cell holds the best path to it as one number, `cost * whole + steps`:
    as `whole` exceeds the steps of any path, the least such number is of the least cost and, among equals, of the
    fewest steps; `//` and `%` give the two back.
    """
    rows, columns = np.array([len(stretch) for stretch in left]), np.array([len(stretch) for stretch in right])
    x, y = _padded(left, -1), _padded(right, -2)
    whole = x.shape[1] + y.shape[1] + 1
    far = np.full(len(x), np.iinfo(np.int64).max // 2)
    above, result = [far] * (y.shape[1] + 1), np.zeros(len(x), np.int64)
    for i in range(x.shape[1]):
        here = [far]
        for j in range(y.shape[1]):
            before = np.minimum(np.minimum(above[j], above[j + 1]), here[j]) if i or j else 0
            best = before + (x[:, i] != y[:, j]) * whole + 1
            here.append(best)
            ends = (rows == i + 1) & (columns == j + 1)
            result[ends] = best[ends]
        above = here
    return (result // whole) / (result % whole)


def _padded(parts: list[np.ndarray], filler: int) -> np.ndarray:
    filled = np.full((len(parts), max(map(len, parts))), filler, dtype=np.int64)
    for row, part in zip(filled, parts):
        row[: len(part)] = part
    return filled
