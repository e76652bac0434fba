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


def small_config(front_end: str = "waveform", **changes) -> SJepaConfig:
    """A model small enough for a test, with every part of the full one."""
    settings = dict(
        front_end=front_end,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        predictor_intermediate_size=96,
        num_mixture_components=10,
        num_mel_bins=24,
    )
    return SJepaConfig(**(settings | changes))


@pytest.fixture(params=["waveform", "log_mel", "stem"])
def config(request) -> SJepaConfig:
    if request.param == "stem":
        return small_config("log_mel", stem_kernel_size=3, log_mel_cmn=True, log_mel_prior_frames=10)
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
