import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("module", ["pretrain", "units", "finetuning/arguments"])
def test_it_is_set_before_torch_loads(module):
    before, line, _ = (ROOT / f"training/{module}.py").read_text().partition("\nimport training.common.onednn")
    assert line and "\nimport torch" not in before and "from s" not in before
    code = "import sys, training.common.onednn; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_the_user_has_set_stays():
    code = "import os, training.common.onednn; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    for given, taken in (({}, "64"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}, "7")):
        told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, check=True, stdout=subprocess.PIPE)
        assert told.stdout.decode().strip() == taken
