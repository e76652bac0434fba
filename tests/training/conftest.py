"""What several rooms' tests begin from: tones that spell texts, classes, two voices, a small checkpoint."""

import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import save
from finetuning_runs import SIZES, At, prepare, run, sing, write_clips
from voices import write_voices

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from sjepa_hf.feature_extraction import feature_extractor
from training import finetune_ctc
from training.common.progress import Heartbeat
from training.finetuning.ngram import estimate


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """
    Pretraining runs do not even make what would be left blank, unless a test asks for `pictures`; nor do those in this
    process look through all its pages each time that they log.
    """
    monkeypatch.setattr("training.pretraining.monitoring.resident_gib", lambda: 1.0)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("training.pretraining.figures.draw_run", lambda *_: [])


@pytest.fixture(scope="session")
def texts():
    rng = np.random.default_rng(1)
    words = ["A", "B", "AB", "BA", "ABA"]
    return [" ".join(rng.choice(words, 4)) for _ in range(20)]


@pytest.fixture(scope="session")
def mine(tmp_path_factory, texts):
    """What a new user has: 20 clips in a folder with metadata.csv."""
    return write_clips(tmp_path_factory.mktemp("mine"), texts)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A pretraining checkpoint, tiny and untrained."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(7)
    config = SJepaConfig(**SIZES, front_end="log_mel", num_mixture_components=4, predictor_num_attention_heads=2)
    SJepaForPreTraining(config).save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """Two classes of sound, a folder each, no metadata.csv."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(24):
        name = "AB"[number % 2]
        (folder / name).mkdir(exist_ok=True)
        soundfile.write(folder / name / f"{number}.wav", sing(name * 6, rng), 16000)
    return folder


@pytest.fixture
def two_voices(tmp_path):
    """The folder of `voices.write_voices`, to be changed at will."""
    return write_voices(tmp_path / "clips")


@pytest.fixture(scope="session")
def recogniser(tmp_path_factory, checkpoint, mine, texts):
    """The default recipe but for the number of epochs, with a language model."""
    output = tmp_path_factory.mktemp("ctc")
    estimate(texts, 2).save(output / "lm.arpa")
    options = ("--num_train_epochs", "20", "--logging_steps", "1", "--lm", str(output / "lm.arpa"))
    options += ("--mask_time_prob", "0", "--dropout", "0")
    options += ("--learning_rate", "3e-3", "--head_learning_rate", "1e-2")
    return run(finetune_ctc, checkpoint, mine, output, *options)


@pytest.fixture(scope="session")
def ended_by_sigterm(checkpoint, mine, tmp_path_factory):
    """A CTC run that SIGTERM has ended after its third step; its folder of output."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    ready = prepare(finetune_ctc, checkpoint, mine, folder, "--max_steps", "6")
    ready.trainer.add_callback(At(3, signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        finetune_ctc.train(ready, Heartbeat("training"))
    assert caught.value.code == 143
    return folder


@pytest.fixture
def stopped(ended_by_sigterm, tmp_path):
    """That folder, to be changed at will."""
    return shutil.copytree(ended_by_sigterm, tmp_path / "run")


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """Eleven clips of noise, 0.5 to 3 s, with a label; one is empty, one is no audio."""
    path, rng = tmp_path_factory.mktemp("corpus") / "clips", np.random.default_rng(0)
    path.mkdir()
    lines = ["file_name,speaker"]
    for number in range(13):
        name = f"{number:02d}.wav"
        if number in (4, 9):
            (path / name).write_bytes(b"" if number == 4 else b"no audio")
        else:
            soundfile.write(path / name, 0.1 * rng.standard_normal(int(16000 * rng.uniform(0.5, 3))), 16000)
        lines.append(f"{name},s{number % 3}")
    (path / "metadata.csv").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def clustered(tmp_path_factory, make_config):
    """A checkpoint whose mixture is over MFCC less the clip's mean, and is soft."""
    torch.manual_seed(0)
    model = SJepaForPreTraining(make_config("log_mel"))
    model.replace_mixture(10, 39)
    model.mixture.means.mul_(20)
    model.mixture.variances.fill_(400.0)
    model.describe_mixture("mfcc_cmn")
    return save(model, tmp_path_factory.mktemp("clustered") / "model")
