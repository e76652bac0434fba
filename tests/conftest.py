"""What several tests share: small configurations, the golden tensors and the folder of real speech."""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out among test files
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from functools import cache, partial
from pathlib import Path

import pytest
import shortcuts
import torch
from configs import small_config
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import load_file

from sjepa_hf import SJepaConfig


GOLDEN = Path(__file__).parent / "golden"
SPEECH = Path(os.environ.get("SJEPA_SPEECH", Path(__file__).parents[2] / "shared" / "speech"))


def pytest_collection_finish():
    """What was imported stays: no collection of garbage, of which every run ends with one, looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick():
    shortcuts.take()


@pytest.fixture
def pictures(monkeypatch):
    """Asked for by a test that looks at pictures: they are drawn."""
    monkeypatch.setattr(Figure, "savefig", shortcuts.draw)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo's limit of recompilations counts over all tests of a process."""
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def golden_targets() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "reference_targets.safetensors")


@pytest.fixture(scope="session")
def golden_model() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "reference_model.safetensors")


@pytest.fixture(scope="session")
def golden_model_metadata() -> dict[str, str]:
    with safe_open(GOLDEN / "reference_model.safetensors", "pt") as file:
        return file.metadata()


@pytest.fixture(scope="session")
def speech_if_any() -> Path | None:
    return SPEECH if (SPEECH / "README.md").is_file() else None


@pytest.fixture(scope="session")
def speech(speech_if_any) -> Path:
    if speech_if_any is None:
        pytest.skip(f"no real speech in {SPEECH}: set SJEPA_SPEECH to a folder of it")
    return speech_if_any


@pytest.fixture(params=["waveform", "log_mel", "stem"])
def config(request) -> SJepaConfig:
    return small_config(request.param)


@pytest.fixture(scope="session")
def make_config():
    return small_config


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """`exports(front_end, task)`: the ONNX files of a small checkpoint (exports.py), which all workers share."""
    from exports import small_export

    folder = tmp_path_factory.getbasetemp()
    return cache(partial(small_export, (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exports"))


@pytest.fixture
def padded_batch():
    """Three clips of different length and loudness: waveforms, attention mask, lengths; padding holds garbage."""
    lengths = torch.tensor([16000, 9037, 450])
    waveforms = torch.randn(3, 16000) * torch.tensor([0.1, 1.0, 0.01])[:, None]
    attention_mask = (torch.arange(16000) < lengths[:, None]).long()
    return waveforms, attention_mask, lengths
