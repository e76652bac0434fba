import numpy as np
import torch

from training.evaluation.layer_features_of_clips import Rows
from training.evaluation.probes import classifiers
from training.evaluation.probes.classifiers import accuracies, score_linear, score_mlp
from training.evaluation.probes.tasks import ProbeTask


def test_the_mlp_learns_what_no_linear_classifier_can():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 2)).astype(np.float32)
    classes = np.where(features[:, 0] * features[:, 1] > 0, "same", "unlike")
    fit, score = np.arange(900), np.arange(900, 1200)
    before = torch.random.get_rng_state()
    assert (
        score_linear(features, classes, fit, score) < 0.65 < 0.965 < score_mlp(features, classes, fit, score, seed=0)
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_mlp_sees_nothing_but_the_rows_of_its_split():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    features = (rng.standard_normal((500, 8)) + np.eye(8)[labels]).astype(np.float32)
    fit, score = np.arange(300), np.arange(300, 400)
    found = [score_mlp(features, labels, fit, score, seed, epochs=3) for seed in range(4)]
    assert len(set(found)) > 1, "seeds begin with other weights"
    features[400:], labels[400:] = 1e6 * features[400:], labels[400:][::-1].copy()
    assert [score_mlp(features, labels, fit, score, seed, epochs=3) for seed in range(4)] == found


def test_accuracy_on_separable_and_on_meaningless_features():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 800)
    classes, rows = labels.astype(str), np.arange(800)
    fit, score = rows[rows % 2 == 0], rows[rows % 2 == 1]
    noise = rng.standard_normal((800, 8))
    told = 4 * np.eye(8)[labels]
    assert score_linear(noise + told, classes, fit, score) > 0.95
    assert score_linear(noise, classes, fit, score) < 0.35
    # The score is that of the rows to score: features that tell the labels of the rows to fit alone are worth nothing.
    assert score_linear(noise + told * (rows % 2 == 0)[:, None], classes, fit, score) < 0.35


def test_accuracies_stand_by_layer_and_split(monkeypatch):
    rng = np.random.default_rng(0)
    classes = np.array(["a", "b"] * 30)
    told = np.where(classes == "a", 1.0, -1.0)[:, None] + 0.01 * rng.normal(size=(60, 2))
    splits = [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]
    task = ProbeTask(Rows(np.arange(60), np.arange(60)), classes, splits, ("linear", "mlp"), "recordings", {})
    features = np.stack([rng.normal(size=(60, 2)), told]).astype(np.float32)
    seeds = []
    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "score_mlp", lambda *options: seeds.append(options[-1]) or 0.5)
        accuracies(task, "mlp", features, seed=7, n_jobs=1)
    assert seeds == [7] * 4
    for classifier in task.classifiers:
        found = accuracies(task, classifier, features, seed=0, n_jobs=1)
        assert found.shape == (2, 2) and (found[1] == 1).all() and (found[0] < 0.9).all()
