"""Clusters fitted to layers of an encoder: saved, opened again, refused where the encoder is another."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import save
from transformers import HubertConfig, HubertModel

from sjepa_hf import SJepaModel
from sjepa_hf.fitted_units import FittedUnits, holds_fitted_units
from sjepa_hf.kmeans import nearest


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)


@pytest.fixture(params=["sjepa", "hubert"])
def checkpoint(request, make_config, tmp_path):
    ours = request.param == "sjepa"
    model = SJepaModel(make_config("log_mel", num_hidden_layers=2)) if ours else HubertModel(HubertConfig(**SMALL))
    return save(model, tmp_path / "encoder")


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size).astype(np.float32) * 0.1 for size in (16000, 7000, 12000, 9000)]


@pytest.mark.parametrize("method", ["kmeans", "mixture"])
def test_fitted_units_open_again_as_they_were(checkpoint, clips, method, tmp_path):
    units = FittedUnits.fit(checkpoint, clips, layers=[1, 2], num_components=5, method=method)
    units.save_pretrained(tmp_path / "units")
    assert holds_fitted_units(tmp_path / "units") and not holds_fitted_units(checkpoint)
    again = FittedUnits.from_pretrained(tmp_path / "units")
    inputs = again.inputs(clips[:2])
    expected, found = units.units(*inputs, top_k=2), again.units(*inputs, top_k=2)
    assert found.units.equal(expected.units) and found.top_posteriors.equal(expected.top_posteriors)
    assert again.unit_posteriors(*inputs)[0].topk(2).values.equal(found.top_posteriors[0])
    assert (
        found.lengths.tolist() == [49, 21] and found.units[1, 21:].eq(-1).all() and found.units[0].unique().numel() > 1
    )
    description = json.loads((tmp_path / "units" / "units.json").read_text())
    assert description["encoder"] == checkpoint and description["layers"] == [1, 2]
    assert (description["num_components"], description["method"]) == (5, method)
    if method == "kmeans":
        features, _ = again.features(*inputs)
        assert found.units[0].equal(nearest(features[0], again.mixture.means))


def test_units_lie_beside_their_encoder(checkpoint, clips, tmp_path):
    units = FittedUnits.fit(checkpoint, clips, layers=[1], num_components=3)
    units.save_pretrained(checkpoint)
    assert FittedUnits.from_pretrained(checkpoint).mixture.means.equal(units.mixture.means)


def test_a_description_without_the_hash_gets_a_sentence(checkpoint, clips, tmp_path):
    units = FittedUnits.fit(checkpoint, clips, layers=[1], num_components=3)
    del units.description["weights"]
    units.save_pretrained(tmp_path / "units")
    with pytest.raises(ValueError, match="units holds no fitted units that open: KeyError: 'weights'"):
        FittedUnits.from_pretrained(tmp_path / "units")


def test_another_encoder_is_refused_and_a_moved_one_found(checkpoint, clips, tmp_path):
    FittedUnits.fit(checkpoint, clips, layers=[1], num_components=3).save_pretrained(tmp_path / "units")
    shutil.copytree(checkpoint, tmp_path / "moved")
    model = FittedUnits.from_pretrained(tmp_path / "units").encoder
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    save(model, tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"was fitted to another encoder than .* is now \(layers \[1\], 3 comp"):
        FittedUnits.from_pretrained(tmp_path / "units")
    assert FittedUnits.from_pretrained(tmp_path / "units", encoder=tmp_path / "moved").layers == [1]


def test_what_cannot_be_fitted_or_opened_gets_a_sentence(checkpoint, clips, tmp_path):
    with pytest.raises(ValueError, match="to 20 frames: give a larger `max_frames` than 20 or fewer components"):
        FittedUnits.fit(checkpoint, clips, layers=[1], num_components=30, max_frames=20)
    with pytest.raises(ValueError, match="Cannot fit 500 components to 134 frames: give more audio or fewer"):
        FittedUnits.fit(checkpoint, clips, layers=[1])
    with pytest.raises(ValueError, match="`layers` has 9, but the encoder has layers 0 to 2"):
        FittedUnits.fit(checkpoint, clips, layers=[9])
    with pytest.raises(ValueError, match="`method` is 'gmm'; choose one of kmeans, mixture"):
        FittedUnits.fit(checkpoint, clips, layers=[1], method="gmm")
    hubert = HubertModel(HubertConfig(**SMALL, conv_stride=(5, 2, 2, 2, 2, 2, 1)))
    with pytest.raises(
        ValueError, match="makes frames of .* samples every 160 .* made for 400 every 320: take an enc"
    ):
        FittedUnits.fit(save(hubert, tmp_path / "other"), clips, layers=[1])
    with pytest.raises(ValueError, match="holds no fitted units that open"):
        FittedUnits.from_pretrained(tmp_path)
