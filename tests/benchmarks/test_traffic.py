"""What the count of a whole step says, and bounds on what the front end moves."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks import traffic
from benchmarks.steps.candidates import SJepaStep
from benchmarks.steps.cuda_rules import cuda_rules
from benchmarks.steps.operations import Count, OperationCounter
from benchmarks.traffic import FakeMode, TrafficArguments, by_part, count_steps, total
from sjepa_hf import SJepaConfig
from sjepa_hf.front_end import build_front_end


@pytest.fixture(autouse=True)
def any_precision(monkeypatch):
    """Accelerate lets a process have one precision; here each test has its own."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


@pytest.fixture
def small(make_arguments):
    """Arguments for a small model."""

    def make(front_end="waveform", **changes) -> TrafficArguments:
        recipe = make_arguments(front_end, dict(num_conv_pos_embedding_groups=4)).config
        return TrafficArguments(**(dict(config=recipe, clips=2, seconds=1.0, dtype="fp32") | changes))

    return make


def test_fake_and_real_steps_are_made_of_the_same_operations(small):
    """Attention apart, whose kernels are CUDA's: here it is written out."""
    real = SJepaStep(small().step(), Accelerator(cpu=True))
    with OperationCounter() as counter:
        real()
    fake = count_steps(small())["ours"]

    def products(counts, *names) -> Count:
        return sum((count for (*_, name), count in counts.items() if name in names), Count())

    for names in (("mm", "addmm", "bmm"), ("convolution", "convolution_backward"), ("native_layer_norm", "gelu")):
        assert products(fake, *names).flops == products(counter.counts, *names).flops
        assert products(fake, *names).operations == products(counter.counts, *names).operations


def test_every_part_has_its_row(small):
    parts = by_part(count_steps(small())["ours"])
    phases = ["targets", "student forward", "backward", "clipping and optimizer", "mixture and EMA update"]
    assert list(dict.fromkeys(phase for phase, _ in parts)) == phases
    of_encoder = {"encoder", "front end", "positional convolution"}
    rest = {"targets": "mixture", "student forward": traffic.REST, "backward": traffic.REST}
    for phase, beside in rest.items():
        found = {part for other, part in parts if other == phase}
        assert found - {"front end: first layer"} == of_encoder | {beside}
    assert parts["backward", "front end"].bytes > parts["student forward", "front end"].bytes
    assert parts["clipping and optimizer", ""].flops == 0 < parts["clipping and optimizer", ""].bytes


def front_end_bytes(clips: int, seconds: int, trained: bool = True, half: bool = True) -> int:
    """What the waveform front end of `base` moves, forward and, where it is trained, backward."""
    with FakeMode(), cuda_rules():
        front_end = build_front_end(SJepaConfig())
        waveforms, lengths = torch.empty(clips, 16000 * seconds), torch.empty(clips, dtype=torch.long)
        with OperationCounter() as counter, torch.set_grad_enabled(trained):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = front_end(waveforms, lengths)
            if trained:
                output.backward(torch.empty_like(output))
    return total(counter.counts).bytes


@pytest.mark.parametrize("trained, most", [(True, 6_300), (False, 2_550)])
def test_the_waveform_front_end_moves_no_more_bytes_a_sample_than_it_did(trained, most):
    """In bf16; HuBERT's moves 9,600 where it is trained. Whoever lowers it lowers the bound."""
    least = (3 if trained else 1) * 2 * 512 * (1 / 5 + 1 / 10 + 1 / 20)  # the first outputs, written
    assert least < front_end_bytes(24, 15, trained) / (24 * 240_000) < most


def test_single_precision_moves_more_and_twice_the_clips_twice_as_much():
    moved = front_end_bytes(8, 15)
    assert 1.6 * moved < front_end_bytes(8, 15, half=False) < 2.1 * moved
    assert front_end_bytes(16, 15) == pytest.approx(2 * moved, rel=0.02)


def test_the_command_prints_the_tables(small, capsys):
    arguments = small()
    traffic.main(["--config", arguments.config, *"--clips 2 --seconds 1 --against hubert --longest 2".split()])
    printed = capsys.readouterr().out
    for words in ("phase 2: 2 x 1 s, bf16", "ours", "HuBERT", "front end: first layer", "longest by roof"):
        assert words in printed
    assert len([line for line in printed.splitlines() if line.startswith("step ")]) == 2


def test_a_row_is_in_units_of_a_thousand_million_and_milliseconds(capsys):
    counts = {("a", "b", "slow"): Count(0, 1, 1, 0.003), ("a", "c", "slowest"): Count(2 * 10**9, 3 * 10**9, 6, 0.005)}
    traffic.report("ours", counts, 1)
    *_, step, _, _, longest = (line.split() for line in capsys.readouterr().out.splitlines())
    assert step == ["step", "2.0", "3.00", "7", "8.00"] and longest == "a: c: slowest 2.0 3.00 6 5.00".split()


@pytest.mark.parametrize(
    "options, message",
    [
        ("--config nowhere", "no recipe nowhere"),
        ("--against naive", "`against` is naive"),
        ("--longest -1", "`longest` is -1"),
        ("--dtype int8", "`dtype` is 'int8'"),
    ],
)
def test_wrong_settings_get_a_sentence(options, message):
    with pytest.raises(SystemExit, match=message):
        traffic.main(options.split())
