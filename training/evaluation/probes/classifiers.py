"""Classifiers of the probes: logistic regression and a small MLP on frozen features, and their accuracy."""

import joblib
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from training.common.device import default_device
from training.evaluation.probes.tasks import ProbeTask


def score_linear(features: np.ndarray, classes: np.ndarray, fit: np.ndarray, score: np.ndarray) -> float:
    """Accuracy on rows `score` of a logistic regression fitted on rows `fit` of features `(num_rows, D)`."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, solver="lbfgs", max_iter=2000))
    classifier.fit(features[fit], classes[fit])
    return float(classifier.score(features[score], classes[score]))


def score_mlp(
    features: np.ndarray, classes: np.ndarray, fit: np.ndarray, score: np.ndarray, seed: int, epochs: int = 20
) -> float:
    """Accuracy on rows `score` of the paper's MLP, fitted on rows `fit` of features `(num_rows, D)`."""
    device = default_device()
    names, numbers = np.unique(classes, return_inverse=True)
    scaler = StandardScaler().fit(features[fit])
    inputs, targets = torch.from_numpy(scaler.transform(features)).to(device), torch.from_numpy(numbers).to(device)
    rows = torch.from_numpy(fit).to(device)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        size, layers = inputs.shape[1], []
        for _ in range(2):
            layers += [nn.Linear(size, 256), nn.ReLU(), nn.Dropout(0.1)]
            size = 256
        model = nn.Sequential(*layers, nn.Linear(size, len(names))).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for batch in rows[torch.randperm(len(rows), device=device)].split(512):
                loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    held_out = torch.from_numpy(score).to(device)
    with torch.inference_mode():
        found = model.eval()(inputs[held_out]).argmax(-1)
    return (found == targets[held_out]).float().mean().item()


def accuracies(task: ProbeTask, classifier: str, features: np.ndarray, seed: int, n_jobs: int) -> np.ndarray:
    """Accuracy of a classifier on features `(num_layers, num_rows, D)`: `(num_layers, num_splits)`."""
    pairs = [(layer, *split) for layer in features for split in task.splits]
    if classifier == "linear":
        fits = (joblib.delayed(score_linear)(layer, task.classes, *split) for layer, *split in pairs)
        found = joblib.Parallel(n_jobs)(fits)
    else:
        found = [score_mlp(layer, task.classes, *split, seed) for layer, *split in pairs]
    return np.array(found).reshape(len(features), len(task.splits))
