"""A HuBERT that goes on from one domain to another: each command once, and understood by what it calls."""

from pathlib import Path

import pytest
from transformers import AutoModel

from benchmarks.study import adapting
from sjepa_hf.scores import Score, write_scores
from training.common.command_line import parse_dataclasses
from training.pretraining.arguments import parse_arguments
from training.probe import ProbeArguments


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What would be run, in place of running it."""
    found = []

    def run(command, log, environment):
        found.append(command[2:])
        flags = dict(zip(command, command[1:]))
        if "--output_dir" in flags:
            (Path(flags["--output_dir"]) / "final").mkdir(parents=True)
            (Path(flags["--output_dir"]) / "final" / "training.json").touch()
        else:
            Path(flags["--output"]).mkdir()
            title = f"{Path(flags['--data']).stem}, linear probe"
            accuracy = Score(command[3], title, "a", "b", "test", "accuracy", 0.5, clips=3, layer=1)
            about = dict(apart="speaker", splits=1, classes=2, clips=3, rows=3, scored_share=0.3)
            about |= dict(commonest_class_share=0.4, classes_left_out=0)
            write_scores(Path(flags["--output"]) / "probes.json", [accuracy], tasks={title: about})

    monkeypatch.setattr(adapting, "run_logged", run)
    monkeypatch.setattr(adapting, "manifest_rows", lambda *of_the_collection: [])
    return found


def test_each_command_once_and_understood(commands, tmp_path, caplog):
    caplog.set_level("INFO")
    arguments = ["--speech", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--seeds", "3"]
    adapting.main(arguments)
    assert [name for name, *_ in commands] == ["training.pretrain"] * 3 + ["training.probe"] * 2
    first, second, third = (parse_arguments(flags).run for name, *flags in commands if name == "training.pretrain")
    assert (first.phase2_steps, third.phase2_steps, third.phase1_steps) == (0, 0, 250)
    assert (second.phase1_steps, second.phase2_steps) == (0, 250)
    assert first.seed == second.seed == third.seed == 3
    for name, *flags in commands:
        if name == "training.probe":
            parse_dataclasses((ProbeArguments,), flags, "", checkpoints=dict(nargs="+", help=""))
    for label in ("phones", "keyword"):
        assert f"Seed 3 (before, phase 2, phase 1):\n{label}, linear probe: accuracy in %" in caplog.text
    adapting.main(arguments)
    assert len(commands) == 5, "what is there is not made again"
    model = AutoModel.from_pretrained(tmp_path / "out" / "fresh-s3")
    assert model.config.model_type == "hubert" and 3e6 < model.num_parameters() < 4e6
