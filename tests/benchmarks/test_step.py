"""What the benchmark of a step prints."""

import pytest

from benchmarks import step


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


def test_sweep_prints_a_line_for_each_value(make_arguments, accelerator, capsys):
    step.sweep(make_arguments(sweep=["layers", "1", "3"]), accelerator)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    operations = [float(line.split(")")[1].split()[1]) for line in lines[2:]]
    assert operations[1] >= operations[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--config nowhere", "no recipe nowhere"),
        ("--phase 3", "`phase` is 3"),
        ("--sweep width 1", "`sweep` is width 1"),
        ("--device cpu --check_syncs true", "`check_syncs` needs"),
        ("--config tiny --phase 1 --seconds 20 --clips 1 --against hubert --threads 1", "20 s|999"),
    ],
)
def test_wrong_settings_get_a_sentence(options, message):
    with pytest.raises(SystemExit, match=message):
        step.main(options.split())
