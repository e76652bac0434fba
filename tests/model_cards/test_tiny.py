"""The weights that come with the clone: they open everywhere, and they know something."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from processes import without_the_package
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from sjepa_hf.contents import contents
from sjepa_hf.frame_features import FRAME_FEATURES
from training.data.masking import SpanMask
from training.pretraining.hidden_frames import hidden_frame_metrics


ROOT = Path(__file__).parents[2]
TINY = ROOT / "model_cards" / "tiny"
RECORD = json.loads((TINY / "training.json").read_text())


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    samples, rate = soundfile.read(ROOT / "model_cards" / "space" / "clip.opus", dtype="float32")
    assert rate == 16000
    return samples


def test_what_lies_there_is_what_is_published_and_small():
    found = contents(TINY)
    here = {path.name for path in TINY.iterdir() if path.name not in found.left_out}
    assert found.left_out.keys() == {"facts.yaml"} and here <= found.files.keys()
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 10e6
    assert not list(TINY.glob("*.py")), "the code is that of sjepa_hf/, kept once"


def test_half_precision_on_disk_is_whole_precision_in_memory(clip):
    model = AutoModel.from_pretrained(TINY).eval()
    inputs = AutoFeatureExtractor.from_pretrained(TINY)(clip, sampling_rate=16000, return_tensors="pt")
    hidden = model(**inputs).last_hidden_state
    assert hidden.dtype == torch.float32 and hidden.shape == (1, 256, 256) and hidden.isfinite().all()


def test_the_prediction_knows_more_than_who_speaks(clip):
    """At hidden frames its divergence lies below that of the clip's mean posterior, by half a nat and more."""
    model = AutoModelForPreTraining.from_pretrained(TINY).eval()
    audio = torch.from_numpy(clip)[None]
    features = FRAME_FEATURES[RECORD["settings"]["phase1_features"]]()
    targets = model.mixture.clip_posteriors(features(audio, torch.tensor([len(clip)])))
    gains = []
    for seed in range(4):
        mask = SpanMask(RECORD["settings"]["mask_prob"])(
            torch.tensor([targets.shape[1]]), targets.shape[1], torch.Generator().manual_seed(seed)
        )
        with torch.no_grad():
            output = model(audio, mask_time_indices=mask, target_posteriors=targets)
        batch = {"masked_positions": mask[0].nonzero()[:, 0], "visible_positions": (~mask[0]).nonzero()[:, 0]}
        gains.append(hidden_frame_metrics(model.mixture, targets, output, batch)["gain_over_clip_mean"])
    assert np.mean(gains) > 0.5


def test_it_opens_as_remote_code_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name, path in contents(TINY).files.items():
        shutil.copyfile(path, tmp_path / name)
    printed = without_the_package(f"""
import torch, transformers
model = transformers.AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).eval()
print(type(model).__name__, model.dtype, tuple(model(torch.arange(16000)[None] % 7 / 7).last_hidden_state.shape))
""")
    assert printed.split("\n")[0] == "SJepaModel torch.float32 (1, 49, 256)"
