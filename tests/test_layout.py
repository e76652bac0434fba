"""The layout: which room may import which, how long a file is, that each module is on a map and has its test file."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
LONGEST = 500  # lines of a file
MAY_IMPORT = {  # beside itself: everything a room stands on
    "sjepa_hf": set(),
    "common": {"sjepa_hf"},
    "data": {"sjepa_hf", "common"},
    "targets": {"sjepa_hf", "common", "data"},
    "pretraining": {"sjepa_hf", "common", "data", "targets"},
    "finetuning": {"sjepa_hf", "common", "data"},
    "evaluation": {"sjepa_hf", "common", "data"},
    "corpus": {"sjepa_hf", "common", "data"},
    "commands": {
        *("sjepa_hf", "common", "data", "targets", "pretraining", "finetuning", "evaluation", "corpus", "commands"),
    },
    "model_cards": {"sjepa_hf", "data", "corpus"},
}

TESTED_ELSEWHERE = {  # modules without a test file of their name and place, and the file that tests them
    "sjepa_hf.auto_classes": "sjepa_hf/test_sharing",
    "sjepa_hf.configuration_sjepa": "sjepa_hf/test_modeling_sjepa",
    "sjepa_hf.contents": "hub/test_contents",
    "sjepa_hf.push": "hub/test_push",
    "training.common.metrics.classification": "training/common/test_metrics",
    "training.common.metrics.slots": "training/common/test_metrics",
    "training.common.metrics.speech": "training/common/test_metrics",
    "training.common.naming": "training/data/test_metadata",
    "training.common.publishing": "hub/test_training",
    "training.common.run_record": "hub/test_training",
    "training.evaluation.probes.results": "training/test_probe",
    "training.finetuning.classification": "training/test_finetune_classification",
    "training.finetuning.ctc": "training/test_finetune_ctc",
}


def modules() -> dict[str, Path]:
    """Every module of the package, of training, benchmarks, examples and the page, by its dotted name."""
    found = {}
    for folder in ("sjepa_hf", "training", "benchmarks", "examples", "model_cards"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room that a module is in; files of `training/` itself are commands."""
    top, *below = module.split(".")
    if top != "training":
        return top
    return below[0] if below and (ROOT / "training" / below[0]).is_dir() else "commands"


def imports(module: str) -> set[str]:
    """What of ours a module imports when it runs, anywhere in it."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []  # names in annotations alone
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) + 1 - node.level], *base.split(".")])
            base = base.rstrip(".")
            names = [inner if (inner := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    return found - {module}


IMPORTS = {module: imports(module) for module in MODULES}


def test_imports_are_found():
    """The tests below would pass on an empty table."""
    assert len(MODULES) > 100
    assert "training.pretraining.run" in IMPORTS["training.pretrain"]
    assert "sjepa_hf.mixture" in IMPORTS["sjepa_hf.modeling_sjepa_pretraining"]
    assert sum(map(len, IMPORTS.values())) > 300


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_it_stands_on(name):
    allowed = MAY_IMPORT[name] | {name}
    upward = [
        f"{module} imports {other}"
        for module in MODULES
        if room(module) == name
        for other in sorted(IMPORTS[module])
        if room(other) not in allowed
    ]
    assert upward == []


@pytest.mark.parametrize("folder", [path.name for path in sorted((ROOT / "training").iterdir()) if path.is_dir()])
def test_the_map_of_a_room_names_each_of_its_modules(folder):
    there = [path.stem for path in (ROOT / "training" / folder).glob("*.py") if path.stem != "__init__"]
    text = (ROOT / "training" / folder / "__init__.py").read_text(encoding="utf-8") if there else ""
    assert [name for name in there if not re.search(rf"(?m)`{name}`|\b{name}\.py|^ +{name}  ", text)] == []


def test_no_module_is_part_of_a_circle():
    left = {module: {other for other in found if other != module} for module, found in IMPORTS.items()}
    while free := {module for module, found in left.items() if not found & left.keys()}:
        left = {module: found for module, found in left.items() if module not in free}
    assert sorted(left) == []


def test_no_module_is_longer_than_a_reader_likes():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length >= LONGEST} == {}


def test_every_command_reads_its_options_by_the_same_rules():
    """No abbreviations, and dashes for underscores: those of `CommandParser` and `options_of`."""
    parsers = {"ArgumentParser", "HfArgumentParser"}
    made = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and parsers & {getattr(node.func, "id", None), getattr(node.func, "attr", None)}
    }
    assert made == {"training.common.command_line"}


def test_the_listing_of_a_room_names_all_its_files():
    """Where the first words of its `__init__` name any."""
    listed, unnamed = 0, []
    for room_name, path in MODULES.items():
        if path.name != "__init__.py" or not room_name.startswith(("sjepa_hf", "training")):
            continue
        listing = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = [file.stem for file in path.parent.glob("*.py") if file.name != "__init__.py"]
        lacking = [f"{room_name}.{name}" for name in names if not re.search(rf"\b{name}\b", listing)]
        if len(lacking) < len(names):
            listed, unnamed = listed + 1, unnamed + lacking
    assert listed > 7 and unnamed == []


def place_of_tests(module: str) -> Path:
    """Where the tests of a module are looked for."""
    *folders, name = module.split(".")
    return ROOT.joinpath("tests", *folders, f"test_{name}.py")


def test_each_module_has_a_test_file_of_its_name_and_place():
    rooms = ("sjepa_hf.", "training.", "model_cards.")
    code = [name for name, path in MODULES.items() if name.startswith(rooms) and path.stem[0] != "_"]
    assert {name for name in code if not place_of_tests(name).is_file()} == TESTED_ELSEWHERE.keys()
    assert [file for file in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / f"{file}.py").is_file()] == []


def test_every_option_is_read():
    """Its name stands somewhere outside its class, or in a public method of it: else it would do nothing."""
    fields, read = set(), set()
    for path in MODULES.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.decorator_list and node.name.endswith("Arguments"):
                fields |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
                node.body = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name[0] != "_"]
            read |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            read |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    read |= {f"phase{phase}_{name}" for phase in (1, 2) for name in read if isinstance(name, str)}
    assert fields - read == set() and len(fields) > 100
