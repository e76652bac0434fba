"""Training of a head on frozen features, and its answers: the loop that all tasks of SUPERB share."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sjepa_hf.scores import LOWER_IS_BETTER
from training.common.learned import Verdict, judge_classes, judge_texts
from training.common.progress import Heartbeat
from training.evaluation.frozen_features import FrozenFeatures
from training.evaluation.superb.diarization import ActivityLabels
from training.evaluation.superb.heads import CtcHead, DiarizationHead, PooledHead, XVectorHead
from training.evaluation.superb.labels import ClassLabels, TokenLabels, class_mean, score
from training.evaluation.superb.tasks import CLASS_MEAN, SuperbTask
from training.evaluation.superb.verification import SpeakerLabels


BUCKET_BATCHES = 20  # batches among which clips are sorted by length

Head = PooledHead | CtcHead | XVectorHead | DiarizationHead
Labels = ClassLabels | TokenLabels | SpeakerLabels | ActivityLabels


class SplitResult(NamedTuple):
    """
    How well a head does on a split.

    Attributes:
        metrics: by name.
        clips: number of those that could be used.
        verdict: whether its answers have to do with their clips; None where the task cannot say.
        scored: what the metrics are over, in words, where that is not the clips.
    """

    metrics: dict[str, float]
    clips: int
    verdict: Verdict | None = None
    scored: str = ""


def batches(task: SuperbTask, lengths: list[int], classes: list[tuple[int, ...]], seed: int) -> Iterator[list[int]]:
    """
    Endless batches of clip numbers. Each pass is a permutation, or, balanced, as many draws in which all classes are
    equally likely. For texts, the clips of a batch are of similar length.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(classes)
    weights = np.array([1 / counts[c] for c in classes]) / len(counts) if task.balanced else None
    while True:
        drawn = rng.permutation(len(lengths)) if weights is None else rng.choice(len(lengths), len(lengths), p=weights)
        if task.head in ("linear_ctc", "recurrent_ctc"):
            size = BUCKET_BATCHES * task.batch_size
            buckets = [drawn[i : i + size] for i in range(0, len(drawn), size)]
            drawn = np.concatenate([sorted(bucket, key=lambda i: lengths[i]) for bucket in buckets])
        cut = [drawn[i : i + task.batch_size].tolist() for i in range(0, len(drawn), task.batch_size)]
        for i in rng.permutation(len(cut)):
            yield cut[i]


def train(
    head: Head,
    task: SuperbTask,
    features: dict[str, FrozenFeatures],
    labels: Labels,
    seed: int,
    heartbeat: Heartbeat,
) -> tuple[int, dict[str, float]]:
    """Train the head; it ends with the weights of the step that did best on the dev set.

    Returns:
        that step, and the dev set's metrics there.
    """
    clips = features["train"].clips
    targets = labels.encode({column: clips.labels[column] for column in task.columns})
    classes = [tuple(target.tolist()) for target in targets] if task.balanced else []
    drawn = batches(task, clips.num_samples, classes, seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.learning_rate, weight_decay=task.weight_decay)
    best, best_step, best_metrics = {}, 0, {}
    for step in tqdm(range(1, task.max_steps + 1), desc="training", leave=False, disable=None):
        heartbeat.doing = f"training the head: step {step} of {task.max_steps}"
        batch = next(drawn)
        pairs = [(x, targets[i]) for i, x in zip(batch, features["train"][batch]) if x is not None]
        if pairs:
            head.train()
            loss = head.loss(*map(list, zip(*pairs)))
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(head.parameters(), task.max_norm)
            if norm.isfinite():
                optimizer.step()
        if step % task.eval_steps == 0 or step == task.max_steps:
            metrics = evaluate(head, task, features["dev"], labels, "dev").metrics
            if not best or merits(metrics) > merits(best_metrics):
                best_step, best_metrics = step, metrics
                best = {name: value.detach().clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    return best_step, best_metrics


def merits(metrics: dict[str, float]) -> list[float]:
    """Figures to compare steps by, more being better: the first metric, and where it is the same the next."""
    return [-value if name in LOWER_IS_BETTER else value for name, value in metrics.items()]


def evaluate(head: Head, task: SuperbTask, features: FrozenFeatures, labels: Labels, split: str) -> SplitResult:
    """Scores of the head on a split, whose features are given. Raises a ValueError where that is not defined."""
    found = predictions(head, task, features)
    if not found:
        raise ValueError(f"None of the {split} clips can be used; the log names them.")
    if isinstance(labels, SpeakerLabels):
        rate, trials = labels.equal_error_rate(found, split)
        return SplitResult({"eer": rate}, len(found), scored=f"{trials} trials of {len(found)} {split} clips")
    if isinstance(labels, ActivityLabels):
        return SplitResult({"der": labels.error_rate(found, split)}, len(found), scored=f"{len(found)} mixtures")
    references = labels.references({column: features.clips.labels[column] for column in task.columns})
    answers, right = [labels.decode(answer) for answer in found.values()], [references[i] for i in found]
    by_class = task.balanced and split == "dev"
    metrics = {CLASS_MEAN: class_mean(answers, right)} if by_class else score(task.metrics, answers, right)
    return SplitResult(metrics, len(found), verdict(task, labels, answers, right))


def predictions(head: Head, task: SuperbTask, features: FrozenFeatures) -> dict[int, list[int] | Tensor]:
    """Predictions of the head for each clip that can be used, by its number, the longest clips first."""
    head.eval()
    order = np.argsort(features.clips.num_samples)[::-1].tolist()
    found = {}
    for start in range(0, len(order), task.batch_size):
        batch = order[start : start + task.batch_size]
        pairs = [(i, x) for i, x in zip(batch, features[batch]) if x is not None]
        if pairs:
            found |= zip([i for i, _ in pairs], head.predict([x for _, x in pairs]))
    return found


def verdict(task: SuperbTask, labels: Labels, predicted: list[str], references: list[str]) -> Verdict | None:
    """Whether answers have to do with their clips; None where classes of several slots do not say."""
    if task.labels == "classes":
        return judge_classes(predicted, references)
    if isinstance(labels, TokenLabels):
        texts = ([labels.one_character_each(text) for text in texts] for texts in (predicted, references))
        return judge_texts(*texts, "phone" if task.labels == "phones" else "character")
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
