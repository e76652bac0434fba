"""Whatever is wrong with a checkpoint becomes one sentence that names it."""

import json
import shutil

import pytest
from transformers import AutoModel

from sjepa_hf import SJepaConfig, SJepaModel
from sjepa_hf.opening import open_config, open_pretrained


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    config = SJepaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        front_end="log_mel",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        predictor_num_attention_heads=2,
    )
    SJepaModel(config).save_pretrained(directory)
    return directory


def edited(**changes):
    def edit(directory):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | changes))

    return edit


def truncated(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


DAMAGES = {
    "no configuration": lambda d: (d / "config.json").unlink(),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "empty weights": lambda d: (d / "model.safetensors").write_bytes(b""),
    "truncated weights": truncated,
    "a pointer in place of the weights": lambda d: (d / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "configuration that is no JSON": lambda d: (d / "config.json").write_text("{"),
    "configuration that is a list": lambda d: (d / "config.json").write_text("[]"),
    "configuration that is binary": lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
    "a size that is text": edited(hidden_size="large"),
    "no heads": edited(num_attention_heads=0),
    "an unknown kind": edited(model_type="none"),
    "weights of another size": edited(hidden_size=64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_sentence(damage, whole, tmp_path):
    checkpoint = tmp_path / "mine"
    shutil.copytree(whole, checkpoint)
    DAMAGES[damage](checkpoint)
    with pytest.raises(ValueError, match="mine cannot be opened as a directory or a name on the Hub: .") as caught:
        open_pretrained(AutoModel, checkpoint)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_whole_checkpoint_opens(whole):
    assert open_config(whole).hidden_size == 32
    assert open_pretrained(AutoModel, whole).config.num_hidden_layers == 1
