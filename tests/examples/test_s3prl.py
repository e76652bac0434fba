"""The S3PRL upstream: every layer of a padded batch, each clip as it is alone, in the form that S3PRL asks for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from processes import run_python

import sjepa_hf


FILE = Path(__file__).parents[2] / "examples" / "s3prl" / "hubconf.py"


@pytest.fixture
def hubconf():
    spec = importlib.util.spec_from_file_location("hubconf", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_upstream_gives_every_layer(hubconf, make_config, tmp_path):
    sjepa_hf.SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path)
    assert hubconf.__all__ == ["sjepa_custom"], "whatever s3prl.hub sees it lists as an upstream"
    upstream = hubconf.sjepa_custom(str(tmp_path), model_config=None, refresh=False).eval()
    wavs = [torch.randn(16000), torch.randn(9039)]  # with one sample more it would have a frame more
    with torch.no_grad():
        layers, alone = upstream(wavs)["hidden_states"], upstream(wavs[1:])["hidden_states"]
        top = upstream.model(wavs[1][None]).last_hidden_state
        assert upstream(wavs[1:])["last_hidden_state"].equal(top)
    assert len(layers) == 4 and layers[0].shape == (2, 49, 48)
    assert upstream.get_downsample_rates("hidden_states") == 320
    for layer, same in zip(layers, alone):
        torch.testing.assert_close(layer[1, : same.shape[1]], same[0], atol=1e-5, rtol=0)


def test_names_that_huggingface_hub_no_longer_has_are_there(hubconf):
    from huggingface_hub import HfFolder, Repository

    for use in (lambda: HfFolder.get_token(), lambda: Repository(local_dir="here")):
        with pytest.raises(RuntimeError, match="^This huggingface_hub can no longer publish"):
            use()


def test_s3prl_starts():
    if importlib.util.find_spec("s3prl") is None:
        pytest.skip("s3prl is not installed")
    # `s3prl.hub`, which imports hubconf.py once it is installed there, is the first that run_downstream.py imports.
    code = f"""
import runpy, sys
sys.path.insert(0, {str(FILE.parent)!r})
import hubconf
sys.argv = ["run_downstream", "--help"]
runpy.run_module("s3prl.run_downstream", run_name="__main__")
"""
    assert "--downstream" in run_python(code).output
