import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from sjepa_hf.convert_original import convert, convert_state_dict


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


def test_the_command_keeps_the_mixture(released, tmp_path):
    mixture = {"gmm_weights": torch.rand(10).softmax(0), "gmm_means": torch.randn(10, 48)}
    mixture["gmm_variances"] = torch.rand(10, 48) + 0.1
    ema = {name: 2 * tensor for name, tensor in released.items()}
    torch.save({"online": released, "ema_encoder": ema, **mixture}, tmp_path / "portable.pt")
    command = [sys.executable, "-m", "sjepa_hf.convert_original", tmp_path / "portable.pt", tmp_path / "out"]
    done = subprocess.run([*command, "--num_attention_heads", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    for name in ("weights", "means", "variances"):
        assert torch.equal(getattr(model.mixture, name), mixture[f"gmm_{name}"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.return_attention_mask and not extractor.do_normalize
    averaged = convert(tmp_path / "portable.pt", tmp_path / "ema", num_attention_heads=4, use_ema=True)
    weight = "feature_projection.projection.weight"
    assert torch.equal(averaged.sjepa.get_parameter(weight), 2 * model.sjepa.get_parameter(weight))


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
