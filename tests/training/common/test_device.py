import pytest
import torch

from training.common.device import choose_precision, default_device, on_cpu


@pytest.mark.parametrize(("there_is_one", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there_is_one, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert default_device() == expected


@pytest.mark.parametrize("units, taken", [({}, "no"), ({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16")])
def test_auto_precision_is_bf16_where_the_cpu_has_units_for_it(monkeypatch, units, taken):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units)
    assert choose_precision("auto") == taken
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match="`mixed_precision` fp16 needs a GPU"):
        choose_precision("fp16")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert choose_precision("fp16") == "fp16"


@pytest.mark.parametrize(("units", "taken"), [(True, "bf16"), (False, "no")])
def test_auto_precision_is_bf16_where_the_gpu_has_units_for_it(monkeypatch, units, taken):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert choose_precision("auto") == taken


def test_accelerate_is_told_of_the_cpu(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for there_is_one, expected in ((False, True), (True, False)):
        monkeypatch.setattr("torch.accelerator.is_available", lambda there=there_is_one: there)
        assert on_cpu() == expected
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert on_cpu()
