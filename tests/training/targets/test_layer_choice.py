import pytest
from accelerate import Accelerator
from noise_batches import make_batch

from sjepa_hf import SJepaModel
from sjepa_hf.frames import real_frames
from sjepa_hf.measures import effective_rank
from training.targets import layer_choice
from training.targets.layer_choice import LayerChoice, layer_ranks
from training.targets.sampling import FrameReservoir


def test_scores_start_from_the_first_measure():
    choice = LayerChoice(active=2, decay=0.5)
    assert choice.observe([10.0, 11.0, 12.0, 9.0]) is False
    assert choice.scores == [10.0, 11.0, 12.0, 9.0]
    assert choice.observe([10.0, 20.0, 12.0, 9.0]) is True
    assert choice.scores == [10.0, 15.5, 12.0, 9.0] and choice.active == 1


def test_the_first_layer_can_be_chosen_by_rank():
    choice = LayerChoice(active=None, decay=0.5, adaptive=False)
    choice.choose_first([20.0, 11.0, 12.0, 9.0])
    assert choice.active == 2 and choice.scores == [20.0, 11.0, 12.0, 9.0]
    with pytest.raises(ValueError, match="features of layer 1 are not finite"):
        choice.choose_first([20.0, float("nan"), 12.0, 9.0])


def test_a_single_outlier_does_not_move_a_heavily_smoothed_choice():
    choice = LayerChoice(active=1, decay=0.9)
    choice.observe([5.0, 10.0, 9.0])
    assert choice.observe([5.0, 10.0, 15.0]) is False
    assert choice.observe([5.0, 10.0, 30.0]) is True


def test_a_measure_that_is_not_finite_is_left_out():
    choice = LayerChoice(active=2)
    choice.observe([5.0, 9.0, 10.0])
    assert choice.observe([5.0, float("nan"), 10.0]) is False
    assert choice.scores == [5.0, 9.0, 10.0] and choice.active == 2


def test_a_fixed_layer_stays():
    choice = LayerChoice(active=0, adaptive=False)
    assert choice.observe([1.0, 5.0]) is False
    assert choice.active == 0 and choice.scores == [1.0, 5.0]


def test_the_input_of_the_first_layer_is_never_chosen_by_rank():
    choice = LayerChoice(active=2)
    assert choice.observe([90.0, 20.0, 10.0]) is True
    assert choice.active == 1 and choice.scores == [90.0, 20.0, 10.0]
    assert LayerChoice(active=0).observe([90.0, 20.0, 10.0]) is True, "chosen by hand, it is left at the first measure"


def test_layer_ranks_measures_every_layer_on_real_frames(make_config):
    student, accelerator = SJepaModel(make_config("log_mel")).train(), Accelerator(cpu=True)
    batch = make_batch(16000, 7000)
    ranks = layer_ranks(student, [batch], accelerator, seed=0)
    assert student.training, "the mode is restored"
    student.eval()
    hidden = student(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
    real = real_frames(batch["lengths"], 49)
    expected = [effective_rank(layer[real]).item() for layer in hidden]  # fewer than 2,000 frames: all of them
    assert ranks == pytest.approx(expected, rel=1e-3)


def test_layer_ranks_are_of_as_many_frames_as_asked_for_drawn_from_all_batches(make_config, monkeypatch):
    monkeypatch.setattr(layer_choice, "RANK_FRAMES", 30)
    student = SJepaModel(make_config("log_mel")).eval()
    batches = [make_batch(16000, 7000) | {"seed": number} for number in (1, 2)]
    reservoirs = [FrameReservoir(30, 5) for _ in range(4)]
    for batch in batches:
        hidden = student(batch["input_values"], batch["attention_mask"], output_hidden_states=True).hidden_states
        for reservoir, layer in zip(reservoirs, hidden, strict=True):
            reservoir.add(layer[real_frames(batch["lengths"], 49)].detach(), batch["seed"])
    expected = [effective_rank(reservoir.sample()[1]).item() for reservoir in reservoirs]
    assert layer_ranks(student, batches, Accelerator(cpu=True), seed=5) == pytest.approx(expected, rel=1e-3)
