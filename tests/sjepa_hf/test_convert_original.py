import json

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from sjepa_hf.convert_original import convert, convert_state_dict, main


@pytest.fixture(scope="module")
def released(golden_model):
    return {name.removeprefix("state."): t for name, t in golden_model.items() if name.startswith("state.")}


@pytest.fixture
def converted(released, golden_model_metadata, tmp_path):
    torch.save({"online": released, "step": 7}, tmp_path / "portable.pt")
    heads = json.loads(golden_model_metadata["config"])["num_heads"]
    convert(tmp_path / "portable.pt", tmp_path / "converted", num_attention_heads=heads)
    return tmp_path / "converted"


def test_golden_encoder(converted, golden_model):
    model = AutoModel.from_pretrained(converted).eval()
    output = model(golden_model["input.waveform"].squeeze(1), output_hidden_states=True)
    features = golden_model["output.conv_features"].transpose(1, 2)
    torch.testing.assert_close(output.extract_features, features, atol=1e-5, rtol=0)
    for layer in range(3):
        expected = golden_model[f"output.layer_{layer}"]
        torch.testing.assert_close(output.hidden_states[layer + 1], expected, atol=1e-5, rtol=0)


def test_weights_are_folded_in_fp32_whatever_the_file_holds(released):
    rounded = {name: tensor.bfloat16() for name, tensor in released.items()}
    found, wanted = (
        convert_state_dict(state) for state in (rounded, {name: tensor.float() for name, tensor in rounded.items()})
    )
    for name in ("predictor.projection.weight", "predictor.projection.bias"):
        assert torch.equal(found[name], wanted[name])


def test_golden_masked_prediction(converted, golden_model):
    model = AutoModelForPreTraining.from_pretrained(converted).eval()
    hidden = golden_model["input.visible_mask"] == 0
    waveforms = golden_model["input.waveform"].squeeze(1)
    context = model.sjepa(waveforms, mask_time_indices=hidden).last_hidden_state
    torch.testing.assert_close(context, golden_model["output.masked_context"], atol=1e-5, rtol=0)
    visible_path = golden_model["output.logits_visible_path"]
    torch.testing.assert_close(model.cluster_head(context), visible_path, atol=1e-5, rtol=0)
    logits = model(waveforms, mask_time_indices=hidden).logits
    expected = torch.where(hidden[:, :, None], golden_model["output.logits_masked_path"], visible_path)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_the_command_keeps_the_mixture(released, tmp_path, capsys):
    mixture = {"gmm_weights": torch.rand(10).softmax(0), "gmm_means": torch.randn(10, 48)}
    mixture["gmm_variances"] = torch.rand(10, 48) + 0.1
    ema = {name: 2 * tensor for name, tensor in released.items()}
    torch.save({"online": released, "ema_encoder": ema, **mixture}, tmp_path / "portable.pt")
    main([str(tmp_path / "portable.pt"), str(tmp_path / "out"), "--num_attention_heads", "4"])
    assert "assumed" not in capsys.readouterr().out
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    for name in ("weights", "means", "variances"):
        assert torch.equal(getattr(model.mixture, name), mixture[f"gmm_{name}"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.return_attention_mask and not extractor.do_normalize
    averaged = convert(tmp_path / "portable.pt", tmp_path / "ema", num_attention_heads=4, use_ema=True)
    weight = "feature_projection.projection.weight"
    assert torch.equal(averaged.sjepa.get_parameter(weight), 2 * model.sjepa.get_parameter(weight))


def test_a_file_without_a_mixture_is_converted_alike_each_time(released, tmp_path):
    torch.save(released, tmp_path / "portable.pt")
    state = torch.get_rng_state()
    one, other = (convert(tmp_path / "portable.pt", tmp_path / name, num_attention_heads=4) for name in "ab")
    assert torch.equal(one.mixture.means, other.mixture.means) and not one.mixture.is_fitted()
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_that_are_assumed_are_told(released, tmp_path, capsys):
    torch.save(released, tmp_path / "portable.pt")
    main([str(tmp_path / "portable.pt"), str(tmp_path / "out")])
    assert "assumed 1 attention heads of 48 dimensions: the weights do not say" in capsys.readouterr().out


def test_bad_checkpoints_get_a_sentence(released, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"online": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        convert(tmp_path / "evil.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="There is no checkpoint"):
        convert(tmp_path / "absent.pt", tmp_path / "out")
    torch.save({"something": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no encoder"):
        convert(tmp_path / "other.pt", tmp_path / "out")
    encoder = {name: tensor for name, tensor in released.items() if not name.startswith(("cluster_head", "predictor"))}
    torch.save({"online": encoder}, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match="lacks predictor.layers.0.linear1.weight, .*belong together"):
        convert(tmp_path / "encoder.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="not a tensor of the released code"):
        convert_state_dict({**released, "codebook.weight": torch.ones(2)})
    assert not (tmp_path / "out").exists()


HEADS = 4  # of the golden model
NAN = float("nan")
MIXTURE = {
    "gmm_weights": torch.full((10,), 0.1),
    "gmm_means": torch.zeros(10, 48),
    "gmm_variances": torch.ones(10, 48),
}


def changed(**changes):
    """A checkpoint of which some tensors are replaced (names with `__` for `.`), or left out where None."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}

    def make(released):
        return {name: t for name, t in (released | changes).items() if t is not None}

    return make


ODD = {
    "nothing": (lambda released: {}, "holds no encoder"),
    "a list": (lambda released: [torch.ones(2)], "holds no encoder"),
    "a tensor": (lambda released: torch.ones(2), "holds no encoder"),
    "online None": (lambda released: {"online": None}, "holds no encoder"),
    "nested": (lambda released: {"online": {"model": released}}, "holds no encoder"),
    "numbers as names": (lambda released: {**released, 7: torch.ones(2)}, "7 among its names"),
    "a number": (changed(post_extract_proj__bias=3.0), "post_extract_proj.bias.* is of type float"),
    "integers": (changed(post_extract_proj__bias=torch.ones(48, dtype=torch.int32)), "post_extract_proj.bias"),
    "complex numbers": (changed(layer_norm__bias=torch.ones(48, dtype=torch.complex64)), "layer_norm.bias"),
    "sparse": (changed(layer_norm__bias=torch.ones(48).to_sparse()), "layer_norm.bias"),
    "NaN": (changed(layer_norm__bias=torch.full((48,), NAN)), "layer_norm.bias.* NaN or infinite"),
    "infinite": (changed(layers__1__fc1__bias=torch.full((96,), -torch.inf)), "layers.1.fc1.bias.* NaN or infinite"),
    "a scalar": (changed(post_extract_proj__weight=torch.tensor(1.0)), "must have 2 dimensions"),
    "an empty tensor": (changed(post_extract_proj__weight=torch.ones(48, 0)), "must have 2 dimensions"),
    "one dimension": (changed(predictor__pos_embed__weight=torch.ones(48)), "must have 2 dimensions"),
    "no groups": (changed(pos_conv__conv__parametrizations__weight__original1=torch.ones(48, 48, 0)), "3 dimensions"),
    "a tensor missing": (changed(layers__1__fc1__weight=None), "lacks .*layers.1.feed_forward.intermediate_dense"),
    "half of a layer": (changed(layer_norm__bias=None), "lacks .*feature_projection.layer_norm.bias"),
    "another width": (changed(layers__1__fc1__weight=torch.ones(96, 47)), "intermediate_dense.weight. has shape"),
    "a layer missing": (changed(layers__7__fc1__bias=torch.ones(96)), "not numbered from 0 without a gap"),
    "10^8 layers": (changed(layers__99999999__fc1__bias=torch.ones(96)), "not numbered from 0 without a gap"),
    "a layer without a number": (changed(layers__x__fc1__bias=torch.ones(96)), "not a tensor of the released code"),
    "an unknown tensor": (changed(codebook=torch.ones(2)), "not a tensor of the released code"),
    "packed heads": (changed(predictor__layers__0__self_attn__in_proj_bias=torch.ones(100)), "query, key and value"),
    "proj alone": (changed(predictor__proj__weight=None), "lacks `predictor.proj.weight`"),
    "proj of another size": (changed(predictor__proj__bias=torch.ones(3)), r"predictor.proj.bias. has shape \(3,\)"),
    "half an expert": (changed(predictor__expert_projs__0__bias=None), "lacks `predictor.expert_projs.0.bias`"),
    "two experts": (changed(predictor__expert_projs__1__bias=torch.ones(48)), "several predictor experts"),
    "half a mixture": (
        lambda r: {"online": r, "gmm_means": MIXTURE["gmm_means"]},
        "without gmm_weights, gmm_variances",
    ),
    "another K": (
        lambda r: {"online": r, **MIXTURE, "gmm_means": torch.zeros(9, 48)},
        r"mixture.means. has shape \(9, 48\) there",
    ),
    "a flat mixture": (lambda r: {"online": r, **MIXTURE, "gmm_means": torch.zeros(10)}, "gmm_means"),
    "a mixture of lists": (lambda r: {"online": r, **MIXTURE, "gmm_weights": [0.1] * 10}, "of type list"),
    "weights of another K": (lambda r: {"online": r, **MIXTURE, "gmm_weights": torch.ones(3) / 3}, r"\(3,\)"),
    "weights of no sum": (lambda r: {"online": r, **MIXTURE, "gmm_weights": torch.ones(10)}, "sum to 1"),
    "variances of zero": (lambda r: {"online": r, **MIXTURE, "gmm_variances": torch.zeros(10, 48)}, "not positive"),
    "NaN means": (lambda r: {"online": r, **MIXTURE, "gmm_means": torch.full((10, 48), NAN)}, "NaN or infinite"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_checkpoints_get_a_sentence_and_leave_nothing_behind(odd, released, tmp_path):
    make, message = ODD[odd]
    torch.save(make(released), tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message) as raised:
        convert(tmp_path / "odd.pt", tmp_path / "out", HEADS)
    assert "odd.pt" in str(raised.value) and "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + 30 * b"\0", b"no checkpoint", b"\x80\x04K\x01.", 64 * b"("])
@pytest.mark.parametrize("name", ["odd.pt", "odd.safetensors"])
def test_files_that_are_no_checkpoints_get_a_sentence(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as raised:
        convert(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("heads", [0, -4, 5, 100, 2.0])
def test_heads_that_do_not_divide_get_a_sentence(heads, released, tmp_path):
    torch.save(released, tmp_path / "portable.pt")
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert(tmp_path / "portable.pt", tmp_path / "out", heads)


def test_an_ema_encoder_is_checked_too(released, tmp_path):
    for ema, message in ((None, "of type NoneType"), ({}, "lacks"), ({"post_extract_proj.weight": 1}, "of type int")):
        torch.save({"online": released, "ema_encoder": ema}, tmp_path / "portable.pt")
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "portable.pt", tmp_path / "out", HEADS, use_ema=True)


def test_what_lies_in_the_way_stays(released, tmp_path):
    torch.save(released, tmp_path / "portable.pt")
    (tmp_path / "out").mkdir()  # an empty one is not in the way
    convert(tmp_path / "portable.pt", tmp_path / "out", HEADS)
    for way in ("", "portable.pt", "out"):
        with pytest.raises(ValueError, match="exists already: name a directory that is not there"):
            convert(tmp_path / "portable.pt", tmp_path / way, HEADS)
    with pytest.raises(ValueError, match="is a directory"):
        convert(tmp_path, tmp_path / "again")
    with pytest.raises(ValueError, match="out is a directory: AutoModel opens it as it is"):
        convert(tmp_path / "out", tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"portable.pt", "out"}
