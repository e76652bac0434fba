import numpy as np
import pytest
import torch

from training.common.progress import Heartbeat
from training.evaluation.superb import query_by_example
from training.evaluation.superb.query_by_example import (
    BETA,
    Search,
    make_search,
    maximum_term_weighted_value,
    query_scores,
    search_scores,
    search_splits,
    subsequence_dtw,
)


def naive_distance(query, document):
    """Cosine distances, normed by row, and DTW as they are written on paper, a cell at a time."""
    cosines = query @ document.T / np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(document, axis=1))
    distances = np.exp(1 - cosines) - 1
    low, high = distances.min(1, keepdims=True), distances.max(1, keepdims=True)
    distances = (distances - low) / (high - low)
    total = np.full(distances.shape, np.inf)
    total[0] = distances[0]
    for i in range(1, len(query)):
        for j in range(len(document)):
            total[i, j] = distances[i, j] + min(total[i - 1, k] for k in (j, j - 1, j - 2) if k >= 0)
    return total[-1].min() / len(query)


def test_scores_are_those_of_a_naive_search():
    rng = np.random.default_rng(0)
    query, documents = rng.standard_normal((9, 4)), [rng.standard_normal((n, 4)) for n in (3, 20, 11, 6)]
    wanted = -np.array([naive_distance(query, document) for document in documents])
    wanted = (wanted - wanted.mean()) / wanted.std()
    normed = [torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in (query, *documents)]
    np.testing.assert_allclose(query_scores(normed[0], normed[1:]), wanted, atol=1e-9)
    assert query_scores(normed[0][:4], normed[1:]).tolist() == [0, 0, 0, 0], "too short to tell"
    assert query_scores(normed[0][:5], normed[1:]).any()
    assert query_scores(normed[0], normed[1:2] * 3) == pytest.approx(0, abs=1e-6), "all alike"


def test_features_are_normed_in_each_dimension_of_each_layer(monkeypatch):
    """Over the frames of all clips; and no document is lost that comes in a later batch."""
    monkeypatch.setattr(query_by_example, "DOCUMENTS_AT_ONCE", 2)
    rng, scale = np.random.default_rng(0), np.array([1.0, 20.0, 0.1, 3.0])
    clips = [scale * (rng.standard_normal((2, n, 4)) + 2) for n in (6, 9, 8, 12, 10, 7)]
    search = Search([4, 0], [1, 2, 3, 5], np.eye(2, 4, dtype=bool))
    found, _ = search_scores(Features(list(map(torch.from_numpy, clips))), search, Heartbeat(""))
    for layer in (0, 1):
        every = np.concatenate([clip[layer] for clip in clips])
        normed = [(clip[layer] - every.mean(0)) / every.std(0, ddof=1) for clip in clips]
        wanted = -np.array([[naive_distance(normed[q], normed[d]) for d in search.documents] for q in search.queries])
        wanted = (wanted - wanted.mean(1, keepdims=True)) / wanted.std(1, keepdims=True)
        np.testing.assert_allclose(found[layer], wanted, atol=1e-9)


def test_the_document_may_begin_and_end_anywhere():
    distances = torch.ones(1, 3, 8)
    distances[0, [0, 1, 2], [4, 5, 7]] = 0  # two frames on at most
    assert subsequence_dtw(distances).tolist() == [0]
    distances[0, 2, 7] = 1
    assert subsequence_dtw(distances).item() == pytest.approx(1 / 3)


def naive_mtwv(scores, hits):
    values = [0.0]
    for threshold in scores.ravel():
        yes = scores >= threshold
        miss = (hits & ~yes).sum(1) / hits.sum(1)
        alarm = (~hits & yes).sum(1) / (~hits).sum(1)
        values.append(1 - np.mean(miss + 12.49 * alarm))
    return max(values)


@pytest.mark.parametrize("ties", [False, True])
def test_the_value_is_that_of_the_best_threshold(ties):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hits = rng.random((6, 30)) < 0.2
        hits[:, 0] = True
        scores = rng.standard_normal(hits.shape) + 3 * hits
        scores = scores.round(0) if ties else scores
        assert maximum_term_weighted_value(scores, hits) == pytest.approx(naive_mtwv(scores, hits), abs=1e-9)
    assert pytest.approx(12.49) == BETA


def test_values_by_hand():
    hits = np.array([[True, False, False], [False, True, False]])
    assert maximum_term_weighted_value(hits * 1.0, hits) == pytest.approx(1)
    assert maximum_term_weighted_value(1.0 - hits, hits) == 0, "always no"
    assert maximum_term_weighted_value(np.array([[3.0, 1, 1], [1, 1, 1]]), hits) == pytest.approx(0.5)


def test_values_that_are_not_defined_are_refused():
    hits = np.array([[True, False], [False, True]])
    with pytest.raises(ValueError, match="1 of 4 scores of queries in documents are NaN or infinite"):
        maximum_term_weighted_value(np.array([[1, np.nan], [0, 1]]), hits)
    for undefined in (np.ones((2, 2), bool), np.array([[True, False], [False, False]])):
        with pytest.raises(ValueError, match="MTWV needs queries that each occur"):
            maximum_term_weighted_value(hits * 1.0, undefined)


def test_queries_and_documents():
    words = ["yes"] * 8 + ["no"] * 3 + ["Turn  it", "please turn it off", "unheard"]
    search = make_search(words, "test")
    assert search[:2] == make_search(words, "test")[:2]
    assert sorted(words[q] for q in search.queries) == ["Turn  it", "no", "yes", "yes", "yes"]
    assert sorted([*search.queries, *search.documents]) == list(range(14))
    for row, query in zip(search.hits, search.queries):
        found = {search.documents[n] for n in np.flatnonzero(row)}
        same = {i for i in search.documents if words[i] == words[query]}
        assert found == ({12} if words[query] == "Turn  it" else same)


@pytest.mark.parametrize("words", [["a", "b", "ab"], ["a"], ["one two", "two one"]])
def test_queries_that_occur_nowhere_get_a_sentence(words):
    with pytest.raises(ValueError, match=f"No word of the {len(words)} dev clips occurs in two of them, so"):
        make_search(words, "dev")


def test_a_single_word_gets_a_sentence():
    with pytest.raises(ValueError, match="Every query of the 4 dev clips is in every document, so"):
        make_search(["yes"] * 4, "dev")


class Features:
    def __init__(self, clips):
        self.clips = clips

    def __getitem__(self, indices):
        return [self.clips[i] for i in indices]


def clips_of_two_words(layer: int = 1) -> list[torch.Tensor]:
    """Twelve clips of two layers, of which one holds the words in turn, the other noise."""
    torch.manual_seed(0)
    words = torch.randn(2, 12, 6)

    def clip(word):
        layers = [torch.randn(20, 6), torch.cat([torch.randn(4, 6), words[word], torch.randn(4, 6)])]
        return torch.stack(layers if layer == 1 else layers[::-1])

    return [clip(i % 2) for i in range(12)]


def test_each_layer_is_searched_and_bad_clips_are_left_out():
    clips = clips_of_two_words()
    hits = np.array([[i % 2 == q for i in range(4, 12)] for q in (0, 1, 0)])
    search, clips[2] = Search([0, 1, 2], list(range(4, 12)), hits), None
    scores, kept = search_scores(Features(clips), search, Heartbeat(""))
    assert scores.shape == (2, 2, 8) and kept.queries == [0, 1] and kept.hits.shape == (2, 8)
    assert maximum_term_weighted_value(scores[1], kept.hits) == pytest.approx(1)
    assert maximum_term_weighted_value(scores[0], kept.hits) < 0.9
    of_one_word = [clip if i % 2 == 0 or i < 4 else None for i, clip in enumerate(clips)]
    assert search_scores(Features(of_one_word), search, Heartbeat(""))[1].queries == [0], "the other's are all bad"
    with pytest.raises(ValueError, match="No query that can be used occurs in a document"):
        search_scores(Features([None] * 12), search, Heartbeat(""))


def test_the_layer_is_chosen_on_the_dev_set():
    hits = np.array([[i % 2 == q for i in range(2, 12)] for q in (0, 1)])
    search = Search([0, 1], list(range(2, 12)), hits)
    features = {"dev": Features(clips_of_two_words(1)), "test": Features(clips_of_two_words(0))}
    fewer = Search([1, 0], list(range(3, 12)), hits[::-1, 1:])
    weights, dev, outcome = search_splits(features, {"dev": search, "test": fewer}, Heartbeat(""))
    assert weights == [0, 1] and dev == {"mtwv": pytest.approx(1)}
    assert outcome.metrics["mtwv"] < 0.9 and (outcome.clips, outcome.scored) == (11, "2 queries in 9 clips")
    features["test"] = features["dev"]
    assert search_splits(features, {"dev": search, "test": fewer}, Heartbeat(""))[2].metrics["mtwv"] == pytest.approx(
        1
    )
