import math

import pytest

from training.pretraining.arguments import parse_arguments
from training.pretraining.schedules import Schedule, ema_decay, learning_rate_factor


def factors(**arguments) -> list[float]:
    return [learning_rate_factor(step, **arguments) for step in range(arguments["num_steps"] + 3)]


def test_warm_up_rises_linearly_and_takes_no_step_at_zero():
    for shape in ("linear", "cosine", "constant"):
        values = factors(num_steps=20, warmup_steps=4, shape=shape)
        assert values[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_linear_decay():
    assert factors(num_steps=10, warmup_steps=2, shape="linear") == pytest.approx(
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    )
    assert learning_rate_factor(6, num_steps=10, warmup_steps=2, shape="linear", final_factor=0.2) == pytest.approx(
        0.6
    )


def test_cosine_decay():
    values = factors(num_steps=100, warmup_steps=0, shape="cosine", final_factor=0.1)
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.55)
    assert values[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert values[100:] == pytest.approx([0.1] * 3)
    assert all(a >= b for a, b in zip(values, values[1:]))


def test_constant_stays_at_the_peak():
    assert factors(num_steps=5, warmup_steps=0, shape="constant", final_factor=0.1) == [1.0] * 8


def test_the_rate_can_stay_at_its_peak_until_the_last_steps():
    factors = [
        learning_rate_factor(step, num_steps=10, warmup_steps=2, shape="linear", decay_steps=4) for step in range(11)
    ]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ValueError, match="decay_steps"):
        learning_rate_factor(0, num_steps=10, warmup_steps=2, shape="linear", decay_steps=9)


def test_a_schedule_tells_the_phases_apart():
    flags = "--phase1_steps 4 --phase2_steps 8 --phase1_warmup_steps 0 --phase2_warmup_steps 2 --frozen_weight 0.8"
    flags += " --phase1_learning_rate 1 --phase2_learning_rate 0.5 --ema_decays 0.9 0.99 --ema_switch_steps 3"
    schedule = Schedule(parse_arguments(["--train_data", "speech", *flags.split()]))
    assert schedule.total_steps == 12
    assert [schedule.phase(step) for step in (0, 3, 4, 11)] == [1, 1, 2, 2]
    assert [schedule.late(step) for step in (3, 7, 8, 11)] == [False, False, True, True]
    assert [schedule.masked_only(step) for step in (7, 8)] == [False, True]
    rates = [schedule.learning_rate(step) for step in (0, 2, 4, 5, 11)]
    assert rates == pytest.approx([1, 0.5, 0.25, 0.5, 0.5])
    assert [schedule.frozen_weight(step) for step in (4, 8, 12)] == pytest.approx([0.8, 0.4, 0])
    assert [schedule.ema_decay(step) for step in (0, 4, 7, 10)] == [0.9, 0.9, 0.99, 0.9]


def test_a_phase_of_warm_up_alone():
    assert factors(num_steps=2, warmup_steps=2, shape="cosine")[:3] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"shape": "exponential"}, "shape"),
        ({"warmup_steps": 11}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"step": -1}, "step"),
        ({"final_factor": 1.5}, "final_factor"),
    ],
)
def test_bad_learning_rate_arguments_are_named(arguments, field):
    call = {"step": 0, "num_steps": 10, "warmup_steps": 2, "shape": "linear"} | arguments
    with pytest.raises(ValueError, match=field):
        learning_rate_factor(call.pop("step"), **call)


def test_ema_decay_alternates():
    steps = [0, 19999, 20000, 39999, 40000, 59999, 60000]
    assert [ema_decay(step) for step in steps] == [0.999, 0.999, 0.9999, 0.9999, 0.999, 0.999, 0.9999]
    assert [ema_decay(step, (0.9,), 2) for step in range(4)] == [0.9] * 4
    assert [ema_decay(step, (0.1, 0.2, 0.3), 1) for step in range(4)] == [0.1, 0.2, 0.3, 0.1]


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"step_in_phase": -1}, "step_in_phase"),
        ({"switch_every": 0}, "switch_every"),
        ({"decays": ()}, "decays"),
        ({"decays": (1.5,)}, "decays"),
    ],
)
def test_bad_ema_arguments_are_named(arguments, field):
    with pytest.raises(ValueError, match=field):
        ema_decay(**{"step_in_phase": 0} | arguments)
