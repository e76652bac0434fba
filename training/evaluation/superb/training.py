"""Training of a head on frozen features, and its answers: the loop that all tasks of SUPERB share."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.common.learned import Verdict, judge_classes, judge_texts
from training.common.progress import Heartbeat
from training.evaluation.frozen_features import FrozenFeatures
from training.evaluation.superb.heads import CtcHead, PooledHead
from training.evaluation.superb.labels import ClassLabels, TokenLabels, score
from training.evaluation.superb.tasks import HIGHER_IS_BETTER, Task


BUCKET_BATCHES = 20  # batches among which clips are sorted by length

Head = PooledHead | CtcHead
Labels = ClassLabels | TokenLabels


def batches(task: Task, lengths: list[int], classes: list[tuple[int, ...]], seed: int) -> Iterator[list[int]]:
    """
    Endless batches of clip numbers. Each pass is a permutation, or, balanced, as many draws in which all classes are
    equally likely. For sequences, the clips of a batch are of similar length.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(classes)
    weights = np.array([1 / counts[c] for c in classes]) / len(counts) if task.balanced else None
    while True:
        drawn = rng.permutation(len(lengths)) if weights is None else rng.choice(len(lengths), len(lengths), p=weights)
        if task.head != "pooled":
            size = BUCKET_BATCHES * task.batch_size
            buckets = [drawn[i : i + size] for i in range(0, len(drawn), size)]
            drawn = np.concatenate([sorted(bucket, key=lambda i: lengths[i]) for bucket in buckets])
        cut = [drawn[i : i + task.batch_size].tolist() for i in range(0, len(drawn), task.batch_size)]
        for i in rng.permutation(len(cut)):
            yield cut[i]


def train(
    head: Head,
    task: Task,
    features: dict[str, FrozenFeatures],
    labels: Labels,
    seed: int,
    heartbeat: Heartbeat | None = None,
) -> tuple[int, dict[str, float]]:
    """Train the head; it ends with the weights of the step that did best on the dev set.

    Returns:
        that step, and the dev set's metrics there.
    """
    heartbeat = heartbeat or Heartbeat("training the head")
    clips = features["train"].clips
    targets = labels.encode({column: clips.labels[column] for column in task.columns})
    classes = [tuple(target.tolist()) for target in targets] if task.balanced else []
    drawn = batches(task, clips.num_samples, classes, seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=task.learning_rate)
    best, best_step, best_metrics = {}, 0, {}
    first = task.metrics[0]
    for step in tqdm(range(1, task.max_steps + 1), desc="training", leave=False, disable=None):
        heartbeat.doing = f"training the head: step {step} of {task.max_steps}"
        batch = next(drawn)
        pairs = [(x, targets[i]) for i, x in zip(batch, features["train"][batch]) if x is not None]
        if pairs:
            head.train()
            loss = head.loss(*map(list, zip(*pairs)))
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            if norm.isfinite():
                optimizer.step()
        if step % task.eval_steps == 0 or step == task.max_steps:
            metrics, _ = evaluate(head, task, features["dev"], labels)
            gain = metrics[first] - best_metrics[first] if best else 0.0
            if not best or (gain > 0 if HIGHER_IS_BETTER[first] else gain < 0):
                best_step, best_metrics = step, metrics
                best = {name: value.detach().clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    return best_step, best_metrics


def evaluate(head: Head, task: Task, features: FrozenFeatures, labels: Labels) -> tuple[dict[str, float], int]:
    """Metrics over all clips that can be decoded, and the number of those."""
    predicted, references = answers(head, task, features, labels)
    return score(task.metrics, predicted, references), len(predicted)


def answers(head: Head, task: Task, features: FrozenFeatures, labels: Labels) -> tuple[list[str], list[str]]:
    """What the head answers and what is right, of all clips that can be decoded, longest first."""
    head.eval()
    clips = features.clips
    references = labels.references({column: clips.labels[column] for column in task.columns})
    order = np.argsort(clips.num_samples)[::-1].tolist()
    predicted: dict[int, str] = {}
    for start in range(0, len(order), task.batch_size):
        batch = order[start : start + task.batch_size]
        pairs = [(i, x) for i, x in zip(batch, features[batch]) if x is not None]
        if pairs:
            for (i, _), answer in zip(pairs, head.predict([x for _, x in pairs])):
                predicted[i] = labels.decode(answer)
    return list(predicted.values()), [references[i] for i in predicted]


def verdict(task: Task, labels: Labels, predicted: list[str], references: list[str]) -> Verdict | None:
    """Whether answers have to do with their clips; None where classes of several slots do not say."""
    if task.labels == "classes":
        return judge_classes(predicted, references)
    if isinstance(labels, TokenLabels):
        return judge_texts(*([labels.one_character_each(text) for text in texts] for texts in (predicted, references)))
    return None


def statistics(features: FrozenFeatures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each layer's features, both `(num_layers, hidden_size)`, over all that a head is
    trained on: frames, or pooled clips."""
    count, total, squares = 0, 0.0, 0.0
    for i in range(len(features)):
        (x,) = features[[i]]
        if x is not None:
            x = x.double().reshape(x.shape[0], -1, x.shape[-1])
            count, total, squares = count + x.shape[1], total + x.sum(1), squares + x.square().sum(1)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(1e-10).sqrt().float()
