"""A checkpoint opens anywhere: every class from one directory, with this package and without it, and in pipelines."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
from processes import run_python, without_the_package
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor, pipeline

import sjepa_hf
from sjepa_hf.configuration_sjepa import AUTO_MAP, MODEL_CODE
from sjepa_hf.contents import contents
from sjepa_hf.feature_extraction import feature_extractor


CLASSES = {auto_class: reference.split(".")[1] for auto_class, reference in AUTO_MAP.items()}
WAVEFORM = np.random.default_rng(0).standard_normal(16000 * 7).astype("float32") * 0.1
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]


@pytest.fixture
def asr_checkpoint(make_config, tmp_path):
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    Wav2Vec2Processor(feature_extractor(), Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(tmp_path / "asr")
    sjepa_hf.SJepaForCTC(make_config()).save_pretrained(tmp_path / "asr")
    return tmp_path / "asr"


@pytest.fixture
def classifier_checkpoint(make_config, tmp_path):
    names = {0: "yes", 1: "no", 2: "stop"}
    config = make_config(id2label=names, label2id={name: i for i, name in names.items()})
    sjepa_hf.SJepaForSequenceClassification(config).save_pretrained(tmp_path / "kws")
    feature_extractor().save_pretrained(tmp_path / "kws")
    return tmp_path / "kws"


def test_every_class_is_registered_and_mapped(make_config):
    config = make_config()
    for auto_class, name in CLASSES.items():
        if auto_class == "AutoConfig":
            assert type(transformers.AutoConfig.for_model("sjepa")) is sjepa_hf.SJepaConfig
        else:
            assert type(getattr(transformers, auto_class).from_config(config)) is getattr(sjepa_hf, name)


def test_the_code_in_a_checkpoint_is_complete(asr_checkpoint):
    """Every file of the package that the model imports is in it, and no other."""
    imported = transformers.dynamic_module_utils.get_relative_import_files(str(asr_checkpoint / "auto_classes.py"))
    names = {path.rsplit("/", 1)[1] for path in imported} | {"auto_classes.py"}
    assert names == set(MODEL_CODE) == {path.name for path in asr_checkpoint.glob("*.py")}


def test_opens_without_the_package_and_saves_again(asr_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    again = tmp_path / "again"
    printed = without_the_package(f"""
import torch, transformers
for name in {[name for name in CLASSES if name != "AutoConfig"]}:
    model = getattr(transformers, name).from_pretrained({str(asr_checkpoint)!r}, trust_remote_code=True)
    print(type(model).__name__, tuple(model.eval()(torch.zeros(1, 16000) + torch.arange(16000) % 7)[0].shape))
model = transformers.AutoModelForCTC.from_pretrained({str(asr_checkpoint)!r}, trust_remote_code=True)
model.save_pretrained({str(again)!r})
config = transformers.AutoConfig.from_pretrained({str(again)!r}, trust_remote_code=True)
config.save_pretrained({str(again)!r})
model = transformers.AutoModelForCTC.from_pretrained({str(again)!r}, trust_remote_code=True)
""")
    assert [line.split()[0] for line in printed.splitlines()] == [n for a, n in CLASSES.items() if a != "AutoConfig"]
    assert "SJepaForCTC (1, 49, 32)" in printed
    for path in (*asr_checkpoint.glob("*.py"), asr_checkpoint / "model.safetensors"):
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert json.loads((again / "config.json").read_text())["auto_map"] == AUTO_MAP


# A head of a user's own, in a file of the user's own.
OWN_HEAD = """
from torch import nn
from sjepa_hf import SJepaModel, SJepaPreTrainedModel

class Emotion(SJepaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.sjepa, self.out = SJepaModel(config), nn.Linear(config.hidden_size, 4)
        self.post_init()
"""


def test_a_class_of_the_user_s_own_travels_with_its_file(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "mood_head.py").write_text(OWN_HEAD)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("mood_head")
    module.Emotion.register_for_auto_class("AutoModelForAudioClassification")
    assert sjepa_hf.SJepaModel._auto_class is None
    model, saved, again = module.Emotion(make_config()), tmp_path / "saved", tmp_path / "again"
    model.save_pretrained(saved)
    auto_map = json.loads((saved / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP | {"AutoModelForAudioClassification": "mood_head.Emotion"}
    script = f"""
from transformers import AutoModelForAudioClassification
model = AutoModelForAudioClassification.from_pretrained({str(saved)!r}, trust_remote_code=True)
model.save_pretrained({str(again)!r})
print(type(model).__name__)
"""
    assert run_python(script).output == "Emotion\n"
    assert torch.equal(module.Emotion.from_pretrained(again).out.weight, model.out.weight)
    assert {path.name for path in again.glob("*.py")} == {*MODEL_CODE, "mood_head.py"}
    assert json.loads((again / "config.json").read_text())["auto_map"] == auto_map
    with pytest.raises(ValueError, match="code that is not sjepa_hf's"):
        contents(saved)


def test_a_configuration_of_the_user_s_own_is_not_taken_for_ours(tmp_path):
    class MyConfig(sjepa_hf.SJepaConfig):
        pass

    MyConfig.register_for_auto_class()
    assert MyConfig._auto_class == "AutoConfig" and sjepa_hf.SJepaConfig._auto_class is None
    places = {"AutoFeatureExtractor": "mine.Extractor", "AutoModel": "ada/x--auto_classes.SJepaModel"}
    sjepa_hf.SJepaConfig(auto_map=places).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved == AUTO_MAP | {"AutoFeatureExtractor": "mine.Extractor"}


def test_the_code_replaces_no_file_of_another_kind(tmp_path):
    (tmp_path / "units.py").write_text("mine = True")
    with pytest.raises(ValueError, match="holds units.py, which is none of a checkpoint"):
        sjepa_hf.SJepaConfig().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["units.py"]
    (tmp_path / "config.json").write_text("{}")  # an earlier version's code, say
    sjepa_hf.SJepaConfig().save_pretrained(tmp_path)
    assert "mine" not in (tmp_path / "units.py").read_text()


def test_transitions_work_without_the_package(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = sjepa_hf.SJepaForPreTraining(make_config(mixture_transitions=True))
    model.mixture.transitions.pairs.copy_(torch.rand(10, 10))
    model.save_pretrained(tmp_path / "mine")
    printed = without_the_package(f"""
import torch, transformers
model = transformers.AutoModelForPreTraining.from_pretrained({str(tmp_path / "mine")!r}, trust_remote_code=True)
print(*model.mixture.clip_posteriors(torch.linspace(-1, 1, 960).view(2, 10, 48), temperature=9.0)[1, 9].tolist())
""")
    expected = model.mixture.clip_posteriors(torch.linspace(-1, 1, 960).view(2, 10, 48), temperature=9.0)[1, 9]
    torch.testing.assert_close(torch.tensor([float(number) for number in printed.split()]), expected)


# What Transformers' own CTC script does: a tokenizer by the model's type, and a processor of parts saved one by one.
CTC_SCRIPT = """
config = AutoConfig.from_pretrained({checkpoint!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(
    {output!r}, config=config, tokenizer_type=config.model_type, pad_token="<pad>", word_delimiter_token="|"
)
extractor = AutoFeatureExtractor.from_pretrained({checkpoint!r}, trust_remote_code=True)
for part in (extractor, tokenizer, config):
    part.save_pretrained({output!r})
processor = AutoProcessor.from_pretrained({output!r})
print(type(tokenizer).__name__, type(processor).__name__, tokenizer("AB").input_ids)
print(sorted(processor.pad([{{"input_values": [0.0] * 3}}, {{"input_values": [0.0]}}])))
"""
IMPORTS = "from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, AutoTokenizer"


@pytest.mark.parametrize("packaged", [True, False])
def test_transformers_own_ctc_script_finds_tokenizer_and_processor(
    classifier_checkpoint, tmp_path, monkeypatch, capsys, packaged
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    output = tmp_path / "output"
    output.mkdir()
    (output / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    script = IMPORTS + CTC_SCRIPT.format(checkpoint=str(classifier_checkpoint), output=str(output))
    if packaged:
        exec(script, {})
        printed = capsys.readouterr().out
    else:
        printed = without_the_package(script)
    # Without the package, Transformers asks whether to run the code when it looks for the tokenizer, and goes on.
    assert "Wav2Vec2CTCTokenizer Wav2Vec2Processor [5, 6]" in printed
    assert "'attention_mask', 'input_values'" in printed


def test_parts_saved_one_by_one_are_a_processor_and_one_alone_is_what_it_is(make_config, tmp_path):
    feature_extractor().save_pretrained(tmp_path)
    sjepa_hf.SJepaModel(make_config()).save_pretrained(tmp_path)
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path)) is Wav2Vec2FeatureExtractor
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    sjepa_hf.SJepaForCTC(make_config()).save_pretrained(tmp_path)
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path)) is Wav2Vec2Processor


def test_speech_recognition_pipeline(asr_checkpoint):
    recognise = pipeline("automatic-speech-recognition", model=str(asr_checkpoint))
    assert type(recognise.model) is sjepa_hf.SJepaForCTC
    inputs = recognise.feature_extractor(WAVEFORM, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        answer = recognise.model(**inputs).logits.argmax(-1)
    assert recognise(WAVEFORM)["text"] == recognise.tokenizer.batch_decode(answer)[0]
    for unit in ("char", "word"):
        found = recognise(WAVEFORM, chunk_length_s=4, stride_length_s=1, return_timestamps=unit)
        ends = [chunk["timestamp"][1] for chunk in found["chunks"]]
        assert ends == sorted(ends) and all(0 <= end <= 7 for end in ends)


def test_audio_classification_pipeline(classifier_checkpoint):
    found = pipeline("audio-classification", model=str(classifier_checkpoint))(WAVEFORM, top_k=3)
    assert {entry["label"] for entry in found} == {"yes", "no", "stop"}
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-4)


def test_pipelines_without_the_package(asr_checkpoint, classifier_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    printed = without_the_package(f"""
import numpy as np
from transformers import pipeline
audio = np.random.default_rng(0).standard_normal(16000 * 7).astype("float32") * 0.1
p = pipeline("automatic-speech-recognition", model={str(asr_checkpoint)!r}, trust_remote_code=True)
print(p(audio, chunk_length_s=4, stride_length_s=1)["text"] is not None)
p = pipeline("audio-classification", model={str(classifier_checkpoint)!r}, trust_remote_code=True)
print(len(p(audio)))
""")
    assert printed.split() == ["True", "3"]
