"""Every class through a Hub and back: with this package and without it, fresh and re-saved, at a pinned commit."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import httpx
from processes import without_the_package
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
    pipeline,
)

import sjepa_hf
from sjepa_hf.configuration_sjepa import MODEL_CODE
from sjepa_hf.push import push
from training.finetuning.text import TextNormalizer


AUTO_CLASSES = {
    "AutoModel": AutoModel,
    "AutoModelForPreTraining": AutoModelForPreTraining,
    "AutoModelForCTC": AutoModelForCTC,
    "AutoModelForAudioClassification": AutoModelForAudioClassification,
    "AutoModelForAudioFrameClassification": AutoModelForAudioFrameClassification,
    "AutoModelForAudioXVector": AutoModelForAudioXVector,
}
DIGEST = """
import hashlib
def digest(module):
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()
"""
exec(DIGEST)


@pytest.fixture
def published(hub, pretrained, recogniser, classifier):
    """Repo -> what opens it fully."""
    for directory, name in ((pretrained, "encoder"), (recogniser, "asr"), (classifier, "words")):
        push(directory, name)
    return {
        "ada/encoder": "AutoModelForPreTraining",
        "ada/asr": "AutoModelForCTC",
        "ada/words": "AutoModelForAudioClassification",
    }


def test_every_class_and_pipeline_with_and_without_the_package_fresh_and_resaved(hub, published, tmp_path):
    """The matrix: what loads is, bit for bit, what was saved; whoever saves it again and pushes it loses nothing."""
    with_package = {
        repo: {
            name: digest(auto_class.from_pretrained(repo, ignore_mismatched_sizes=True).base_model)  # noqa: F821
            for name, auto_class in AUTO_CLASSES.items()
        }
        for repo in published
    }
    code = (
        DIGEST
        + f"""
import json, transformers
import numpy as np
from transformers import AutoProcessor, pipeline
audio = np.random.default_rng(0).standard_normal(32000)
pipelines = [
    pipeline("automatic-speech-recognition", "ada/asr", trust_remote_code=True)(audio)["text"],
    [e["score"] for e in pipeline("audio-classification", "ada/words", trust_remote_code=True)(audio)],
]
found, processors = {{}}, {{}}
for repo, best in {published!r}.items():
    found[repo] = {{}}
    for name in {list(AUTO_CLASSES)!r}:
        model = getattr(transformers, name).from_pretrained(repo, trust_remote_code=True, ignore_mismatched_sizes=True)
        found[repo][name] = digest(model.base_model)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        if name == best:
            directory = {str(tmp_path)!r} + "/again-" + repo.split("/")[1]
            model.save_pretrained(directory)
            processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
            processor.save_pretrained(directory)
            processors[repo] = type(processor).__name__
print(json.dumps([found, processors, *pipelines]))
"""
    )
    without, processors, text, scores = json.loads(without_the_package(code).splitlines()[-1])
    assert without == with_package
    assert (processors["ada/asr"], processors["ada/encoder"]) == ("Wav2Vec2Processor", "Wav2Vec2FeatureExtractor")
    check_pipelines(text, scores)
    assert all(len(set(digests.values())) == 1 for digests in without.values()), "one encoder, whatever is on top"
    for repo, best in published.items():
        before = hub.files(repo)
        name = repo.split("/")[1]
        push(tmp_path / f"again-{name}", f"{name}-again")
        push(tmp_path / f"again-{name}", name)
        for again in (hub.files(f"{repo}-again"), hub.files(repo)):
            assert before.keys() == again.keys()
            for file in before.keys() - {"README.md", "config.json", "tokenizer_config.json"}:
                assert again[file] == before[file], file
            assert json.loads(again["config.json"])["auto_map"] == json.loads(before["config.json"])["auto_map"]
        assert hub.files(repo)["README.md"] == before["README.md"]
        fresh, reopened = (AUTO_CLASSES[best].from_pretrained(name) for name in (repo, f"{repo}-again"))
        assert digest(reopened) == digest(fresh)  # noqa: F821


def check_pipelines(text: str, scores: list[float]) -> None:
    """With the package no remote code is run; without it, that gave the same."""
    recognise, classify = (
        pipeline("automatic-speech-recognition", "ada/asr"),
        pipeline("audio-classification", "ada/words"),
    )
    assert type(recognise.model) is sjepa_hf.SJepaForCTC
    assert type(classify.model) is sjepa_hf.SJepaForSequenceClassification
    audio = np.random.default_rng(0).standard_normal(32000)
    assert recognise(audio)["text"] == text
    assert [e["score"] for e in classify(audio)] == pytest.approx(scores, abs=1e-4)


def test_a_pinned_commit_stays_what_it_was(hub, published, pretrained):
    commit = HfApi().model_info("ada/encoder").sha
    first = AutoModel.from_pretrained("ada/encoder", revision=commit).state_dict()
    changed = sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained)
    for parameter in changed.parameters():
        parameter.data.add_(1.0)
    changed.save_pretrained(pretrained)
    push(pretrained, "encoder")
    pinned, latest = (AutoModel.from_pretrained("ada/encoder", **at) for at in ({"revision": commit}, {}))
    assert all(value.equal(first[name]) for name, value in pinned.state_dict().items())
    assert not latest.feature_projection.projection.weight.equal(first["feature_projection.projection.weight"])


def test_what_is_downloaded_is_what_was_pushed(hub, published, tmp_path):
    """Whole, and by the range requests with which a broken download goes on."""
    api = HfApi()
    whole = hub.files("ada/encoder")["model.safetensors"]
    url = f"{hub.url}/ada/encoder/resolve/main/model.safetensors"
    rest = httpx.get(url, headers={"Range": "bytes=1000-", "Authorization": "Bearer hf_ada"})
    assert (rest.status_code, rest.content) == (206, whole[1000:])
    path = api.hf_hub_download("ada/encoder", "model.safetensors", cache_dir=tmp_path / "cache")
    with open(path, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == hashlib.sha256(whole).hexdigest()


def test_the_normalisation_of_transcripts_is_that_of_the_repo(hub, recogniser, monkeypatch, caplog):
    push(recogniser, "bare")
    assert TextNormalizer.load("ada/bare")("As it, is") == "As it, is"
    assert "ada/bare has no text_normalization.json" in caplog.text
    lower = TextNormalizer(case="lower")
    lower.save(recogniser)
    push(recogniser, "asr")
    assert TextNormalizer.load("ada/asr") == lower
    with pytest.raises(ValueError, match="ada/arsr cannot be opened from the Hub, and is no directory here"):
        TextNormalizer.load("ada/arsr")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert TextNormalizer.load("ada/asr") == lower and TextNormalizer.load("ada/bare").case == "keep"
    for path in Path(constants.HF_HUB_CACHE).glob("models--ada--asr/snapshots/*/text_normalization.json"):
        path.unlink()
    with pytest.raises(ValueError, match="Whether ada/asr has text_normalization.json is not known, .*: try again"):
        TextNormalizer.load("ada/asr")


def test_a_configuration_that_is_pushed_alone_brings_the_code(hub, make_config, tmp_path):
    config = make_config("log_mel")
    for directory in (tmp_path / "new", tmp_path / "new"):  # the code lies there already when it is saved again
        config.save_pretrained(directory, push_to_hub=True, repo_id="ada/settings", commit_message="settings")
    assert {"config.json", *MODEL_CODE} <= hub.files("ada/settings").keys()
    config.save_pretrained(str(tmp_path / "named"), push_to_hub=True)
    assert {"config.json", *MODEL_CODE} <= hub.files("ada/named").keys()
