"""A card says what was measured and how, names what else was measured beside it, and invents nothing."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import HubertConfig, HubertForCTC

import sjepa_hf
from sjepa_hf import model_card
from sjepa_hf.scores import data_name, data_names, read_scores


@pytest.fixture
def checkpoint(make_config, tmp_path):
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def superb_rows(checkpoint, task="ks", **changes):
    """What `training.superb` writes: two seeds of the checkpoint, and a baseline."""
    row = {
        "task": task,
        "title": "keyword spotting",
        "metrics": {"accuracy": 0.0},
        "layer_weights": [1.0],
        "clips": {"train": 80, "dev": 20, "test": 20},
        "protocol": "s3prl/s3prl",
        "hyperparameters": {"head": "pooled", "train_data": ["/data/words"], "test_data": [], "max_steps": 100},
    } | changes
    found = [(str(checkpoint), 0, 0.9), (str(checkpoint), 1, 0.8), ("mfcc", 0, 0.5), ("untrained:x/y", 0, 0.6)]
    return [row | {"encoder": name, "seed": seed, "metrics": {"accuracy": value}} for name, seed, value in found]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def card(checkpoint, *arguments) -> ModelCard:
    model_card.main([str(checkpoint), *map(str, arguments)])
    return ModelCard.load(checkpoint / "README.md")


def test_what_was_not_measured_does_not_appear(checkpoint):
    written = card(checkpoint)
    assert "None was measured." in written.text and written.data.eval_results is None
    assert "No record of the training was kept" in written.text
    assert written.data.pipeline_tag == "feature-extraction" and written.data.license is None
    assert not (checkpoint / ".eval_results").exists()
    assert "0.1M parameters in the encoder" in written.text  # of 0.13M in all
    assert "![" not in written.text


def test_scores_stand_beside_their_baselines(checkpoint, tmp_path):
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(checkpoint))
    written = card(checkpoint, "--results", path)
    assert "| metric | this model | MFCC | untrained |" in written.text
    assert "| accuracy | **0.850 ± 0.071** | 0.500 | 0.600 |" in written.text
    assert "on words (20 test clips, a share held out at random; 100 steps; s3prl/s3prl; 2 seeds)" in written.text
    (result,) = written.data.eval_results
    assert (result.metric_value, result.dataset_name, result.task_type) == (0.85, "words", "audio-classification")


def test_probes_give_the_best_layer(checkpoint, tmp_path):
    scores = [
        {"label": "phones", "classifier": "linear", "subject": s, "layer": layer, "mean": mean, "deviation": 0.01}
        for s, layer, mean in (("mine", 0, 0.4), ("mine", 1, 0.6), ("mine", 2, 0.5), ("MFCC", None, 0.3))
    ]
    task = {"level": "frame", "rows": 900, "classes": 39, "splits": 3}
    found = {"checkpoints": {"mine": str(checkpoint)}, "data": ["/data/lj"], "protocol": {}, "scores": scores}
    (tmp_path / "probes.json").write_text(json.dumps(found | {"tasks": {"phones": task}}))
    (score,) = read_scores(tmp_path / "probes.json", checkpoint)
    assert (score.value, score.text, score.runs) == (0.6, "0.600 ± 0.010", "3 splits")
    assert score.task == "phones, linear probe of layer 1 (the best)" and score.baselines == {"MFCC": "0.300 ± 0.010"}


def test_a_recogniser_tells_its_error_rates_and_where_it_comes_from(make_config, tmp_path):
    directory = tmp_path / "asr"
    sjepa_hf.SJepaForCTC(make_config()).save_pretrained(directory)
    rates = {"greedy": {"wer": 0.5, "cer": 0.2}, "lm": {"wer": 0.4, "cer": 0.19}}
    (directory / "results.json").write_text(
        json.dumps({"steps": 90, "best_step": 60, "scores": {"/data/libri/test": {"clips": 7} | rates}})
    )
    record = {
        "kind": "fine-tuning",
        "base_model": "ada/encoder",
        "base_checkpoint": "ada/encoder",
        "from_scratch": False,
        "data": {"sources": ["/data/libri/train"], "clips": 30, "hours": 0.1},
        "steps": 90,
        "hours_taken": 0.25,
        "hardware": "1 x H200",
        "software": {"torch": "2.13.0"},
        "settings": {"learning_rate": 1e-4},
    }
    (directory / "training.json").write_text(json.dumps(record))
    written = card(directory, "--repo_id", "ada/asr")
    for line in (
        "- Sources: libri/train, 30 clips, 6.0 minutes",
        "- Fine-tuned from ada/encoder",
        "- Took 15.0 minutes on 1 x H200",
        "| learning_rate | 0.0001 |",
        "on libri/test (greedy decoding; 7 clips, best checkpoint by held-out clips (step 60); 1 seed)",
        "| wer (lower is better) | **0.400** |",
        'pipeline("automatic-speech-recognition", "ada/asr", trust_remote_code=True)',
    ):
        assert line in written.text, line
    assert written.data.base_model == "ada/encoder"
    assert [r.metric_value for r in written.data.eval_results] == [0.5, 0.2, 0.4, 0.19]


def test_a_fine_tuned_model_of_another_kind_is_not_called_s_jepa(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7)
    HubertForCTC(HubertConfig(**sizes, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    written = card(tmp_path, "--repo_id", "ada/asr")
    assert written.data.pipeline_tag == "automatic-speech-recognition" and "s-jepa" not in written.data.tags
    assert 'pipeline("automatic-speech-recognition", "ada/asr")' in written.text
    for of_ours in ("trust_remote_code", "import sjepa_hf", "2606.19398", "Citation"):
        assert of_ours not in written.text, of_ours


def test_a_pretraining_tells_which_checkpoint_it_began_with(checkpoint):
    record = {"kind": "pretraining", "base_model": None, "base_checkpoint": "first/final", "steps": 9}
    (checkpoint / "training.json").write_text(json.dumps(record | {"settings": {}}))
    assert "- Pretraining continued from first/final" in card(checkpoint).text


def test_facts_and_results_on_data_sets_of_the_hub(checkpoint, tmp_path):
    facts = {
        "name": "Tiny",
        "license": "apache-2.0",
        "language": ["en"],
        "data": "10 h of LibriSpeech (CC BY 4.0)",
        "limits": "Heard read English alone.",
        "result_data": {"words": {"name": "Words", "dataset_id": "some/words", "task_id": "test"}},
    }
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts))
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(checkpoint))
    written = card(checkpoint, "--facts", tmp_path / "facts.yaml", "--results", path)
    assert written.data.license == "apache-2.0" and "# Tiny" in written.text
    assert "- Data: 10 h of LibriSpeech (CC BY 4.0)" in written.text and "- Heard read English alone." in written.text
    (entry,) = yaml.safe_load((checkpoint / ".eval_results" / "some_words.yaml").read_text())
    assert entry["dataset"] == {"id": "some/words", "task_id": "test"} and entry["value"] == 0.85
    assert entry["notes"].startswith("accuracy; keyword spotting")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "holds no results"),
        ('{"some": "thing"}', "holds no results"),
        ("", "holds no results"),
    ],
)
def test_files_without_results_are_refused(checkpoint, tmp_path, content, sentence):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*x.json {sentence}"):
        model_card.main([str(checkpoint), "--results", str(tmp_path / "x.json")])
    assert not (checkpoint / "README.md").exists()


def test_results_of_another_model_are_refused(checkpoint, tmp_path):
    path = write_lines(tmp_path / "ks.jsonl", superb_rows(tmp_path / "another"))
    with pytest.raises(SystemExit, match="no score of .*mine, only of .*another, mfcc"):
        model_card.main([str(checkpoint), "--results", str(path)])


def test_unknown_facts_are_named(checkpoint, tmp_path):
    (tmp_path / "facts.yaml").write_text("licence: mit")
    with pytest.raises(SystemExit, match="the facts are fields among .*license"):
        model_card.main([str(checkpoint), "--facts", str(tmp_path / "facts.yaml")])


def test_sources_are_named_without_their_folders():
    assert data_name("/home/ada/libri/test") == "libri/test"
    assert data_name("/home/ada/words") == "words"
    assert data_name("speech_commands::v0.02::test") == "speech_commands::v0.02::test"
    assert data_name("ada/words") == "ada/words"
    assert data_names(["/data/train_a", "/data/train_b"]) == "train_a + train_b"
