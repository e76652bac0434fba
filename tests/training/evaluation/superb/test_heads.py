import pytest
import torch
from torch import nn

from training.evaluation.superb.heads import (
    CtcHead,
    DiarizationHead,
    LayerSum,
    PooledHead,
    XVectorHead,
    at_length,
    spec_augment,
)


def test_the_mean_may_come_before_the_projection():
    """What SUPERB does, frame by frame, against the means that are kept: the same logits."""
    layers, head = torch.randn(3, 11, 8), PooledHead(LayerSum(3), 8, [4, 2])
    nn.init.normal_(head.layer_sum.scores)
    weighted = (head.layer_sum.scores.softmax(-1)[:, None, None] * layers).sum(0)
    by_frame = head.classifier(head.projector(weighted).mean(0))
    by_mean = torch.cat(head.logits([layers.mean(1)]), dim=-1)[0]
    torch.testing.assert_close(by_mean, by_frame, rtol=1e-5, atol=1e-5)


def test_layer_sum_starts_even_and_learns():
    layers = LayerSum(4)
    assert layers.weights.tolist() == [0.25] * 4
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(layers(x), x.mean(0))
    layers(x).square().sum().backward()
    assert layers.scores.grad.abs().min() > 0


def test_statistics_norm_each_dimension():
    x = torch.randn(1, 200, 3) * torch.tensor([1.0, 50.0, 0.1]) + torch.tensor([0.0, -200.0, 1.0])
    normed = LayerSum(1, (x.mean(1), x.std(1, correction=0)))(x)
    torch.testing.assert_close(normed.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    two = torch.cat([x, -7 * x])  # each layer by its own
    normed = LayerSum(2, (two.mean(1), two.std(1, correction=0)))(two)
    torch.testing.assert_close(normed, torch.zeros(200, 3), atol=1e-3, rtol=0)


def test_pooled_loss_sums_over_columns():
    head = PooledHead(LayerSum(2), 8, [3, 5])
    features, targets = [torch.randn(2, 8) for _ in range(4)], [torch.tensor([i % 3, i]) for i in range(4)]
    one, other = head.logits(features)
    wanted = nn.functional.cross_entropy(one, torch.tensor([0, 1, 2, 0]))
    wanted = wanted + nn.functional.cross_entropy(other, torch.arange(4))
    torch.testing.assert_close(head.loss(features, targets), wanted)
    assert head.predict(features) == torch.stack([one.argmax(1), other.argmax(1)], 1).tolist()


@pytest.mark.parametrize(
    ("recurrent", "stacked", "frames"), [(True, 1, [30, 7, 19]), (False, 1, [30, 7, 19]), (False, 4, [8, 2, 5])]
)
def test_padding_does_not_reach_a_clip(recurrent, stacked, frames):
    head = CtcHead(LayerSum(2), 8, 5, recurrent, augment=True, units=6, stacked_frames=stacked).eval()
    clips = [torch.randn(2, length, 8) for length in (30, 7, 19)]
    together, lengths = head.logits(clips)
    assert lengths.tolist() == frames
    for i, (clip, length) in enumerate(zip(clips, frames)):
        torch.testing.assert_close(together[i, :length], head.logits([clip])[0][0], rtol=1e-4, atol=1e-5)
    assert head.predict(clips) == [head.predict([clip])[0] for clip in clips]


def test_ctc_prediction_leaves_out_repeats_and_blanks(monkeypatch):
    head = CtcHead(LayerSum(1), 8, 4, recurrent=False)
    frames = torch.tensor([[2, 2, 0, 2, 3, 3, 1], [1, 1, 1, 3, 2, 2, 2]])
    logits = nn.functional.one_hot(frames, 4).float(), torch.tensor([7, 3])
    monkeypatch.setattr(head, "logits", lambda features: logits)
    assert head.predict([]) == [[2, 2, 3, 1], [1]]


def test_stacked_frames_are_neighbours_and_read_by_more_than_a_linear_map():
    head = CtcHead(LayerSum(1), 2, 3, recurrent=False, stacked_frames=2)
    frames = torch.arange(10.0).view(5, 2)
    assert head._stacked(frames).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    logits = [head.logits([scale * frames[None]])[0] for scale in (-1, 0, 1)]
    assert not torch.allclose(logits[0] + logits[2], 2 * logits[1])
    plain = CtcHead(LayerSum(1), 2, 3, recurrent=False)
    logits = [plain.logits([scale * frames[None]])[0] for scale in (-1, 0, 1)]
    torch.testing.assert_close(logits[0] + logits[2], 2 * logits[1])


@pytest.mark.parametrize(("recurrent", "stacked"), [(True, 1), (False, 1), (False, 2)])
def test_ctc_heads_learn(recurrent, stacked):
    head = CtcHead(LayerSum(2), 8, 3, recurrent, units=12, stacked_frames=stacked)
    features, targets = [torch.randn(2, 6, 8) for _ in range(3)], [torch.tensor(t) for t in ([1, 2], [2], [1])]
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(head.loss(features, targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert head.layer_sum.weights.std() > 0.01


def test_a_text_longer_than_its_clip_costs_nothing():
    """No alignment is possible: an infinite loss would keep the whole batch from being learned from."""
    head = CtcHead(LayerSum(1), 8, 3, recurrent=False)
    features, targets = [torch.randn(1, 6, 8), torch.randn(1, 2, 8)], [torch.tensor([1, 2]), torch.tensor([1] * 5)]
    torch.testing.assert_close(2 * head.loss(features, targets), head.loss(features[:1], targets[:1]))


def test_both_layers_of_the_recurrent_head_drop_a_fifth():
    head, read = CtcHead(LayerSum(1), 8, 3, recurrent=True, units=64), []
    head.classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    head.logits([torch.randn(1, 50, 8)])
    assert 0.15 < (read[0] == 0).float().mean() < 0.25 and head.rnn.dropout == 0.2


def test_spec_augment_warps_and_masks_in_training_only():
    frames = torch.arange(1.0, 401)[:, None].expand(400, 768).contiguous()
    augmented = [spec_augment(frames) for _ in range(20)]
    assert all(x.shape == frames.shape for x in augmented)
    hidden = torch.stack([(x == 0).float() for x in augmented])
    assert 0.05 < hidden.all(2).float().mean() < 0.14 and 0.08 < hidden.all(1).float().mean() < 0.2
    shift = max((x[x[:, k] > 0] - frames[x[:, k] > 0])[:, k].abs().max() for x in augmented for k in (0, 767))
    assert 0.5 < shift < 6.5
    assert spec_augment(torch.ones(1, 4)).shape == (1, 4)
    head = CtcHead(LayerSum(1), 8, 4, recurrent=False, augment=True)
    x = [torch.randn(1, 60, 8)]
    assert not torch.equal(head.train().logits(x)[0], head.logits(x)[0])
    assert torch.equal(head.eval().logits(x)[0], head.logits(x)[0])


def test_an_x_vector_is_of_its_own_frames():
    """Padding reaches no clip, and each frame layer reads what S3PRL's does: 15 frames in all."""
    head = XVectorHead(LayerSum(2), 8, 3, units=6).eval()
    clips = [10 * torch.randn(2, length, 8) for length in (40, 17, 3, 1)]
    torch.nn.init.constant_(head.projector.bias, 1.0)
    for weight in head.frame_layers.parameters():
        weight.data *= 3  # as they begin, biases drown what the frames are
    together = head.predict(clips)
    for clip, vector in zip(clips, together):
        assert vector.shape == (6,)
        torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
        torch.testing.assert_close(vector, head.predict([clip])[0], rtol=1e-4, atol=1e-5)
    assert head.frame_layers(torch.randn(1, 6, 15)).shape == (1, 18, 1), "1500 are to 512 as 18 to 6"


def test_statistics_of_an_x_vector_by_hand():
    head = XVectorHead(LayerSum(1), 4, 2, units=4).eval()
    clip = torch.randn(1, 30, 4)
    frames = head.frame_layers(head.projector(clip[0]).T[None])[0]  # [W, 16]
    statistics = torch.cat([frames.mean(1), frames.std(1).clamp_min(1e-5)])
    torch.testing.assert_close(head.embeddings([clip])[0], head.embedding(statistics).relu(), rtol=1e-4, atol=1e-5)


def test_the_right_speaker_must_lead_by_a_margin():
    """Against AM-softmax as it is written in the paper (arXiv 1801.05599)."""
    head = XVectorHead(LayerSum(1), 8, 3, units=6)
    clips, speakers = [torch.randn(1, 20, 8) for _ in range(4)], [0, 2, 1, 1]
    vectors = head.last(head.embeddings(clips)).relu()
    wanted = 0.0
    for vector, speaker in zip(vectors, speakers):
        cosines = nn.functional.cosine_similarity(vector[None], head.speakers)
        lead = (30 * (cosines[speaker] - 0.4)).exp()
        wanted = wanted - (lead / (lead + sum((30 * cosines[i]).exp() for i in range(3) if i != speaker))).log() / 4
    torch.testing.assert_close(head.loss(clips, [torch.tensor([i]) for i in speakers]), wanted)


def test_long_clips_are_cut_at_random_in_training_alone():
    head = XVectorHead(LayerSum(1), 4, 2, units=4)
    clip, target = torch.randn(1, 900, 4), [torch.tensor([0])]
    assert len({head.loss([clip], target).item() for _ in range(5)}) == 5
    assert torch.equal(head.predict([clip])[0], head.predict([clip])[0])
    short = clip[:, :400]
    assert head.loss([short], target).item() == head.loss([short], target).item(), "8 s are taken whole"


def test_the_order_of_the_speakers_does_not_matter():
    """Each clip of a batch has the order that costs it less, and padding costs nothing."""
    head = DiarizationHead(LayerSum(2), 8, units=6)
    clips = [torch.randn(2, length, 8) for length in (12, 5)]
    targets = [torch.randint(2, (length, 2)).float() for length in (12, 5)]
    wanted = 0.0
    for clip, target in zip(clips, targets):
        logits = head.logits([clip])[0]
        both = [nn.functional.binary_cross_entropy_with_logits(logits, x) for x in (target, target.flip(-1))]
        wanted = wanted + min(both) * len(target) / 17
    torch.testing.assert_close(head.loss(clips, targets), wanted)
    torch.testing.assert_close(head.loss(clips, [targets[0].flip(-1), targets[1]]), wanted)
    halved = [targets[0][::2], targets[1]]  # frames of 20 ms, features of 10
    repeated = [targets[0][::2].repeat_interleave(2, 0), targets[1]]
    torch.testing.assert_close(head.loss(clips, halved), head.loss(clips, repeated))
    assert at_length(torch.arange(9.0)[:, None], 3).tolist() == [[1], [4], [7]], "those in the middle"
    for clip, logits in zip(clips, head.predict(clips)):
        torch.testing.assert_close(logits, head.logits([clip])[0].detach(), rtol=1e-4, atol=1e-5)
