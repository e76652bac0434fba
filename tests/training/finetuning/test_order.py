from training.finetuning.order import SeededOrder


LENGTHS = [(7 * number) % 101 for number in range(100)]


def test_the_order_is_that_of_seed_and_epoch():
    for group_size in (None, 4):
        orders = [list(SeededOrder(LENGTHS, seed, lambda e=epoch: e, group_size)) for seed, epoch in ((0, 0), (0, 1))]
        assert all(sorted(order) == list(range(100)) for order in orders) and orders[0] != orders[1]
        sampler = SeededOrder(LENGTHS, 0, iter((0, 1)).__next__, group_size)
        assert [list(sampler), list(sampler)] == orders and len(sampler) == 100


def test_clips_in_a_group_are_of_like_length():
    def spread(order):
        groups = [[LENGTHS[clip] for clip in order[i : i + 4]] for i in range(0, 100, 4)]
        return sum(max(group) - min(group) for group in groups)

    assert spread(list(SeededOrder(LENGTHS, 0, lambda: 0, 4))) < 0.5 * spread(list(SeededOrder(LENGTHS, 0, lambda: 0)))
