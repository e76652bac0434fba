"""The menu of `python -m training`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import MENU, main


ROOT = Path(__file__).parents[2]


def test_every_command_is_in_the_menu(capsys):
    main([])
    shown = capsys.readouterr().out
    files = {path.stem for path in (ROOT / "training").glob("*.py")} - {"__init__", "__main__"}
    assert set(MENU["training"]) == files
    for package, names in MENU.items():
        for name in names:
            line = next(line for line in shown.splitlines() if line.split()[:1] == [f"{package}.{name}"])
            assert len(line.split()) > 4 and len(line) < 120, line
            assert line.rstrip().endswith((".", "?")), f"the first line of {name}'s docstring is no sentence: {line}"


def test_every_command_of_the_library_is_in_the_menu():
    commands = {
        path.stem for path in (ROOT / "sjepa_hf").glob("*.py") if '\nif __name__ == "__main__":' in path.read_text()
    }
    assert set(MENU["sjepa_hf"]) == commands


def test_the_menu_needs_no_torch():
    code = "import sys; from training.__main__ import main; main([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_word_is_no_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--data", "a"])
    told = capsys.readouterr()
    assert stopped.value.code == 2 and not told.out
    assert "  training.pretrain " in told.err
    assert told.err.endswith("error: `python -m training` takes no 'pretrain': call a command by its name above.\n")


def test_a_package_that_is_missing_comes_with_the_way_out(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    command = [sys.executable, "-m", "training.analyze", "--help"]
    ended = subprocess.run(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: No module named 'matplotlib") and '`pip install --editable ".[train]"`' in last
