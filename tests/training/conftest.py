"""What fine-tunings of tests begin from: tones that spell texts, classes, a small checkpoint."""

import numpy as np
import pytest
import soundfile
import torch
from finetuning_runs import SIZES, sing, write_clips

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from sjepa_hf.saving import feature_extractor


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    words = ["A", "B", "AB", "BA", "ABA"]
    return [" ".join(rng.choice(words, 4)) for _ in range(20)]


@pytest.fixture(scope="module")
def mine(tmp_path_factory, texts):
    """What a new user has: 20 clips in a folder with metadata.csv."""
    return write_clips(tmp_path_factory.mktemp("mine"), texts)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pretraining checkpoint, tiny and untrained."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(7)
    config = SJepaConfig(**SIZES, front_end="log_mel", num_mixture_components=4, predictor_num_attention_heads=2)
    SJepaForPreTraining(config).save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of sound, a folder each, no metadata.csv."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(24):
        name = "AB"[number % 2]
        (folder / name).mkdir(exist_ok=True)
        soundfile.write(folder / name / f"{number}.wav", sing(name * 6, rng), 16000)
    return folder
