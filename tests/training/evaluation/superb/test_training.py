from dataclasses import replace

import numpy as np
import pytest
import torch

from training.common.progress import Heartbeat
from training.evaluation.superb import training as superb_training
from training.evaluation.superb.heads import LayerSum, PooledHead
from training.evaluation.superb.labels import ClassLabels
from training.evaluation.superb.tasks import TASKS
from training.evaluation.superb.training import merits, statistics


def test_balanced_batches_draw_all_classes_alike():
    classes = [(0,)] * 90 + [(1,)] * 10
    drawn = superb_training.batches(TASKS["ks"], [1] * 100, classes, seed=0)
    share = np.mean([i >= 90 for _ in range(100) for i in next(drawn)])
    assert 0.45 < share < 0.55
    plain = superb_training.batches(TASKS["sid"], [1] * 100, [], seed=0)
    assert sorted(i for _ in range(4) for i in next(plain)) == list(range(100))


def test_classes_count_alike_where_the_step_is_chosen():
    """Four clips of one class are right, the one of the other is wrong."""

    class Features:
        class clips:
            labels, num_samples = {"label": ["a"] * 4 + ["b"]}, [1] * 5

        def __getitem__(self, indices):
            return [torch.ones(1, 4)] * len(indices)

    head, labels = PooledHead(LayerSum(1), 4, [2]), ClassLabels(Features.clips.labels)
    torch.nn.init.zeros_(head.classifier.weight)
    head.classifier.bias.data = torch.tensor([1.0, 0.0])
    found = {
        (name, split): superb_training.evaluate(
            head, replace(TASKS[name], columns=("label",)), Features(), labels, split
        )
        for name, split in (("ks", "dev"), ("ks", "test"), ("sid", "dev"))
    }
    metrics = [outcome.metrics for outcome in found.values()]
    assert metrics == [{"class_mean_accuracy": 0.5}, {"accuracy": 0.8}, {"accuracy": 0.8}]
    Features.__getitem__ = lambda self, indices: [None] * len(indices)
    with pytest.raises(ValueError, match="None of the dev clips can be used"):
        superb_training.evaluate(head, TASKS["sid"], Features(), labels, "dev")


def test_each_answer_is_compared_with_its_own_clip():
    """Whatever the order of the clips, and though one of a batch cannot be used."""

    class Features:
        class clips:
            labels, num_samples = {"label": ["a", "b", "a", "b", "b"]}, [3, 9, 2, 7, 5]

        def __getitem__(self, indices):
            signs = [-1.0 if self.clips.labels["label"][i] == "a" else 1.0 for i in indices]
            return [None if i == 3 else torch.full((1, 1), sign) for i, sign in zip(indices, signs)]

    head, labels = PooledHead(LayerSum(1), 1, [2]), ClassLabels(Features.clips.labels)
    for weight in head.projector.parameters():
        torch.nn.init.constant_(weight, float(weight.dim() == 2))
    head.classifier.weight.data = torch.tensor([[-1.0], [1.0]]).expand(2, 256).clone()
    task = replace(TASKS["sid"], columns=("label",))
    outcome = superb_training.evaluate(head, task, Features(), labels, "test")
    assert (outcome.metrics, outcome.clips) == ({"accuracy": 1.0}, 4)


def test_sequences_of_similar_length_go_together():
    lengths = np.random.default_rng(0).integers(1, 1000, 640).tolist()
    drawn = superb_training.batches(TASKS["asr"], lengths, [], seed=0)
    first = [next(drawn) for _ in range(20)]
    assert sorted(i for batch in first for i in batch) == list(range(640))
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in first]) < 100
    assert np.diff([lengths[batch[0]] for batch in first]).min() < 0, "not from the short ones to the long ones"


def test_equal_steps_are_told_apart_by_the_next_metric():
    first, better = {"wer": 1.0, "cer": 0.9}, {"wer": 1.0, "cer": 0.4}
    assert merits(better) > merits(first) and not merits(first) > merits(dict(first))
    assert merits({"slot_type_f1": 0.5, "slot_value_cer": 0.1}) > merits({"slot_type_f1": 0.4, "slot_value_cer": 0.0})


def test_the_best_step_is_that_of_the_dev_set(monkeypatch):
    head, task = PooledHead(LayerSum(1), 4, [2]), replace(TASKS["sid"], columns=("who",), max_steps=5, eval_steps=1)
    dev, seen = [0.2, 0.7, 0.7, 0.6, 0.1], []

    def evaluate(head, *_):
        seen.append(head.classifier.weight.detach().clone())
        return superb_training.SplitResult({"accuracy": dev[len(seen) - 1]}, 3)

    class Clips:
        labels, num_samples = {"who": ["a", "b", "a"]}, [1, 1, 1]

    class Features:
        clips = Clips

        def __getitem__(self, indices):
            return [torch.ones(1, 4) * (i + 1) for i in indices]

    monkeypatch.setattr(superb_training, "evaluate", evaluate)
    features = {"train": Features(), "dev": Features()}
    step, metrics = superb_training.train(head, task, features, ClassLabels(Clips.labels), 0, Heartbeat("training"))
    assert (step, metrics) == (2, {"accuracy": 0.7})
    assert torch.equal(head.classifier.weight, seen[1]) and not torch.equal(seen[1], seen[4])


@pytest.mark.parametrize(("rate", "decay"), [(0.01, 0.0), (0.001, 5.0)])
def test_a_step_is_as_large_as_the_task_says(monkeypatch, rate, decay):
    """Adam's first step moves each weight by the learning rate; gradients that are not finite move nothing."""

    class Features:
        class clips:
            labels, num_samples = {"who": ["a", "b"]}, [1, 1]

        def __init__(self, scale):
            self.scale = scale

        def __getitem__(self, indices):
            return [self.scale * torch.randn(1, 4) for _ in indices]

    settings = {"max_steps": 1, "learning_rate": rate, "weight_decay": decay, "max_norm": 7.0}
    task = replace(TASKS["sid"], columns=("who",), **settings)
    outcome = superb_training.SplitResult({"accuracy": 0.5}, 2)
    monkeypatch.setattr(superb_training, "evaluate", lambda *_: outcome)
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda weights, norm: norms.append(norm) or clip(weights, norm)
    )
    for scale, factor, moved in ((1.0, 1 - rate * decay, rate), (torch.nan, 1.0, 0.0)):
        head = PooledHead(LayerSum(1), 4, [2])
        before = head.projector.weight.detach().clone()
        features = dict.fromkeys(("train", "dev"), Features(scale))
        superb_training.train(head, task, features, ClassLabels(Features.clips.labels), 0, Heartbeat("training"))
        change = (head.projector.weight.detach() - factor * before).abs()
        torch.testing.assert_close(change, torch.full_like(change, moved), rtol=0.02, atol=1e-7)
    assert norms == [7.0, 7.0]


@pytest.mark.parametrize("pooled", [False, True])
def test_statistics_are_those_of_all_frames_or_pooled_clips(pooled):
    """Of each layer and dimension; a clip that cannot be used counts in neither. Large means lose no digits."""

    class Features(list):
        def __getitem__(self, indices):
            return [list.__getitem__(self, i) for i in indices]

    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4)] * 5 if pooled else [(3, frames, 4) for frames in (7, 1, 20)]
    clips = [torch.randn(shape, generator=generator) * torch.arange(1.0, 5) + 100 for shape in shapes]
    mean, deviation = statistics(Features([clips[0], None, *clips[1:]]))
    frames = torch.cat([clip.double().reshape(3, -1, 4) for clip in clips], dim=1)
    torch.testing.assert_close(mean, frames.mean(1).float())
    torch.testing.assert_close(deviation, frames.std(1, correction=0).float())
