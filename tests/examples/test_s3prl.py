"""The S3PRL upstream: every layer of a padded batch, each clip as it is alone, in the form that S3PRL asks for."""

import importlib.util
from pathlib import Path

import torch

import sjepa_hf


FILE = Path(__file__).parents[2] / "examples" / "s3prl" / "hubconf.py"


def test_the_upstream_gives_every_layer(make_config, tmp_path):
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path)
    spec = importlib.util.spec_from_file_location("hubconf", FILE)
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    assert hubconf.__all__ == ["sjepa_custom"], "whatever s3prl.hub sees it lists as an upstream"
    upstream = hubconf.sjepa_custom(str(tmp_path), model_config=None, refresh=False).eval()
    wavs = [torch.randn(16000), torch.randn(9000)]
    with torch.no_grad():
        layers, alone = upstream(wavs)["hidden_states"], upstream(wavs[1:])["hidden_states"]
    assert len(layers) == 4 and layers[0].shape == (2, 49, 48)
    assert upstream.get_downsample_rates("hidden_states") == 320
    for layer, same in zip(layers, alone):
        torch.testing.assert_close(layer[1, : same.shape[1]], same[0], atol=1e-5, rtol=0)
