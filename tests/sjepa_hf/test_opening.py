"""What a damaged checkpoint gets: one sentence, and never fresh weights in place of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCTC, HubertConfig, HubertModel

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.opening import MissingWeights, build_model, open_config, open_model


@pytest.fixture(scope="module")
def originals(tmp_path_factory, make_config):
    """A pretraining checkpoint of ours and one of HuBERT."""
    folder = tmp_path_factory.mktemp("originals")
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(folder / "sjepa")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7)
    positions = dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    HubertModel(HubertConfig(**sizes, **positions)).save_pretrained(folder / "hubert")
    return folder


def edit_weights(change):
    def edit(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def write(name, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def halve(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def only_adapters(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def without_a_layer(weights):
    return {name: value for name, value in weights.items() if "encoder.layers.1." not in name}


def with_nan(weights):
    name = next(name for name in weights if "encoder.layers.0." in name and name.endswith("q_proj.weight"))
    return weights | {name: torch.full_like(weights[name], torch.nan)}


FAULTS = [
    (halve, "cannot be opened .*SafetensorError"),
    (write("model.safetensors", b""), "cannot be opened"),
    (write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer.*git lfs pull"),
    (write("config.json", b"{oops"), "not a valid JSON"),
    (lose_a_shard, "model-00001-of-00002.safetensors"),
    (edit_config(num_attention_heads=0), "cannot be opened"),
    (edit_config(hidden_size="big"), "hidden_size"),
    (edit_config(hidden_size=64), "has the shape .* but its config.json makes it"),
    (edit_config(num_hidden_layers=5), "lacks .* weights"),
    (edit_weights(without_a_layer), r"lacks .* weights of \w+ \(.*encoder.layers.1"),
    (edit_weights(with_nan), "q_proj.weight holds NaN"),
    (only_adapters, "holds adapters, not a whole model"),
]


@pytest.mark.parametrize("kind", ["sjepa", "hubert"])
@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_damaged_checkpoint_is_refused(originals, tmp_path, kind, damage, message):
    shutil.copytree(originals / kind, tmp_path / kind)
    damage(tmp_path / kind)
    for auto_class, options in ((AutoModel, {}), (AutoModelForCTC, {"fresh_head": True})):
        with pytest.raises(ValueError, match=message):
            open_model(auto_class, tmp_path / kind, **options)


@pytest.mark.parametrize("kind", ["sjepa", "hubert"])
def test_a_head_is_fresh_only_where_it_may_be(originals, kind):
    model = open_model(AutoModelForCTC, originals / kind, fresh_head=True)
    weights = load_file(originals / kind / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.0.attention.q_proj.weight"))
    full = name if name.startswith(model.base_model_prefix) else f"{model.base_model_prefix}.{name}"
    assert model.state_dict()[full].equal(weights[name])
    with pytest.raises(MissingWeights) as caught:
        open_model(AutoModelForCTC, originals / kind)
    assert caught.value.names == ["lm_head.bias", "lm_head.weight"]


def test_a_configuration_that_makes_no_network(originals):
    config = open_config(originals / "hubert")
    config.num_attention_heads = 0
    with pytest.raises(ValueError, match="The configuration of .*hubert makes no network: ZeroDivisionError"):
        build_model(AutoModel, config, originals / "hubert")
