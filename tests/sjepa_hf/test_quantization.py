"""Linear layers that others' tools quantise: their weights hold integers, or are no tensors at all."""

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

from sjepa_hf import SJepaForCTC, SJepaForPreTraining, SJepaForSequenceClassification, SJepaModel


def first_output(model, waveforms: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(waveforms)
    return (output.last_hidden_state if isinstance(model, SJepaModel) else output.logits).float()


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_dynamic")
@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForCTC, SJepaForPreTraining])
def test_quantize_dynamic(model_class, config):
    model, waveforms = model_class(config).eval(), torch.randn(2, 8000)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(module, torch.nn.Linear) for module in quantised.modules())
    assert 0 < relative_error(first_output(quantised, waveforms), first_output(model, waveforms)) < 0.1


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_dynamic")
def test_a_quantised_model_takes_another_mixture(config):
    model = torch.ao.quantization.quantize_dynamic(SJepaForPreTraining(config).eval(), {torch.nn.Linear})
    model.replace_mixture(4, 48)
    assert model(torch.randn(1, 4000)).logits.shape == (1, 12, 4)


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "most"), [("load_in_4bit", 0.2), ("load_in_8bit", 0.03)])
def test_bitsandbytes(bits, most, dtype, make_config, tmp_path):
    for front_end in ("waveform", "log_mel"):
        sizes = dict(hidden_size=256, intermediate_size=512, conv_dim=[64] * 7, num_mel_bins=64)
        model = SJepaModel(make_config(front_end, **sizes)).eval()
        model.save_pretrained(tmp_path)
        quantised = AutoModel.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(**{bits: True}), dtype=dtype
        )
        waveforms = torch.randn(2, 8000)
        error = relative_error(first_output(quantised.eval(), waveforms), first_output(model, waveforms))
        assert 0 < error < most


@pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed")
@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForCTC, SJepaForSequenceClassification])
def test_torchao(model_class, make_config, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    model, waveforms = model_class(make_config("log_mel")).eval(), torch.randn(2, 8000)
    model.save_pretrained(tmp_path / "whole")
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    quantised = model_class.from_pretrained(tmp_path / "whole", quantization_config=settings, dtype="float32").eval()
    found = first_output(quantised, waveforms)
    assert 0 < relative_error(found, first_output(model, waveforms)) < 0.03
    quantised.save_pretrained(tmp_path / "int8")
    assert torch.equal(first_output(model_class.from_pretrained(tmp_path / "int8").eval(), waveforms), found)
