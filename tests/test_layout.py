"""The layout: which room may import which, how long a file is, and that each module has a test file of its name."""

import ast
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
    "evaluation": {"sjepa_hf", "common", "data", "targets"},
    "commands": {"sjepa_hf", "common", "data", "targets", "pretraining", "finetuning", "evaluation", "commands"},
}
TARGETS_FOR_EVALUATION = {"training.targets.frame_features"}  # MFCC, its baseline

TESTED_ELSEWHERE = {  # modules without a test file of their name, and the one that reaches them
    "sjepa_hf.auto_classes": "sharing",
    "sjepa_hf.configuration_sjepa": "modeling",
    "sjepa_hf.facts": "model_card",
    "sjepa_hf.gradient_checkpointing": "modeling",
    "sjepa_hf.modeling_sjepa": "modeling",
    "sjepa_hf.modeling_sjepa_heads": "modeling_heads",
    "sjepa_hf.modeling_sjepa_pretraining": "modeling_pretraining",
    "training.common.metrics.classification": "metrics",
    "training.common.metrics.slots": "metrics",
    "training.common.metrics.speech": "metrics",
    "training.common.naming": "metadata",
    "training.common.publishing": "training",
    "training.common.ranges": "arguments",
    "training.common.run_record": "training",
    "training.data.folders": "metadata",
    "training.data.sources": "clips",
    "training.data.unsized": "waveforms",
    "training.data.workers": "training_data",
    "training.evaluation.bimodality": "analyze",
    "training.evaluation.probes.results": "probe",
    "training.evaluation.superb.heads": "superb",
    "training.evaluation.superb.labels": "superb",
    "training.evaluation.superb.results": "superb",
    "training.pretraining.model": "pretrain",
}
ROOMS_TESTED_BY_THEIR_COMMANDS = ("training.finetun",)  # test_finetune.py, test_finetune_runs.py, test_decoding.py


def modules() -> dict[str, Path]:
    """Every module of the package, the training code, the benchmarks and the examples, by its dotted name."""
    found = {}
    for folder in ("sjepa_hf", "training", "benchmarks", "examples"):
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


def test_evaluation_takes_of_the_targets_the_frame_features_alone():
    taken = {other for module in MODULES if room(module) == "evaluation" for other in IMPORTS[module]}
    assert {other for other in taken if room(other) == "targets"} <= TARGETS_FOR_EVALUATION


def test_no_module_is_part_of_a_circle():
    left = {module: {other for other in found if other != module} for module, found in IMPORTS.items()}
    while free := {module for module, found in left.items() if not found & left.keys()}:
        left = {module: found for module, found in left.items() if module not in free}
    assert sorted(left) == []


def test_no_module_is_longer_than_a_reader_likes():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length >= LONGEST} == {}


def test_each_module_has_a_test_file_of_its_name():
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    code = [
        name for name, path in MODULES.items() if name.startswith(("sjepa_hf.", "training.")) and path.stem[0] != "_"
    ]
    missing = {name for name in code if MODULES[name].stem not in names}
    missing = {name for name in missing if not name.startswith(ROOMS_TESTED_BY_THEIR_COMMANDS)}
    assert missing - TESTED_ELSEWHERE.keys() == set()
    assert {file for file in TESTED_ELSEWHERE.values() if file not in names} == set()
