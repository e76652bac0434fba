import hashlib
import math
import pickle

import pytest
import torch

from training.data.masking import FARTHEST, PUBLISHED_MASK, MelMask, SpanMask, distance_to_visible


DRAWN = ["03d5f8db5b66dd1f", "dbd3b58ad5007023"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_mask(length: int, mask_prob: float, span: int, rng: torch.Generator) -> torch.Tensor:
    """The same rule, span by span: starts drawn with replacement until the target is met."""
    mask = torch.zeros(length, dtype=torch.bool)
    if length < 2:
        return mask
    target = min(max(round(mask_prob * length), 1), length - 1)
    span = min(span, length - target)
    while mask.sum() < target:
        start = int(torch.randint(1 - span, length, (), generator=rng))
        mask[max(start, 0) : start + span] = True
    return mask


@pytest.mark.parametrize("mask_prob, span", [(0.65, 10), (0.65, 1), (0.8, 5), (0.3, 30), (0.99, 10), (0.01, 10)])
def test_target_is_met_within_one_span_at_every_length(mask_prob, span):
    lengths = torch.arange(0, 801)
    mask = SpanMask(mask_prob, span)(lengths, 810, generator())
    assert mask.shape == (801, 810) and mask.dtype == torch.bool
    for length, row in zip(lengths.tolist(), mask):
        masked = int(row.sum())
        assert not row[length:].any(), f"padding is masked at length {length}"
        if length < 2:
            assert masked == 0
            continue
        target = min(max(round(mask_prob * length), 1), length - 1)
        assert target <= masked < target + span, f"{masked} of {length} frames, target {target}"
        assert 1 <= masked <= length - 1


def test_masked_runs_are_whole_spans_unless_cut_by_an_end():
    mask = PUBLISHED_MASK(torch.full((200,), 300), 300, generator=generator())
    for row in mask.int():
        edges = row.diff(prepend=row.new_zeros(1), append=row.new_zeros(1))
        begins, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        inner = (begins > 0) & (ends < 300)
        assert (ends - begins)[inner].min() >= 10


@pytest.mark.parametrize("length, num_utterances", [(5, 4000), (24, 4000), (60, 3000)])
def test_distribution_is_that_of_drawing_span_after_span(length, num_utterances):
    rng = generator(1)
    naive = torch.stack([naive_mask(length, 0.65, 10, rng) for _ in range(num_utterances)]).float()
    ours = PUBLISHED_MASK(torch.full((num_utterances,), length), length + 3, generator=rng)[:, :length].float()
    error = math.sqrt(0.5 / num_utterances)  # standard error of a difference of two shares, at its largest
    assert (ours.mean(0) - naive.mean(0)).abs().max() < 5 * error  # each frame
    pairs, naive_pairs = ours.T @ ours / num_utterances, naive.T @ naive / num_utterances
    assert (pairs - naive_pairs).abs().max() < 5.5 * error  # each pair of frames
    counts, naive_counts = (torch.bincount(m.sum(1).long(), minlength=length) for m in (ours, naive))
    assert (counts - naive_counts).abs().max() / num_utterances < 5 * error  # how many are masked


def test_mean_share_on_the_lengths_of_a_corpus():
    lengths = torch.arange(5, 751)
    rng = generator()
    masks = torch.stack([PUBLISHED_MASK(lengths, 750, generator=rng) for _ in range(5)])
    shares = masks.sum(2) / lengths
    assert 0.65 <= shares.mean() < 0.68  # the last span overshoots; 0.48 with the released formula
    assert 0.65 <= shares[:, lengths >= 300].mean() < 0.66


def test_first_and_last_frame_are_masked_like_the_middle():
    mask = PUBLISHED_MASK(torch.full((4000,), 200), 200, generator=generator()).float().mean(0)
    assert (mask - mask.mean()).abs().max() < 0.04
    assert (mask[[0, -1]] - mask[100]).abs().max() < 0.04


def test_same_generator_state_gives_the_same_mask_and_utterances_differ():
    lengths = torch.full((16,), 400)
    first, again = (PUBLISHED_MASK(lengths, 400, generator=generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, PUBLISHED_MASK(lengths, 400, generator=generator(4)))
    assert len({tuple(row.tolist()) for row in first}) == 16


def test_the_global_state_is_left_alone_with_a_generator_and_used_without():
    lengths = torch.tensor([100, 50])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    PUBLISHED_MASK(lengths, 100, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    first = PUBLISHED_MASK(lengths, 100)
    torch.manual_seed(0)
    assert torch.equal(first, PUBLISHED_MASK(lengths, 100))


def test_nothing_waits_for_values():
    mask = PUBLISHED_MASK(torch.zeros(3, dtype=torch.long, device="meta"), 50)  # tensors without values
    assert mask.shape == (3, 50)


def test_degenerate_shapes():
    assert not PUBLISHED_MASK(torch.tensor([0, 1]), 5, generator=generator()).any()
    assert PUBLISHED_MASK(torch.tensor([2, 1, 0]), 2, generator=generator()).sum(1).tolist() == [1, 0, 0]
    assert PUBLISHED_MASK(torch.zeros(0, dtype=torch.long), 5).shape == (0, 5)
    assert PUBLISHED_MASK(torch.tensor([0, 0]), 0).shape == (2, 0)
    too_long = PUBLISHED_MASK(torch.tensor([99]), 20, generator=generator())
    assert 13 <= too_long.sum() < 20
    int32 = PUBLISHED_MASK(torch.tensor([40], dtype=torch.int32), 40, generator=generator())
    assert torch.equal(int32, PUBLISHED_MASK(torch.tensor([40]), 40, generator=generator()))


@pytest.mark.parametrize(
    "arguments, field",
    [({"prob": 0.0}, "prob"), ({"prob": 1.0}, "prob"), ({"span": 0}, "span")],
)
def test_bad_arguments_are_named(arguments, field):
    with pytest.raises(ValueError, match=field):
        SpanMask(**arguments)


def test_a_bad_shape_is_named():
    with pytest.raises(ValueError, match="lengths"):
        PUBLISHED_MASK(torch.tensor([[20]]), 20)


def test_workers_can_take_it_along():
    assert pickle.loads(pickle.dumps(SpanMask(0.3, 7))) == SpanMask(0.3, 7) != PUBLISHED_MASK


def test_the_draws_stay_as_they_were():
    """A run that goes on from a checkpoint of an earlier version meets the masks that it would have met."""
    lengths = torch.tensor([399, 250, 27, 5, 2, 1, 0])
    drawn = [PUBLISHED_MASK(lengths, 400, generator(5)), SpanMask(0.3, 4)(lengths, 400, generator(6))]
    assert [hashlib.md5(mask.numpy().tobytes()).hexdigest()[:16] for mask in drawn] == DRAWN


def test_distances_to_visible_frames_against_a_loop():
    """Padding at the end, clips wholly visible, wholly hidden, of a single frame."""
    lengths = torch.tensor([23, 23, 9, 1, 14, 23])
    visible = (torch.arange(23) < lengths[:, None]) & ~SpanMask(0.7, 6)(lengths, 23, generator(3))
    visible[1], visible[4] = True, False
    found = distance_to_visible(visible)
    for clip in range(6):
        seen = visible[clip].nonzero()[:, 0].tolist()
        for frame in range(23):
            expected = min([FARTHEST] + [abs(frame - other) for other in seen])
            assert found[clip, frame] == expected, (clip, frame)
    assert (found[1] == 0).all() and (found[4] == FARTHEST).all()
    assert distance_to_visible(torch.tensor([[False], [True]])).tolist() == [[FARTHEST], [0]]


def test_bands_of_mel_bins():
    mask = MelMask(widest=20, num_mel_bins=64)
    hidden = mask(300, 397, generator())
    assert hidden.shape == (300, 397, 64) and hidden.dtype == torch.bool
    begins = hidden.int().diff(dim=2, prepend=torch.zeros(300, 397, 1, dtype=torch.int)) == 1
    assert begins.sum(2).max() == 2 and hidden.sum(2).max() <= 40
    # Two bands of 10 bins on average, a little less where they overlap; outer bins seldom have their turn.
    assert hidden.float().mean().item() == pytest.approx(0.28, abs=0.02)
    shares = hidden.float().mean((0, 1))
    assert shares.min() > 0.01 and shares[20:44].min() > 0.3
    # One pattern for 40 frames, then another.
    changes = (hidden[:, 1:] != hidden[:, :-1]).any(2)
    places = changes.nonzero()
    for clip in range(300):
        at = places[places[:, 0] == clip, 1]
        assert ((at - at[0]) % MelMask.STRETCH == 0).all()
    assert changes.sum(1).max() <= 10 and changes.sum(1).float().mean() > 9


def test_bands_of_a_batch_are_drawn_anew_and_the_same_again():
    mask = MelMask(widest=5, num_mel_bins=24)
    batch = {"mask_time_indices": torch.zeros(3, 50, dtype=torch.bool), "seed": 8}
    hidden = mask.of_batch(batch)
    assert hidden.shape == (3, 50, 24) and torch.equal(hidden, mask.of_batch(batch))
    assert not torch.equal(hidden, mask.of_batch(batch | {"seed": 10}))
    assert not torch.equal(hidden, mask(3, 50, generator(8)))  # those are augmentation's numbers
