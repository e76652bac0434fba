"""What the benchmark of a step prints."""

import pytest
import torch

from benchmarks import step
from benchmarks.steps.candidates import COMPILE, Batches
from training.data.masking import SpanMask


def test_the_command_prints_every_table(make_arguments, accelerator, capsys):
    step.measure(make_arguments(visible_only=True, repeats=2), accelerator)
    printed = capsys.readouterr().out
    parts = (
        "collate and masks",
        "targets",
        "student forward",
        "backward",
        "clipping",
        "mixture and EMA",
    )
    for words in (*parts, "peak memory", "naive", "HuBERT", "visible only", "GFLOP a step", "audio s / s"):
        assert words in printed
    assert "utilisation" not in printed, "a CPU has no peak to compare with"


def test_figures_are_of_the_median_turn(make_arguments, capsys):
    step.report_turns({"ours": [3.0, 1.0, 2.0], "naive": [6.0, 4.0, 4.0]}, make_arguments(clips=4, seconds=10.0))
    step.report_flops("ours", {"encoder": 6_000_000_000, "head": 2_000_000_000}, 2.0, torch.device("cpu"))
    *_, ours, naive, _, flops, shares = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(ours) == "ours 2000.0 ( 1000.0 3000.0) 20.0 1.00 (1.00 to 1.00)"
    assert " ".join(naive) == "naive 4000.0 ( 4000.0 6000.0) 10.0 2.00 (2.00 to 4.00)"
    assert flops == "ours: 8.0 GFLOP a step, 4.0 GFLOP/s".split() and shares == "encoder 75.0%, head 25.0%".split()


def test_sweep_prints_a_line_for_each_value(make_arguments, accelerator, capsys):
    step.sweep(make_arguments(sweep=["layers", "1", "3"]), accelerator)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    operations = [float(line.split(")")[1].split()[1]) for line in lines[2:]]
    assert operations[1] >= operations[0]


def test_each_way_to_compile_reaches_student_and_teacher(make_arguments, accelerator, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: calls.append((type(self).__name__, how)))
    step.sweep(make_arguments(sweep=["compile", *COMPILE], repeats=1), accelerator)
    parts = "SJepaForPreTraining", "SJepaModel"
    assert calls == [(part, how) for how in COMPILE.values() if how for part in parts]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == list(COMPILE)


def test_for_one_size_all_batches_have_the_same_masks(make_arguments):
    for compiled, same in (("dynamic", False), ("graphs", True)):
        batches = Batches(make_arguments(compile=compiled), SpanMask(0.5, 2))
        assert torch.equal(batches()["mask_time_indices"], batches()["mask_time_indices"]) == same


@pytest.mark.parametrize(
    "options, message",
    [
        ("--config nowhere", "no recipe nowhere"),
        ("--phase 3", "`phase` is 3"),
        ("--config adapt", "`config` adapt leaves the layer to the effective ranks of an encoder: name a recipe"),
        ("--sweep width 1", "`sweep` is width 1"),
        ("--config tiny --compile true", "`compile` is 'true'; choose no or dynamic or static or graphs"),
        ("--device cpu --check_syncs true", "`check_syncs` needs"),
        ("--config tiny --phase 1 --seconds 20 --clips 1 --against hubert --threads 1", "20 s|999"),
    ],
)
def test_wrong_settings_get_a_sentence(options, message):
    with pytest.raises(SystemExit, match=message):
        step.main(options.split())
