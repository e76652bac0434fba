"""What the tests of the page's modules share: small checkpoints, a clip, and files that hold none."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import save
from tones import speechlike
from transformers import Wav2Vec2Processor

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.feature_extraction import feature_extractor
from training import units
from training.finetuning.text import build_tokenizer


SPACE = Path(__file__).parents[3] / "model_cards" / "space"
sys.path.insert(0, str(SPACE))


@pytest.fixture(scope="session")
def space() -> Path:
    """The folder of the page."""
    return SPACE


@pytest.fixture(scope="session")
def pretrained(make_config, tmp_path_factory):
    """A checkpoint of pretraining and its model."""
    torch.manual_seed(0)
    model = SJepaForPreTraining(make_config("log_mel")).eval()
    with torch.no_grad():
        model.cluster_head.output.weight *= 3000  # predictions that differ between frames
    return save(model, tmp_path_factory.mktemp("pretrained")), model


@pytest.fixture(scope="session")
def fine_tuned(make_config, tmp_path_factory):
    """A checkpoint with a CTC head and its model."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("asr"), build_tokenizer(["ABCDEFGH"])
    model = SJepaForCTC(make_config("log_mel", vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))  # labels that differ between frames
    model.save_pretrained(folder)
    Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def clip_path(tmp_path) -> str:
    soundfile.write(tmp_path / "clip.wav", speechlike(1.5), 16000)
    return str(tmp_path / "clip.wav")


@pytest.fixture
def bad_files(tmp_path) -> dict[Path, str]:
    """Files that cannot be shown, and the sentence that each gets."""
    tone, folder = speechlike(1.0), tmp_path
    broken = tone.copy()
    broken[500] = np.nan
    (folder / "notes.txt").write_text("This is no sound.\n" * 100)
    (folder / "renamed.wav").write_text("This is no sound.\n" * 100)
    (folder / "headerless.raw").write_bytes(b"\0" * 4000)
    (folder / "empty.wav").touch()
    for name, samples in (("header.wav", tone[:0]), ("short.wav", tone[:500]), ("silent.wav", 0 * tone)):
        soundfile.write(folder / name, samples, 16000)
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", tone, 90)
    sentences = {
        "notes.txt": "cannot be read as audio",
        "renamed.wav": "cannot be read as audio",
        "headerless.raw": "cannot be read as audio",
        "empty.wav": "This file is empty",
        "header.wav": "holds no sound",
        "short.wav": "lasts 0.031 s; at least 0.1 s",
        "silent.wav": "This clip is silent",
        "nan.wav": r"not numbers \(NaN or infinity\)",
        "slow.wav": "sampling rate 90 Hz",
    }
    return {folder / name: sentence for name, sentence in sentences.items()}


@pytest.fixture(scope="session")
def unit_folder(pretrained, tmp_path_factory) -> Path:
    """A folder of four clips, and beside it `units`: their units of the prediction."""
    folder = tmp_path_factory.mktemp("corpus") / "clips"
    folder.mkdir()
    for number, seconds in enumerate((1.0, 0.7, 0.9, 1.2)):
        soundfile.write(folder / f"{number}.wav", speechlike(seconds), 16000)
    output = str(folder.parent / "units")
    units.main([pretrained[0], "--data", str(folder), "--clusters", "prediction", "--output", output])
    return folder
