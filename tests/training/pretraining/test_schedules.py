import math

import pytest

from training.pretraining.arguments import parse_arguments
from training.pretraining.schedules import Schedule, learning_rate_factor


def factors(**arguments) -> list[float]:
    arguments = {"final_factor": 0.0, "decay_steps": None} | arguments
    return [learning_rate_factor(step, **arguments) for step in range(arguments["num_steps"] + 3)]


def test_warm_up_rises_linearly_and_takes_no_step_at_zero():
    for shape in ("linear", "cosine", "constant"):
        values = factors(num_steps=20, warmup_steps=4, shape=shape)
        assert values[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_linear_decay():
    assert factors(num_steps=10, warmup_steps=2, shape="linear") == pytest.approx(
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    )
    assert factors(num_steps=10, warmup_steps=2, shape="linear", final_factor=0.2)[6] == pytest.approx(0.6)


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
    values = factors(num_steps=10, warmup_steps=2, shape="linear", decay_steps=4)
    assert values[:11] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_a_schedule_tells_the_phases_apart():
    flags = "--phase1_steps 4 --phase2_steps 8 --phase1_warmup_steps 0 --phase2_warmup_steps 2"
    flags += " --phase1_learning_rate 1 --phase2_learning_rate 0.5 --ema_decays 0.9 0.99 --ema_switch_steps 3"
    schedule = Schedule(parse_arguments(["--train_data", "speech", *flags.split()]))
    assert schedule.total_steps == 12
    assert [schedule.phase(step) for step in (0, 3, 4, 11)] == [1, 1, 2, 2]
    assert [schedule.in_final_stage(step) for step in (3, 7, 8, 11)] == [False, False, True, True]
    assert [schedule.masked_only(step) for step in (7, 8)] == [False, True]
    rates = [schedule.learning_rate(step) for step in (0, 2, 4, 5, 11)]
    assert rates == pytest.approx([1, 0.5, 0.25, 0.5, 0.5])
    assert [schedule.ema_decay(step) for step in (0, 4, 6, 7, 9, 10, 13)] == [0.9, 0.9, 0.9, 0.99, 0.99, 0.9, 0.99]


def test_a_phase_of_warm_up_alone():
    assert factors(num_steps=2, warmup_steps=2, shape="cosine")[:3] == [0.5, 1.0, 1.0]
