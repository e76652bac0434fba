"""What a damaged checkpoint gets: one sentence, and never fresh weights in place of its own."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    HubertConfig,
    HubertModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

from sjepa_hf import SJepaForCTC, SJepaForPreTraining, SJepaModel, opening
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.opening import (
    MissingWeights,
    build_model,
    open_config,
    open_model,
    open_pretrained,
    open_pretraining,
    open_recogniser,
    open_sjepa,
)


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
    (halve, r"cannot be opened: a file of weights \(.safetensors\) is damaged or cut short"),
    (write("model.safetensors", b""), "cannot be opened: a file of weights"),
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


def test_what_is_no_checkpoint_is_told_without_asking_the_hub(originals, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere cannot be opened: there is no such directory"):
        open_config(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run cannot be opened: it has no config.json\.$"):
        open_config(tmp_path / "run")
    shutil.copytree(originals / "sjepa", tmp_path / "run" / "final")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^run cannot be opened: it has no config.json; give its `final`"):
        open_config("run")
    (tmp_path / "weights").write_bytes(b"")
    monkeypatch.setattr(AutoConfig, "from_pretrained", None)  # which asks the Hub, and waits for it
    for name in ("run/a/final", "./a", "../a", "~/a", "a/", "a/b/", "a.safetensors"):
        with pytest.raises(ValueError, match=f"^{name} cannot be opened: there is no such directory"):
            open_config(name)
    with pytest.raises(ValueError, match="^weights cannot be opened: it is a file: give its directory"):
        open_config("weights")


def test_the_hub_is_named_only_where_it_was_asked(originals, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="^name/nowhere cannot be opened from the Hub, and is no directory here: "):
        open_config("name/nowhere")
    with pytest.raises(ValueError, match="sjepa cannot be opened: ImportError: FlashAttention2"):
        open_model(AutoModel, originals / "sjepa", attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="sjepa cannot be opened: it has no vocab.json"):
        open_pretrained(Wav2Vec2CTCTokenizer, originals / "sjepa")


@pytest.mark.parametrize("kind", ["sjepa", "hubert"])
def test_a_head_is_fresh_only_where_it_may_be(originals, kind, caplog):
    caplog.set_level("INFO")
    model = open_model(AutoModelForCTC, originals / kind, fresh_head=True)
    assert f"{kind} has no weights for lm_head: they are fresh" in caplog.text
    weights = load_file(originals / kind / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.0.attention.q_proj.weight"))
    full = name if name.startswith(model.base_model_prefix) else f"{model.base_model_prefix}.{name}"
    assert model.state_dict()[full].equal(weights[name])
    with pytest.raises(MissingWeights) as caught:
        open_model(AutoModelForCTC, originals / kind)
    assert caught.value.names == ["lm_head.bias", "lm_head.weight"]


def test_outputs_have_names_whatever_the_configuration_asks_for(make_config, tmp_path):
    model = SJepaModel(make_config("log_mel"))
    model.config.return_dict = False
    model.save_pretrained(tmp_path)
    assert open_model(AutoModel, tmp_path)(torch.randn(1, 4000)).last_hidden_state.shape[:2] == (1, 12)


def test_a_configuration_that_makes_no_network(originals):
    config = open_config(originals / "hubert")
    config.num_attention_heads = 0
    with pytest.raises(ValueError, match="The configuration of .*hubert makes no network: ZeroDivisionError"):
        build_model(AutoModel, config, originals / "hubert")


def test_only_sjepa_is_opened_as_sjepa_and_in_fp32(originals, make_config, tmp_path):
    with pytest.raises(ValueError, match="hubert is of type hubert, not an S-JEPA checkpoint"):
        open_sjepa(AutoModel, originals / "hubert")
    SJepaModel(make_config("log_mel")).bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in open_sjepa(AutoModel, tmp_path).parameters()} == {torch.float32}


def test_a_model_of_pretraining_is_whole_or_none(originals, make_config, tmp_path):
    assert type(open_pretraining(originals / "sjepa")) is SJepaForPreTraining
    SJepaForCTC(make_config("log_mel")).save_pretrained(tmp_path / "asr")
    assert open_pretraining(tmp_path / "asr") is None
    shutil.copytree(originals / "sjepa", tmp_path / "torn")
    edit_weights(without_a_layer)(tmp_path / "torn")
    with pytest.raises(MissingWeights, match="torn lacks"):
        open_pretraining(tmp_path / "torn")


def test_a_recogniser_has_a_head_and_a_tokenizer_that_belong_together(originals, make_config, tmp_path):
    with pytest.raises(ValueError, match="sjepa has no CTC head, which transcripts need"):
        open_recogniser(originals / "sjepa")
    SJepaForCTC(make_config("log_mel", vocab_size=12)).save_pretrained(tmp_path)
    feature_extractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer that opens"):
        open_recogniser(tmp_path)
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    Wav2Vec2Processor(feature_extractor=feature_extractor(), tokenizer=tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 12 outputs, but its tokenizer only 8 labels"):
        open_recogniser(tmp_path)
    SJepaForCTC(make_config("log_mel", vocab_size=8)).save_pretrained(tmp_path)
    processor, model = open_recogniser(tmp_path)
    assert len(processor.tokenizer) == model.config.vocab_size == 8


def test_a_file_that_neither_cache_nor_hub_tells_of_gets_a_sentence(monkeypatch):
    def unreachable(checkpoint, name):
        raise LocalEntryNotFoundError("no connection") from OSError("timed out")

    monkeypatch.setattr(opening, "hf_hub_download", unreachable)
    with pytest.raises(ValueError, match=r"ada/x has training.json is not known, .* \(timed out\): try again"):
        opening.file_of("ada/x", "training.json")
    monkeypatch.setattr(opening, "try_to_load_from_cache", lambda checkpoint, name: opening._CACHED_NO_EXIST)
    assert opening.file_of("ada/x", "training.json") is None
