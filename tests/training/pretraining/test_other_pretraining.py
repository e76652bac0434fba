"""Runs over an encoder of another kind: from its weights to one of its own kind, killed and resumed, gone on with."""

import copy
import json
import shutil

import pytest
import torch
from other_encoders import KINDS, save_other
from pretraining_runs import RECIPE, assert_equal_weights, in_one_thread
from processes import without_the_package
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig

from training import pretrain
from training.analyze import open_head
from training.pretraining import phases
from training.pretraining.checkpoint_layout import damage


OPEN = """
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel
model, loading = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1])
inputs = extractor(torch.load(sys.argv[2]).numpy(), sampling_rate=16000, return_tensors="pt")
torch.save([type(model).__name__, model.eval()(inputs.input_values).last_hidden_state], sys.argv[3])
"""


@pytest.fixture(scope="session")
def other_runs(noise, tmp_path_factory):
    """A finished run of phase 2 from a HuBERT, its command, and the HuBERT."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(0)
    theirs = save_other(copy.deepcopy(KINDS["hubert"]), folder / "theirs")
    recipe = RECIPE.format(front_end="log_mel").split("\nmixed_precision")[1]
    chosen = "model_config: {predictor_num_attention_heads: 2, predictor_intermediate_size: 64}\nmixed_precision"
    (folder / "recipe.yaml").write_text(chosen + recipe.replace("start_layer: 2", "start_layer: null"))
    fixed = ["--config", str(folder / "recipe.yaml"), "--train_data", str(noise), "--report_to", "none"]
    fixed += ["--phase1_steps", "0", "--phase2_steps", "7", "--save_total_limit", "0", "--save_steps", "2"]
    fixed += ["--initial_checkpoint", str(theirs)]
    in_one_thread([*fixed, "--output_dir", str(folder / "out")])
    return folder / "out", fixed, theirs


def test_what_comes_out_is_an_encoder_of_its_own_kind(other_runs, tmp_path):
    """Where this package cannot be imported it opens whole, and gives the very numbers that it gave in the run."""
    final, theirs = other_runs[0] / "final", other_runs[2]
    samples = torch.randn(9000)
    torch.save(samples, tmp_path / "samples")
    without_the_package(OPEN, final, tmp_path / "samples", tmp_path / "out")
    kind, found = torch.load(tmp_path / "out")
    trained = resumed_model(other_runs, tmp_path).sjepa.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = trained.extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    assert kind == "HubertModel" and found.equal(trained.model(inputs).last_hidden_state)
    torch.set_num_threads(threads)
    assert json.loads((final / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, final))
    assert before.keys() == after.keys()
    assert not any(
        after[name].equal(before[name]) for name in ("masked_spec_embed", "encoder.layers.2.final_layer_norm.weight")
    )
    assert not (final / "modeling_sjepa.py").exists()
    assert damage(final) is None


def test_a_mask_embedding_that_its_configuration_has_not_lies_beside(other_runs, tmp_path):
    """`mask_time_prob` 0: AutoModel finds nothing in the encoder that it does not know, and nothing is lost."""
    theirs = save_other(copy.deepcopy(KINDS["wav2vec2"]), tmp_path / "theirs")
    options = ["--initial_checkpoint", str(theirs), "--output_dir", str(tmp_path / "out")]
    run = pretrain.prepare(pretrain.parse_arguments([*other_runs[1], *options]))
    run.lock.release()
    run.model.save_pretrained(tmp_path / "saved")
    loading = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)[1]
    assert not loading["unexpected_keys"] and not loading["missing_keys"]
    again, wanted = open_head(str(tmp_path / "saved"), "cpu").state_dict(), run.model.state_dict()
    assert again.keys() == wanted.keys() and all(again[name].equal(wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("kind", "fresh"),
    [("wav2vec2", "predictor, cluster head, mask embedding"), ("hubert", "predictor, cluster head")],
)
def test_what_is_fresh_is_named(kind, fresh, other_runs, tmp_path, caplog):
    """Both have `mask_time_prob` 0, but `mask_feature_prob` above 0 gives the HuBERT a mask embedding of its own."""
    caplog.set_level("INFO")
    config = copy.deepcopy(KINDS[kind])
    config.mask_time_prob = 0.0
    theirs = save_other(config, tmp_path / "theirs")
    options = ["--initial_checkpoint", str(theirs), "--output_dir", str(tmp_path / "out")]
    pretrain.prepare(pretrain.parse_arguments([*other_runs[1], *options])).lock.release()
    assert f"{theirs} is a {kind} without {fresh}: they are fresh." in caplog.messages


def resumed_model(other_runs, folder):
    """The model of the finished run, as resuming opens it."""
    shutil.copytree(other_runs[0], folder / "resumed")
    again = ["--output_dir", str(folder / "resumed"), "--resume_from_checkpoint", str(folder / "resumed" / "final")]
    run = pretrain.prepare(pretrain.parse_arguments([*other_runs[1], *again, "--phase2_steps", "9"]))
    run.lock.release()
    return run.model


def test_a_run_starts_from_its_weights(other_runs, noise, tmp_path):
    run = pretrain.prepare(pretrain.parse_arguments([*other_runs[1], "--output_dir", str(tmp_path / "new")]))
    run.lock.release()
    theirs = AutoModel.from_pretrained(other_runs[2]).state_dict()
    ours = run.model.sjepa.model.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert run.model.predictor.layers[0].attention.q_proj.weight.std() < 0.03  # initialised as ours is


def test_phase_2_begins_at_once_on_the_layer_of_the_highest_effective_rank(other_runs, tmp_path, caplog, monkeypatch):
    """Of layers from 1 on, where the recipe says `start_layer: null`; the plan names encoder and padding."""
    caplog.set_level("INFO")
    monkeypatch.setattr(phases, "layer_ranks", lambda *of_the_run: [9.0, 1.0, 3.0, 2.0])
    in_one_thread([*other_runs[1], "--output_dir", str(tmp_path / "new"), "--phase2_steps", "2"])
    assert "Effective ranks of the layers, 0 first: 9.0 1.0 3.0 2.0. Layer 2 leads." in caplog.messages
    assert "Seeding the mixture on features of layer 2." in caplog.messages
    assert "a HubertModel" in caplog.text and "Padding: this encoder reads it too" in caplog.text
    assert "6 clusters of the layer of the highest effective rank of the EMA encoder" in caplog.text
    first = json.loads((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["phase"] == 2 and first["active_layer"] == 2 and first["layer_scores"] == [9.0, 1.0, 3.0, 2.0]


@pytest.mark.parametrize("step", [0, 2, 4])
def test_resuming_is_exact(step, other_runs, tmp_path):
    """From the start, and from checkpoints of phase 2: the same weights bit for bit, and all that lies beside them."""
    out, fixed, _ = other_runs
    if step:
        shutil.copytree(out, tmp_path / "out")
    at = ["--resume_from_checkpoint", str(tmp_path / "out" / f"checkpoint-{step}")] if step else []
    in_one_thread([*fixed, "--output_dir", str(tmp_path / "out"), *at])
    assert_equal_weights(out / "final", tmp_path / "out" / "final")
    for name in ("pretraining/model.safetensors", "training_state/teacher.safetensors"):
        first, second = (load_file(folder / "final" / name) for folder in (out, tmp_path / "out"))
        assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("kind", ["wavlm", "data2vec-audio"])
def test_both_phases_run_over_other_kinds(kind, other_runs, tmp_path):
    theirs = save_other(copy.deepcopy(KINDS[kind]), tmp_path / "theirs")
    options = ["--initial_checkpoint", str(theirs), "--phase1_steps", "3", "--phase2_steps", "3"]
    options += ["--phase2_warmup_steps", "1", "--gradient_checkpointing", "true", "--freeze_feature_encoder", "true"]
    in_one_thread([*other_runs[1], "--output_dir", str(tmp_path / "out"), *options])
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "out" / "final"))
    same = {name for name in after if after[name].equal(before.get(name, torch.tensor(0.0)))}
    assert same == {name for name in after if name.startswith("feature_extractor.")}


def test_a_later_run_takes_what_lies_beside_it(other_runs, tmp_path):
    """Predictor and head are those of the run before; the mixture is made anew, as for checkpoints of ours."""
    final = other_runs[0] / "final"
    again = [*other_runs[1], "--initial_checkpoint", str(final), "--output_dir", str(tmp_path / "new")]
    run = pretrain.prepare(pretrain.parse_arguments(again))
    run.lock.release()
    weights = load_file(final / "pretraining" / "model.safetensors")
    ours = run.model.state_dict()
    assert weights.keys() == {name for name in ours if not name.startswith("sjepa.")}
    assert all(ours[name].equal(weights[name]) for name in weights)
    other = [*again, "--model_config", '{"predictor_intermediate_size": 32}']
    with pytest.raises(SystemExit, match="predictor_intermediate_size = 32, but the predictor of .*final has 64"):
        pretrain.main(other)
    shutil.copytree(final, tmp_path / "torn")
    (tmp_path / "torn" / "pretraining" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(SystemExit, match="error: .*pretraining/model.safetensors cannot be taken: "):
        pretrain.main([*again, "--initial_checkpoint", str(tmp_path / "torn")])
    (tmp_path / "torn" / "pretraining" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="error: .*torn lacks pretraining/model.safetensors, though other files"):
        pretrain.main([*again, "--initial_checkpoint", str(tmp_path / "torn")])
    with pytest.raises(SystemExit, match="error: `output_dir` .*torn holds a model: name another directory"):
        pretrain.main([*again, "--output_dir", str(tmp_path / "torn")])


def test_its_entropy_can_be_analysed(other_runs, tmp_path):
    """With predictor and head beside the encoder; without them, a sentence."""
    model = open_head(str(other_runs[0] / "final"), "cpu")
    assert model(torch.randn(1, 8000)).logits.shape == (1, 24, 6)
    with pytest.raises(ValueError, match="theirs holds no S-JEPA pretraining head"):
        open_head(str(other_runs[2]), "cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model_config", '{"hidden_size": 64}'], "`model_config` sets hidden_size, but .*, a hubert"),
        (["--start_layer", "4"], "`start_layer` names layer 4, but the model has layers 1 to 3"),
        (["--frozen_weight", "0.5"], "`frozen_weight` keeps the targets of phase 1, but there are none"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_a_sentence(options, sentence, other_runs, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        pretrain.main([*other_runs[1], "--output_dir", str(tmp_path / "new"), *options])


def test_a_text_model_is_refused_in_a_sentence(other_runs, tmp_path):
    BertConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(SystemExit, match="error: .*text is of type bert, which does not take `input_values` and"):
        pretrain.main(
            [*other_runs[1], "--output_dir", str(tmp_path / "new"), "--initial_checkpoint", str(tmp_path / "text")]
        )
