"""The README's Python runs as it stands, on a small checkpoint, and its commands name things that exist."""

import re
from pathlib import Path

import torch

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.saving import feature_extractor


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_snippets_run(make_config, tmp_path):
    SJepaForPreTraining(make_config()).save_pretrained(tmp_path)
    feature_extractor().save_pretrained(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        names = {}
        exec(snippet.replace("demo-output/model/final", str(tmp_path)), names)
        assert names["outputs"].last_hidden_state.shape[:2] == torch.Size([2, 74])


def test_files_that_the_readme_names_exist():
    named = set(re.findall(r"(?:training|sjepa_hf|docs)/[\w/]+\.(?:py|yaml|png)", README))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
