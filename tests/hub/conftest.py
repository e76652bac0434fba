"""A Hub on localhost, and small checkpoints to publish there."""

import pytest
import transformers
from hub_server import HubServer
from huggingface_hub import constants, hf_api
from transformers import Wav2Vec2Processor

import sjepa_hf
from sjepa_hf.feature_extraction import feature_extractor
from training.finetuning.text import build_tokenizer


TOKENS = {"hf_ada": "ada", "hf_bob": "bob"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, for this process and those that it starts; ada is logged in."""
    with HubServer(tmp_path / "hub", TOKENS) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_ada", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # What was read from these at import, or by the first client.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        yield server


@pytest.fixture
def pretrained(make_config, tmp_path):
    """A pretraining checkpoint with its training state."""
    directory = tmp_path / "pretrained"
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(directory)
    feature_extractor().save_pretrained(directory)
    (directory / "training_state").mkdir()
    (directory / "training_state" / "optimizer.pt").write_bytes(b"not for others")
    return directory


@pytest.fixture
def recogniser(make_config, tmp_path):
    """A CTC checkpoint with its processor."""
    tokenizer = build_tokenizer(["THE QUICK BROWN FOX"])
    directory = tmp_path / "asr"
    config = make_config("log_mel", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    sjepa_hf.SJepaForCTC(config).save_pretrained(directory)
    Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(directory)
    (directory / "transcripts.jsonl").write_text('{"text": "what a user said"}\n')
    return directory


@pytest.fixture
def classifier(make_config, tmp_path):
    """A classification checkpoint with its feature extractor."""
    names = {0: "yes", 1: "no", 2: "stop"}
    config = make_config("log_mel", id2label=names, label2id={name: i for i, name in names.items()})
    sjepa_hf.SJepaForSequenceClassification(config).save_pretrained(tmp_path / "words")
    feature_extractor().save_pretrained(tmp_path / "words")
    return tmp_path / "words"
