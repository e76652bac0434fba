from pathlib import Path

import pytest

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.feature_extraction import feature_extractor


@pytest.fixture
def checkpoint(make_config, tmp_path) -> Path:
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "final")
    feature_extractor().save_pretrained(tmp_path / "final")
    return tmp_path / "final"
