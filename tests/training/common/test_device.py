import pytest
import torch

from training.common.device import default_device


@pytest.mark.parametrize(("there_is_one", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there_is_one, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert default_device() == expected
