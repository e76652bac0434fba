"""Random settings: what is drawn are options that the commands have, and a trial tells a run from one that differs."""

import random
import signal
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from benchmarks import fuzz_options
from sjepa_hf import SJepaConfig
from training.finetune_classification import ClassificationArguments
from training.finetune_ctc import CtcArguments
from training.pretraining.arguments import ARGUMENTS


GROUPS = {
    "pretrain": ARGUMENTS,
    "finetune_ctc": (CtcArguments, TrainingArguments),
    "finetune_classification": (ClassificationArguments, TrainingArguments),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_commands_have_what_is_drawn(name):
    known = {field.name for group in GROUPS[name] for field in fields(group)}
    for number in range(20):
        recipe = fuzz_options.settings(name, random.Random(number), Path("clips"))
        assert recipe.keys() <= known
        assert recipe.get("model_config", {}).keys() <= {field.name for field in fields(SJepaConfig)}


class Pretend:
    """Runs that leave what a test asks for."""

    def __init__(self, folder, statuses, weights=(b"a", b"a"), dry_leaves=False, said=""):
        self.folder, self.statuses, self.dry_leaves, self.text = folder, iter(statuses), dry_leaves, said
        self.weights = dict(zip(("whole", "stopped"), weights, strict=True))

    def run(self, output_dir, *options, stop=None):
        if "--dry_run" not in options or self.dry_leaves:
            (output_dir / "final").mkdir(parents=True, exist_ok=True)
            (output_dir / "final" / "model.safetensors").write_bytes(self.weights[output_dir.name])
        status = next(self.statuses)
        return stop.status if status == "stopped" else status

    def said(self, output_dir):
        return f"line\n{self.text}"


@pytest.mark.parametrize(
    ("pretended", "result"),
    [
        (dict(statuses=(0, 0, "stopped", 0)), "same"),
        (dict(statuses=(1, 1), said="error: no."), "refused: error: no."),
        (dict(statuses=(0, 1), said="error: no."), "refused after the start: error: no."),
        (dict(statuses=(0, 0, "stopped", 0), weights=(b"a", b"b")), "FAULT: another result"),
        (dict(statuses=(0, fuzz_options.FAULT), said="KeyError"), "FAULT: status 70, KeyError"),
        (dict(statuses=(0, 0), said="Traceback"), "FAULT: status 0"),
        (dict(statuses=(0, 0, 1)), "FAULT: status 1 after SIG"),
        (dict(statuses=(0, 0, 128 + signal.SIGHUP)), "FAULT: status 129 after SIG"),
        (dict(statuses=(0, 0, "stopped", 1)), "FAULT: status 1 of the run that was resumed"),
        (dict(statuses=(0,), dry_leaves=True), "FAULT: the dry run left"),
    ],
)
def test_what_a_trial_tells(pretended, result, tmp_path):
    assert fuzz_options.trial(Pretend(tmp_path, **pretended), random.Random(0)).startswith(result)


def test_a_folder_without_folders_of_audio_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no folders of audio"):
        fuzz_options.write_clips(tmp_path, tmp_path / "clips")
