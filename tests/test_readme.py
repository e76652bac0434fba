"""The README's Python runs as it stands, on a small checkpoint, and its commands name things that exist."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Processor

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.saving import feature_extractor
from training.finetuning.text import build_tokenizer


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def checkpoints(make_config, tmp_path) -> dict[str, str]:
    """The README's names of checkpoints, and small ones in their place."""
    SJepaForPreTraining(make_config()).save_pretrained(tmp_path / "pretrained")
    feature_extractor().save_pretrained(tmp_path / "pretrained")
    tokenizer = build_tokenizer(["ABC"])
    SJepaForCTC(make_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "asr")
    Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(tmp_path / "asr")
    return {
        "demo-output/model/final": str(tmp_path / "pretrained"),
        "runs/asr/final": str(tmp_path / "asr"),
    }


def test_python_snippets_run(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", 0.1 * np.random.default_rng(0).standard_normal(30000), 16000)
    features, recognition = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for name, path in checkpoints.items():
        features, recognition = features.replace(name, path), recognition.replace(name, path)
    names = {}
    exec(features, names)
    assert names["outputs"].last_hidden_state.shape[:2] == torch.Size([2, 74])
    exec(recognition, names)
    assert isinstance(names["found"]["text"], str)


def test_options_that_the_readme_names_exist(capsys):
    """Every `python -m` command of the README has the options it is called with."""
    commands = re.findall(r"^python -m ((?:training|sjepa_hf)\.\w+.*(?:\\\n.*)*)", README, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        module, *words = command.replace("\\\n", " ").split()
        subcommand = words[:1] if module == "training.decoding" else []
        with pytest.raises(SystemExit):
            importlib.import_module(module).main([*subcommand, "--help"])
        shown = set(re.findall(r"--\w+", capsys.readouterr().out))
        for word in words:
            assert not word.startswith("--") or word in shown, f"{module} has no {word}"


def test_files_that_the_readme_names_exist():
    named = set(re.findall(r"(?:training|sjepa_hf|docs)/[\w/]+\.(?:py|yaml|png)", README))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
