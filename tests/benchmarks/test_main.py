"""The map that `python -m benchmarks` prints, and the shell of the commands on it."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks


ROOT = Path(__file__).parents[2]
COMMANDS = [path for path in (ROOT / "benchmarks").rglob("*.py") if '\nif __name__ == "__main__":' in path.read_text()]
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in COMMANDS if path.name != "__main__.py"]


def test_the_map_names_every_file():
    done = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, check=True, capture_output=True, text=True)
    named = re.findall(r"^ +([\w/]+\.py) +\S+ \S+", done.stdout, re.MULTILINE)
    files = {path.relative_to(ROOT / "benchmarks").as_posix() for path in (ROOT / "benchmarks").rglob("*.py")}
    files = {file for file in files if not file.endswith("__.py")}
    assert sorted(named) == sorted(files)
    assert done.stdout.strip() == benchmarks.__doc__.strip()


def test_every_file_at_the_top_is_a_command():
    files = {path for path in (ROOT / "benchmarks").glob("*.py") if not path.name.startswith("__")}
    assert files <= set(COMMANDS) and len(files) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_every_command_tells_of_itself_and_refuses_in_a_sentence(name, capsys):
    main = importlib.import_module(name).main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--no_such_option", "1"])
    assert ended.value.code
    assert hasattr(main, "__wrapped__"), "runs in the shell of all commands"
