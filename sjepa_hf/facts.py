"""Facts for a model card: what no run can know of a model, from a YAML file that a person writes."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .command import first_line
from .opening import is_repo_id


DATA_FIELDS = ("name", "dataset_id", "task_id")


@dataclass
class Facts:
    """What no run can know of a model. Every text is one line."""

    name: str | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    data: str | None = None
    datasets: list[str] = field(default_factory=list)
    intended_use: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    result_data: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Facts":
        """
        Facts of a YAML file. A single value may stand where a list is meant; what is left empty is not known.

        Raises:
            ValueError: if it is absent, no YAML, or has a field that is unknown or holds anything but text.
        """
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or first_line(error)
            raise ValueError(f"The facts in {path}{place}, cannot be read as YAML: {problem}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"The facts in {path} cannot be read: {first_line(error)}") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(given, dict) or given.keys() - known:
            raise ValueError(f"{path}: the facts are fields among {', '.join(sorted(known))}; see the command's help.")
        try:
            values = {name: read_field(name, value) for name, value in given.items() if value is not None}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(**values)


def read_field(name: str, value: Any) -> str | list[str] | dict[str, dict[str, str]]:
    """The value of a field of [`Facts`]. Raises a ValueError for what is not of its kind."""
    if name == "result_data":
        return names_of_data(value)
    if any(f.name == name and f.default_factory is list for f in fields(Facts)):
        return texts(name, value)
    return text(name, value)


def text(name: str, value: Any) -> str:
    """A value as one line. Raises a ValueError for what is no text, number or date."""
    if isinstance(value, bool):
        raise ValueError(f"`{name}` is a truth value: YAML takes yes, no, on and off for such, so write it in quotes.")
    if value is None or isinstance(value, list | dict | set | tuple | bytes):
        kind = {dict: "a mapping (text with ': ' in it needs quotes)", list: "a list"}.get(type(value), "no text")
        raise ValueError(f"`{name}` should be text and is {kind}.")
    line = " ".join(str(value).split())
    if not line:
        raise ValueError(f"`{name}` is empty: write something, or leave it out.")
    return line


def texts(name: str, value: Any) -> list[str]:
    """A list of texts, from a list or a single one."""
    values = value if isinstance(value, list) else [value]
    return [text(f"{name}[{number}]" if len(values) > 1 else name, item) for number, item in enumerate(values)]


def names_of_data(value: Any) -> dict[str, dict[str, str]]:
    """`result_data`: for the data of a result, its better name and where it is on the Hub."""
    if not isinstance(value, dict):
        raise ValueError(f"`result_data` should map each source to fields among {', '.join(DATA_FIELDS)}.")
    names = {}
    for source, known in value.items():
        place = f"result_data: {source}"
        if not isinstance(known, dict) or set(known) - set(DATA_FIELDS):
            raise ValueError(f"`{place}` should have fields among {', '.join(DATA_FIELDS)}.")
        names[str(source)] = {name: text(f"{place}: {name}", item) for name, item in known.items()}
        if "dataset_id" in known and not is_repo_id(names[str(source)]["dataset_id"]):
            raise ValueError(f"`{place}: dataset_id` is not the name of a data set on the Hub.")
    return names
