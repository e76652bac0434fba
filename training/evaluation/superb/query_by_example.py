"""Query by example: clips of a word are found in other clips by dynamic time warping (DTW); nothing is trained.

As S3PRL has it for QUESST 2014: features normed in each dimension, distances exp(1 - cosine) - 1 that run from 0 to 1
for each frame of the query, DTW to any part of the document, scores normed over the documents of a query.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sjepa_hf.frames import length_mask
from training.common.progress import Heartbeat
from training.evaluation.frozen_features import FrozenFeatures
from training.evaluation.superb.labels import check_finite
from training.evaluation.superb.training import SplitResult


MOST_QUERIES = 3  # clips of a word that are queries; at most half of its clips
QUERY_SEED = 0
FEWEST_FRAMES = 5  # of a query; a shorter one tells nothing of any document
DOCUMENTS_AT_ONCE = 256
FALSE_ALARM_COST, MISS_COST, PRIOR = 1.0, 100.0, 0.0008  # QUESST 2014
BETA = FALSE_ALARM_COST / MISS_COST * (1 - PRIOR) / PRIOR  # 12.49


class Search(NamedTuple):
    """
    Attributes:
        queries, documents: numbers of the clips.
        hits: whether the query's word is in the document, bool `(num_queries, num_documents)`; every row has a hit.
    """

    queries: list[int]
    documents: list[int]
    hits: np.ndarray


def make_search(words: Sequence[str], split: str) -> Search:
    """
    Queries and documents among clips with these labels, the same for the same clips: at most `MOST_QUERIES` clips of
    each word are queries, all others documents. A document holds a query whose label is, word by word, a part of its
    own.

    Args:
        words: label of each clip, a word or a text.
        split: for messages.

    Raises:
        ValueError: if no query occurs in a document, or every query in all.
    """
    rng = np.random.default_rng(QUERY_SEED)
    texts = [f" {' '.join(word.upper().split())} " for word in words]
    distinct = sorted(set(texts))
    inside = {text for text in distinct if any(text in other for other in distinct if other != text)}
    queries: list[int] = []
    for text in distinct:
        own = [i for i, other in enumerate(texts) if other == text]
        if len(own) > 1 or text in inside:
            queries += rng.permutation(own)[: min(MOST_QUERIES, max(1, len(own) // 2))].tolist()
    chosen = set(queries)
    documents = [i for i in range(len(texts)) if i not in chosen]
    hits = np.zeros((len(queries), len(documents)), bool)
    for row, query in zip(hits, queries):
        row[:] = [texts[query] in texts[document] for document in documents]
    if not queries:
        raise ValueError(
            f"No word of the {len(words)} {split} clips occurs in two of them, so that no query is in any document:"
            " give several clips of each word, or clips whose texts hold the words."
        )
    if hits.all():
        raise ValueError(
            f"Every query of the {len(words)} {split} clips is in every document, so that none can be found in a wrong"
            " one: give clips of several words."
        )
    return Search(queries, documents, hits)


def search_scores(features: FrozenFeatures, search: Search, heartbeat: Heartbeat) -> tuple[np.ndarray, Search]:
    """
    Scores of all pairs in each layer, `(num_layers, num_queries, num_documents)`, higher where the query is heard; and
    the search without the clips that cannot be used.
    """
    numbers = sorted({*search.queries, *search.documents})
    frames = {i: x for i in numbers for x in features[[i]] if x is not None}
    rows, columns = ([n for n, i in enumerate(of) if i in frames] for of in (search.queries, search.documents))
    hits = search.hits[np.ix_(rows, columns)]
    rows = [row for row, found in zip(rows, hits.any(1)) if found]
    if not rows:
        raise ValueError("No query that can be used occurs in a document that can; the log names the clips.")
    kept = Search(
        [search.queries[n] for n in rows], [search.documents[n] for n in columns], search.hits[np.ix_(rows, columns)]
    )
    found = []
    for layer in range(len(next(iter(frames.values())))):
        heartbeat.doing = f"searching with layer {layer}"
        every = torch.cat([x[layer] for x in frames.values()])
        mean, deviation = every.mean(0), every.std(0).clamp_min(1e-9)
        normed = {i: torch.nn.functional.normalize((x[layer] - mean) / deviation, dim=-1) for i, x in frames.items()}
        documents = [normed[i] for i in kept.documents]
        found.append(np.stack([query_scores(normed[i], documents) for i in kept.queries]))
    return np.stack(found), kept


def search_splits(
    features: dict[str, FrozenFeatures], searches: dict[str, Search], heartbeat: Heartbeat
) -> tuple[list[float], dict[str, float], SplitResult]:
    """
    Query by example with each layer; of the test set with the layer that does best on the dev set.

    Returns:
        1 for that layer and 0 for the others; the dev set's metrics there; the test set's outcome.
    """
    scores, found = {}, {}
    for name in searches:
        scores[name], found[name] = search_scores(features[name], searches[name], heartbeat)
    values = [maximum_term_weighted_value(layer, found["dev"].hits) for layer in scores["dev"]]
    best = int(np.argmax(values))
    value = maximum_term_weighted_value(scores["test"][best], found["test"].hits)
    queries, documents = len(found["test"].queries), len(found["test"].documents)
    scored = f"{queries} queries in {documents} clips"
    outcome = SplitResult({"mtwv": value}, queries + documents, scored=scored)
    return [float(layer == best) for layer in range(len(values))], {"mtwv": values[best]}, outcome


def query_scores(query: Tensor, documents: Sequence[Tensor]) -> np.ndarray:
    """
    Scores of a query `(num_frames, size)` in documents of such frames, of norm 1: their DTW distances with the sign
    turned, mean 0 and standard deviation 1.
    """
    if len(query) < FEWEST_FRAMES:
        return np.zeros(len(documents))
    costs = []
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        batch = documents[start : start + DOCUMENTS_AT_ONCE]
        lengths = torch.tensor([len(document) for document in batch])
        padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        missing = ~length_mask(lengths, padded.shape[1])[:, None]  # [B, 1, T]
        distances = (1 - query @ padded.transpose(1, 2)).exp() - 1  # [B, N, T]
        low = distances.masked_fill(missing, torch.inf).amin(-1, keepdim=True)
        high = distances.masked_fill(missing, -torch.inf).amax(-1, keepdim=True)
        distances = (distances - low) / (high - low).clamp_min(1e-9)
        costs.append(subsequence_dtw(distances.masked_fill(missing, torch.inf)))
    scores = -torch.cat(costs).numpy().astype(np.float64)
    return (scores - scores.mean()) / max(scores.std(), 1e-9)


def subsequence_dtw(distances: Tensor) -> Tensor:
    """
    Least mean distance of a path through all frames of the query and any part of the document: from one frame of the
    query to the next the document goes on by 0, 1 or 2 frames (the "asymmetric" steps of dtw-python).

    Args:
        distances: `(num_documents, query_frames, document_frames)`, infinite where a document has ended.

    Returns:
        `(num_documents,)`.
    """
    total = distances[:, 0]
    for frame in range(1, distances.shape[1]):
        before = torch.nn.functional.pad(total, (2, 0), value=torch.inf)
        total = distances[:, frame] + torch.stack([before[:, 2:], before[:, 1:-1], before[:, :-2]]).amin(0)
    return total.amin(-1) / distances.shape[1]


def maximum_term_weighted_value(scores: np.ndarray, hits: np.ndarray) -> float:
    """
    MTWV: the best value, over one threshold for all queries, of 1 - mean(P_miss + 12.49 P_false_alarm), the mean being
    over the queries; 0 for an answer that is always no. A document is one trial; costs and prior are QUESST 2014's.

    Args:
        scores, hits: `(num_queries, num_documents)`.

    Raises:
        ValueError: if a score is not finite, a query has no hit, or all pairs are hits.
    """
    check_finite(scores, "queries in documents")
    if hits.all() or not hits.any(1).all():
        raise ValueError("MTWV needs queries that each occur in a document, and one that is not in every document.")
    gain = 1 / hits.sum(1, keepdims=True)
    loss = BETA / np.maximum((~hits).sum(1, keepdims=True), 1)
    worth = np.where(hits, gain, -loss) / len(scores)
    _, places = np.unique(scores, return_inverse=True)
    accepted = np.cumsum(np.bincount(places.ravel(), weights=worth.ravel())[::-1])
    return float(max(0.0, accepted.max()))
