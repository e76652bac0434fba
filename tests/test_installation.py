"""What is installed: bounds that are stated once, no torchaudio, a sentence where a library does not fit."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement

from sjepa_hf import configuration_sjepa


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
THIRD_PARTY = [requirement for requirement in [*CORE, *EXTRAS] if requirement.name != "sjepa_hf"]


def lower_bound(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == ">=", f"{requirement} has no lower bound"
    return specifier.version


def test_every_dependency_has_one_lower_bound():
    bounds = {}
    for requirement in THIRD_PARTY:
        assert bounds.setdefault(requirement.name, lower_bound(requirement)) == lower_bound(requirement)


def test_what_a_wheel_lacks_is_installed_editable():
    """A wheel holds sjepa_hf alone, and the page imports training."""
    lines = re.findall(
        r"^pip install .*\[(?:.*,)?(?:train|page|test)\b.*", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 3 and all(line.startswith("pip install --editable ") for line in lines)


def test_the_space_asks_for_what_the_project_asks_for():
    bounds = {requirement.name: lower_bound(requirement) for requirement in THIRD_PARTY}
    lines = (ROOT / "model_cards/space/requirements.txt").read_text().splitlines()
    for requirement in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        assert bounds[requirement.name] == lower_bound(requirement), requirement


def test_nothing_that_is_installed_needs_torchaudio():
    """PyPI's builds of it cannot be imported beside a CPU build of torch, and then transformers cannot either."""
    assert "torchaudio" not in {requirement.name for requirement in [*CORE, *EXTRAS]}
    for folder in ("sjepa_hf", "training", "benchmarks", "examples", "model_cards"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != ROOT / "sjepa_hf/__init__.py":  # which looks whether it is broken
                assert not re.search(r"^\s*(import|from) torchaudio", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("error", ["OSError('libc10_cuda.so: cannot open')", "RuntimeError('CUDA 13.0 and 12.6')"])
def test_a_torchaudio_for_another_torch_is_explained(tmp_path, error):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(f"raise {error}")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", "import sjepa_hf"], capture_output=True, text=True, env=environment)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "pip uninstall torchaudio" in last and error[-12:-2] in last


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "5.20.2", "5.21.0", "5.21.0.dev0", "6.0.0"])
def test_a_transformers_below_the_bound_is_named(monkeypatch, version):
    """By the file that is imported first, in the package and beside a checkpoint."""
    (bound,) = [lower_bound(requirement) for requirement in CORE if requirement.name == "transformers"]
    assert bound == "5.21"
    monkeypatch.setattr(transformers, "__version__", version)
    spec = importlib.util.spec_from_file_location("configuration_again", configuration_sjepa.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    if version in ("4.57.1", "5.0.0", "5.20.2"):
        with pytest.raises(ImportError, match=f"needs transformers>={bound}, and {version} is installed"):
            spec.loader.exec_module(module)
    else:
        spec.loader.exec_module(module)


def test_every_file_of_a_checkpoint_is_named_in_the_first():
    """A copy from the Hub that broke off is mended in what `auto_classes` imports itself."""
    named = re.findall(r"^from \.(\w+) import", (ROOT / "sjepa_hf/auto_classes.py").read_text(), re.MULTILINE)
    assert {f"{name}.py" for name in named} == set(configuration_sjepa.MODEL_CODE) - {"auto_classes.py"}
    assert named[0] == "configuration_sjepa"
