"""The map of the package."""

import re
from pathlib import Path

import sjepa_hf
from sjepa_hf.configuration_sjepa import MODEL_CODE


def test_the_map_names_every_file_and_those_that_travel_first():
    lines = re.findall(r"^ {4}([\w., ]+\.py) +\S+ \S+", sjepa_hf.__doc__, re.MULTILINE)
    named = [name for line in lines for name in line.split(", ")]
    files = {path.name for path in Path(sjepa_hf.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert sorted(named) == sorted(files)
    assert set(named[: len(MODEL_CODE)]) == set(MODEL_CODE)
