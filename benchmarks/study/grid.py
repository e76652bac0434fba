"""A grid of pretraining runs: named variants of one recipe, each with several seeds, over a trunk they may share."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.study.frozen import FROZEN
from training.common.command_line import read_recipe
from training.pretraining.arguments import ARGUMENTS, RunArguments


STAGES = ("probe", "speakers", "ctc", *FROZEN)
"""How a run can be scored, see `benchmarks.study.scores`."""


@dataclass
class Grid:
    """
    What a file in `benchmarks/study/grids` holds.

    Args:
        name (`str`): its file name without the ending.
        recipe (`str`): recipe that all runs start from.
        baseline (`str`): variant that the others are compared with.
        seeds (`list[int]`): seeds of every variant.
        shared (`dict`): settings of all runs, trunk and variants.
        trunk (`dict`): settings of the run that the variants of one seed go on from, at the step that each names as
            `from_step` (default: its last). Empty: no trunk.
        variants (`dict[str, dict]`): settings of each variant; with `from_step: 0` it starts afresh.
        stages (`list[str]`): how each run is scored.
        ctc (`dict`): settings of the CTC fine-tuning.
    """

    name: str
    recipe: str
    baseline: str
    seeds: list[int]
    variants: dict[str, dict]
    shared: dict = field(default_factory=dict)
    trunk: dict = field(default_factory=dict)
    stages: list[str] = field(default_factory=lambda: ["probe"])
    ctc: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.baseline not in self.variants:
            raise ValueError(f"Grid {self.name}: `baseline` names {self.baseline!r}, which is not a variant.")
        if unknown := sorted(set(self.stages) - set(STAGES)):
            raise ValueError(f"Grid {self.name}: `stages` names {unknown[0]!r}; choose from {', '.join(STAGES)}.")
        for name, settings in self.variants.items():
            if settings.get("from_step") and not self.trunk:
                raise ValueError(f"Grid {self.name}: variant {name} has `from_step`, but there is no `trunk`.")

    def from_step(self, variant: str) -> int:
        """Step of the trunk that a variant goes on from; 0 starts afresh."""
        if "from_step" in self.variants[variant] or not self.trunk:
            return self.variants[variant].get("from_step", 0)
        trunk = read_recipe(self.recipe, ARGUMENTS) | self.settings(None)
        return sum(trunk.get(steps, getattr(RunArguments, steps)) for steps in ("phase1_steps", "phase2_steps"))

    def settings(self, variant: str | None) -> dict:
        """Settings of a variant beside the recipe's; `None` is the trunk."""
        own = self.trunk if variant is None else self.variants[variant]
        merged = {**self.shared, **own}
        merged.pop("from_step", None)
        return merged


def read_grid(path: str | Path) -> Grid:
    """
    Raises:
        ValueError: if the file is absent, or not a grid; the sentence names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no grid {path}: those of the project lie in benchmarks/study/grids.")
    try:
        return Grid(path.stem, **yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path} is not a grid: {error}") from None


def as_flags(settings: dict) -> list[str]:
    """Settings as a command line: `{"a": 1, "b": [1, 2]}` -> `["--a", "1", "--b", "1", "2"]`."""
    flags = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(_as_text(each) for each in values)]
    return flags


def _as_text(value) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
