"""A small pretraining checkpoint."""

import pytest

import sjepa_hf


@pytest.fixture
def checkpoint(make_config, tmp_path):
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"
