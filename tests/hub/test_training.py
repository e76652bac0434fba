"""`--push_to_hub` of the training scripts: the result with its card, checkpoints as revisions, and what goes wrong."""

import copy
import json
import os
import re
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard, constants
from other_encoders import KINDS, save_other
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCTC, pipeline

from sjepa_hf.contents import ADAPTER, PRETRAINING
from sjepa_hf.opening import open_config
from sjepa_hf.push import push
from training import finetune_classification, finetune_ctc, pretrain
from training.common import publishing
from training.common.run_record import base_of, hardware, write_record
from training.pretraining.other_pretraining import load_other


RECIPE = """
model_config:
  front_end: log_mel
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  num_conv_pos_embeddings: 16
  num_conv_pos_embedding_groups: 2
  predictor_num_attention_heads: 2
  predictor_intermediate_size: 64
mixed_precision: "no"
report_to: none
max_seconds: 2
batch_seconds: 6
bucket_buffer_size: 8
num_workers: 0
phase1_components: 8
fit_frames: 500
phase1_steps: 4
phase2_steps: 0
phase1_warmup_steps: 1
start_layer: 2
save_steps: 2
save_total_limit: 1
"""
FAST = ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--use_cpu", "true"]
FAST += ["--max_steps", "2", "--disable_tqdm", "true", "--push_to_hub", "true"]


@pytest.fixture
def clips(tmp_path):
    """Twelve clips of noise with transcripts, which are classes too."""
    folder, rng = tmp_path / "clips", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,text"]
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(12000), 16000)
        lines.append(f"{number}.wav,{'AB'[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def start_pretraining(clips, directory, *options, recipe=RECIPE) -> None:
    (directory / "recipe.yaml").write_text(recipe)
    fixed = ["--config", str(directory / "recipe.yaml"), "--train_data", str(clips)]
    pretrain.main([*fixed, "--output_dir", str(directory / "out"), "--push_to_hub", "true", *options])


def test_a_pretraining_run_publishes_checkpoints_and_result(hub, clips, tmp_path):
    start_pretraining(clips, tmp_path, "--hub_model_id", "ada/encoder", "--hub_strategy", "every_save")
    refs = hub.repos["ada/encoder"].refs
    assert refs.keys() == {"main", "step-2", "step-4"}
    final = tmp_path / "out" / "final"
    assert hub.files("ada/encoder")["model.safetensors"] == (final / "model.safetensors").read_bytes()
    assert hub.files("ada/encoder", "step-2")["model.safetensors"] != hub.files("ada/encoder")["model.safetensors"]
    assert not any("training_state" in name for name in hub.files("ada/encoder", "step-2"))
    assert AutoModel.from_pretrained("ada/encoder", revision="step-2").config.num_hidden_layers == 2
    card = ModelCard.load("ada/encoder")
    assert re.search(r"- Heard \d+ seconds of audio \(repeats counted\) in 4 steps", card.text)
    assert re.search(r"- Took [\d.]+ seconds on 1 process of", card.text) and "- Sources: clips" in card.text
    assert "![Losses in pretraining](loss.png)" in card.text and "loss.png" in hub.files("ada/encoder")
    assert "| phase1_steps | 4 |" in card.text and "AutoModel" in card.text
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (tmp_path / "out" / ".uploading").exists()
    published = hub.files("ada/encoder").values()
    assert not any(str(tmp_path).encode() in content for content in published), "no path of this machine"


def test_an_encoder_of_another_kind_is_published_with_what_a_later_run_takes(hub, clips, tmp_path):
    """Its card says what it is, and the pretraining goes on from its name on the Hub."""
    theirs = save_other(copy.deepcopy(KINDS["hubert"]), tmp_path / "theirs")
    start = ["--initial_checkpoint", str(theirs), "--hub_model_id", "ada/hubert"]
    recipe = "model_config: {predictor_dropout: 0}\nmixed_precision" + RECIPE.partition("mixed_precision")[2]
    start_pretraining(clips, tmp_path, *start, recipe=recipe)
    files = hub.files("ada/hubert")
    assert {"model.safetensors", "preprocessor_config.json", *PRETRAINING} <= files.keys()
    assert not any(name.endswith(".py") for name in files)
    text = ModelCard.load("ada/hubert").text
    assert "A hubert encoder, whose pretraining was continued" in text and "Please cite the paper" in text
    assert 'AutoModel.from_pretrained("ada/hubert").eval()' in text
    assert AutoModel.from_pretrained("ada/hubert").config.model_type == "hubert"
    model = load_other("ada/hubert", open_config("ada/hubert"))
    final = load_file(tmp_path / "out" / "final" / PRETRAINING[1])
    assert final.keys() and all(model.state_dict()[name].equal(final[name]) for name in final)
    shutil.rmtree(tmp_path / "out")
    start_pretraining(clips, tmp_path, *start, recipe=recipe)  # into the same repo once more
    with pytest.raises(SystemExit, match="holds a hubert model, not a sjepa model"):
        start_pretraining(clips, tmp_path, "--hub_model_id", "ada/hubert", "--output_dir", str(tmp_path / "other"))


def test_what_may_lie_beside_an_encoder_is_not_taken_as_absent_unless_it_is_known(hub, tmp_path, monkeypatch, caplog):
    """Without an answer from the Hub opening is refused; offline the log says it, but for what the cache knows."""
    push(save_other(copy.deepcopy(KINDS["hubert"]), tmp_path / "theirs"), "ada/hubert")
    config = open_config("ada/hubert")
    hub.fail("HEAD", "/pretraining/", 501, times=99)
    with pytest.raises(
        ValueError, match="Whether ada/hubert has pretraining/config.json is not known, .* .501 .*: try"
    ):
        load_other("ada/hubert", config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_other("ada/hubert", config) is None
    assert "ada/hubert: pretraining/model.safetensors is taken as absent, for all that is known" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.failures.clear()
    assert load_other("ada/hubert", config) is None  # and now it is known
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_other("ada/hubert", config) is None and not caplog.messages


def test_the_card_of_a_published_model_shows_code_that_runs(hub, clips, tmp_path):
    start_pretraining(clips, tmp_path, "--hub_model_id", "encoder")
    (code,) = re.findall(r"```python\n(.*?)```", ModelCard.load("ada/encoder").text, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["outputs"].last_hidden_state.shape == (1, 49, 32)


def test_a_run_that_may_not_push_ends_before_it_begins(hub, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(SystemExit, match="error: The access token may not write to ada/encoder"):
        start_pretraining(clips, tmp_path, "--hub_model_id", "ada/encoder")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_what_cannot_be_pushed_is_there_all_the_same(hub, clips, tmp_path):
    """A checkpoint that fails is left out; the result is on disk, and the last line says how to push it."""
    hub.fail("PUT", "/lfs/", 507, times=99)
    with pytest.raises(SystemExit) as caught:
        start_pretraining(clips, tmp_path, "--hub_model_id", "encoder", "--hub_strategy", "every_save")
    final = tmp_path / "out" / "final"
    assert f"python -m sjepa_hf.push {final} ada/encoder" in caught.value.code
    assert "no space left" in caught.value.code and "model.safetensors" not in hub.files("ada/encoder")
    assert (final / "model.safetensors").is_file() and not (tmp_path / "out" / ".uploading").exists()


def test_an_early_end_begins_no_upload_and_says_which_one_it_waits_for(hub, pretrained, tmp_path, monkeypatch, caplog):
    """Two checkpoints of one name: the one under way goes up as it was, the other not at all."""
    again, weights = shutil.copytree(pretrained, tmp_path / "again" / pretrained.name), "model.safetensors"
    content = (pretrained / weights).read_bytes()
    (again / weights).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    began, go, pushed = threading.Event(), threading.Event(), []

    def slow_push(copy, repo_id, revision):
        began.set()
        assert go.wait(30)
        pushed.append((revision, (copy / weights).read_bytes()))

    monkeypatch.setattr(publishing, "push", slow_push)
    publisher = publishing.Publisher("ada/encoder", "sjepa", tmp_path)
    publisher.checkpoint(pretrained, "step-2")
    assert began.wait(30)
    publisher.checkpoint(again, "step-2")
    publisher.stop()
    assert "not pushed to ada/encoder, as the run ends early: 1." in caplog.text
    assert "A checkpoint is still on its way to ada/encoder" in caplog.text
    go.set()
    publisher._thread.shutdown(wait=True)
    assert pushed == [("step-2", content)] and (pretrained / weights).read_bytes() == content
    assert list((tmp_path / ".uploading").iterdir()) == []


def test_without_links_files_are_copied_and_an_upload_that_fails_is_left_out(
    hub, pretrained, tmp_path, monkeypatch, caplog
):
    def no_link(*_):
        raise OSError("no links here")

    def push_all_but_one(copy, repo_id, revision=None):
        if revision == "step-4":
            raise RuntimeError("broken")
        time.sleep(0.03 if revision else 0)  # the result waits for it
        pushed.append((repo_id, revision, (copy / "model.safetensors").read_bytes()))
        return SimpleNamespace(commit_url="there")

    pushed, content = [], (pretrained / "model.safetensors").read_bytes()
    monkeypatch.setattr(publishing.os, "link", no_link)
    monkeypatch.setattr(publishing, "push", push_all_but_one)
    left = tmp_path / ".uploading" / "0" / "model.safetensors"  # by a run that was killed
    left.parent.mkdir(parents=True)
    left.write_text("another's")
    publisher = publishing.Publisher("encoder", "sjepa", tmp_path, private=True)
    assert not left.exists() and hub.repos["ada/encoder"].private
    for directory, revision in ((pretrained, "step-2"), (pretrained, "step-4"), (tmp_path / "nothing", "step-6")):
        publisher.checkpoint(directory, revision)
    publisher.finish(pretrained)
    assert pushed == [("ada/encoder", "step-2", content), ("ada/encoder", None, content)]
    assert "could not be pushed to ada/encoder: broken" in caplog.text
    assert "nothing could not be set aside to be pushed: " in caplog.text
    assert not (tmp_path / ".uploading").exists()


def test_fine_tuned_models_are_published(hub, clips, pretrained, tmp_path):
    fixed = ["--model_name_or_path", str(pretrained), "--train_data", str(clips), *FAST]
    finetune_ctc.main([*fixed, "--output_dir", str(tmp_path / "asr"), "--hub_private_repo", "true"])
    words = ["--label_column", "text", "--output_dir", str(tmp_path / "words"), "--hub_model_id", "ada/two-words"]
    finetune_classification.main([*fixed, *words])
    assert hub.repos["ada/asr"].private and not hub.repos["ada/two-words"].private
    asr = hub.files("ada/asr")
    assert {"vocab.json", "results.json", "training.json", "learning_curve.png"} <= asr.keys()
    assert "transcripts.jsonl" not in asr and "training_args.bin" not in asr
    assert AutoModelForCTC.from_pretrained("ada/asr").config.vocab_size == len(json.loads(asr["vocab.json"]))
    (cer,) = [row["value"] for row in json.loads(asr["results.json"])["scores"] if row["metric"] == "cer"]
    card = ModelCard.load("ada/asr")
    assert f"| cer (lower is better) | {cer:.3f} (no better than chance) |" in card.text
    assert "Fine-tuned from" in card.text and str(tmp_path) not in card.text
    assert not any(str(tmp_path).encode() in content for content in asr.values()), "no path of this machine"
    assert {e["label"] for e in pipeline("audio-classification", "ada/two-words")(np.zeros(16000))} == {"A", "B"}


def test_adapters_are_published_beside_the_merged_model(hub, clips, pretrained, tmp_path):
    fixed = ["--model_name_or_path", str(pretrained), "--train_data", str(clips), *FAST]
    finetune_ctc.main(
        [*fixed, "--output_dir", str(tmp_path / "asr"), "--lora_rank", "2", "--head_learning_rate", "0.1"]
    )
    files = hub.files("ada/asr")
    assert {name for name in files if "/" in name} == set(ADAPTER)
    assert not any(str(tmp_path).encode() in content for content in files.values()), "no path of this machine"
    merged = AutoModelForCTC.from_pretrained("ada/asr").eval()
    base = AutoModelForCTC.from_pretrained(pretrained, vocab_size=merged.config.vocab_size)
    adapted = PeftModel.from_pretrained(base, "ada/asr", subfolder="adapter").eval()
    waveform = torch.randn(1, 8000)
    assert torch.allclose(adapted(waveform).logits, merged(waveform).logits, atol=1e-5)


def test_a_record_carries_those_of_all_checkpoints_before(clips, tmp_path, caplog):
    """Each with the facts beside it; none of it has a path of this machine."""
    start = []
    for name in ("first", "second", "third"):
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        fixed = ["--config", str(tmp_path / "recipe.yaml"), "--train_data", str(clips), "--save_steps", "9"]
        pretrain.main([*fixed, *start, "--output_dir", str(tmp_path / name)])
        final = tmp_path / name / "final"
        start = ["--initial_checkpoint", str(final)]
        if name == "first":
            (final / "facts.yaml").write_text("data: books\nlicense: mit\nauthors: Ada\n")
    found = json.loads((final / "training.json").read_text())
    second, first = found["base"], found["base"]["base"]
    assert (found["base_model"], found["base_checkpoint"]) == (None, "second/final")
    assert second["base_checkpoint"] == "first/final" and "base_checkpoint" not in first
    assert first.pop("facts") == {"data": "books", "license": "mit"}
    assert first == {name: second[name] for name in ("kind", "data", "steps", "hours_heard")}
    assert second["steps"] == 4 and second["data"] == {"sources": ["clips"]} and str(tmp_path) not in json.dumps(found)
    shutil.copy(tmp_path / "first" / "final" / "facts.yaml", final)
    (final / "training.json").write_text("{torn")
    assert base_of(str(final))["base"] == {"facts": {"data": "books", "license": "mit"}}
    assert f"What {final} has heard is not known: " in caplog.text


def test_a_base_goes_by_its_name_on_the_hub_or_by_its_last_names(hub, pretrained, tmp_path, monkeypatch):
    (tmp_path / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base_of(None) == {}
    for path, name in (
        ("../b/c", "b/c"),
        ("c", "c"),
        ("../b", "b"),
        (str(tmp_path / "b" / "c"), "b/c"),
        (str(tmp_path / "b"), "b"),
        ("../x", "x"),
        ("~/x", "x"),
    ):
        assert base_of(path) == {"base_model": None, "base_checkpoint": name}
    monkeypatch.chdir("c")
    assert base_of("../d")["base_checkpoint"] == "d"
    (pretrained / "training.json").write_text('{"steps": 4, "settings": {}}')
    push(pretrained, "encoder")
    known = {"base_model": "ada/encoder", "base_checkpoint": "ada/encoder", "base": {"steps": 4}}
    assert base_of("ada/encoder") == known
    assert base_of("ada/absent") == {"base_model": "ada/absent", "base_checkpoint": "ada/absent"}


def test_a_record_names_an_apple_gpu():
    assert hardware(SimpleNamespace(device=torch.device("mps"), num_processes=1)).startswith("an Apple GPU (mps), ")


def test_a_record_takes_names_that_are_not_utf_8(tmp_path):
    sources = [os.fsdecode(b"n\xff"), "\u00e9"]
    machine = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    write_record(tmp_path, machine, settings={}, data={"sources": sources})
    text = (tmp_path / "training.json").read_text(encoding="utf-8")
    assert json.loads(text)["data"] == {"sources": sources} and "\u00e9" in text


def test_a_record_has_the_settings_of_the_run_and_none_of_the_machine(tmp_path):
    machine = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    settings = {"output_dir": "a", "num_workers": 3, "lexicon": "/home/ada/words.txt", "unset": None, "p_mix": 0.0}
    write_record(tmp_path, machine, settings=settings, from_scratch=False)
    found = json.loads((tmp_path / "training.json").read_text())
    assert found["settings"] == {"lexicon": "words.txt", "p_mix": 0.0}
    assert "thread" in found["hardware"] and found["software"].keys() >= {"python", "torch"}
    assert base_of(str(tmp_path))["base"] == {"from_scratch": False}
