"""Command line: dataclasses of settings, from a recipe and what the user writes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from training.common.naming import printable, unknown


def parse_dataclasses(
    groups: Sequence[type],
    argv: Sequence[str] | None,
    description: str,
    recipe: str | None = None,
    values: dict | None = None,
    **positional: dict,
) -> tuple:
    """
    Dataclasses of arguments from `--config RECIPE.yaml` and the command line, which overrides it.

    Args:
        groups: the dataclasses.
        argv: the command line; None: that of this process.
        description: what `--help` says.
        recipe: recipe to take without `--config`.
        values: what the recipe sets, where it has been read already.
        positional: options of `add_argument` for each positional argument.

    Returns:
        One instance of each dataclass, then a namespace of the positional arguments.

    Raises:
        ValueError: for an option that is unknown, a list that is given twice, and a recipe that [`read_recipe`]
            refuses.
    """
    argv = sys.argv[1:] if argv is None else argv
    asked = given(argv, groups)
    if values is None:
        path = asked.get("config", recipe)
        values = {} if path is None else read_recipe(path, groups)
    parser = options_of(groups, description=description)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    parser.set_defaults(**values)
    parser.add_argument("--config", help=f"Recipe (YAML): any of the fields below. Default: {recipe or 'none'}.")
    for name, options in positional.items():
        parser.add_argument(name, **options)
    *parsed, rest = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    refuse_options(rest, parser)
    return tuple(parsed)


def options_of(groups: Sequence[type], **settings) -> HfArgumentParser:
    """A parser of the fields of dataclasses, whose names are written out: `--batch_size`, `--batch-size`."""
    return HfArgumentParser(groups, allow_abbrev=False, **settings)


def given(argv: Sequence[str], groups: Sequence[type]) -> dict[str, str | list[str]]:
    """
    What a command line sets, as the parser of its options reads it.

    Returns:
        For each field that it gives, and `config`, the word behind it: "true" for `--flag` alone, "false" for
        `--no_flag`, a list of words for a list.

    Raises:
        ValueError: for an option that is unknown, and a list that is given twice.
    """
    parser = options_of(groups, add_help=False)
    parser.add_argument("--config")
    for action in parser._actions:
        action.required, action.default, action.type, action.choices = False, argparse.SUPPRESS, None, None
        action.const = str(action.const).lower()
    asked, rest = parser.parse_known_args(argv)
    strange = [word.partition("=")[0] for word in rest if word.startswith("--")]
    refuse_options([name for name in strange if name not in ("--", "--help")], parser)
    named = [parser._option_string_actions.get(word.partition("=")[0]) for word in argv]
    for action in filter(None, named):
        if action.nargs == "+" and named.count(action) > 1:
            raise ValueError(f"--{action.dest} is given twice: write all of its values behind one.")
    return vars(asked)


def refuse_options(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raise a ValueError for the first of the words, which are no options of the parser, if there is one."""
    if words:
        known = [option for option in parser._option_string_actions if "-" not in option.lstrip("-")]
        raise ValueError(f"{unknown(words[0], known)} is not an option of this command: --help lists them.")


def read_recipe(path: str, groups: Sequence[type]) -> dict:
    """
    The fields of dataclasses that a recipe sets.

    Raises:
        ValueError: for a file that is absent or no YAML, a field that is unknown or given twice, and a value of
            another type than the field's. The sentence names the file and the field.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no recipe {path}: those of the project lie in training/recipes.")
    recipe = load_fields(path, f"The recipe {path}")
    types = {name: kind for group in groups for name, kind in get_type_hints(group).items()}
    strange = sorted((name for name in recipe if name not in types), key=str)
    if strange:
        names = ", ".join(unknown(name, types) for name in strange)
        raise ValueError(f"The recipe {path} holds unknown fields: {names}.")
    if "model_config" in recipe and not isinstance(recipe["model_config"], dict):
        raise ValueError(f"`model_config` in the recipe {path} must hold fields of SJepaConfig, or be left out.")
    fields = {name: value for name, value in recipe.items() if name != "model_config"}
    return recipe | as_typed(fields, types, f" in the recipe {path}")


def load_fields(path: str, called: str) -> dict:
    """
    What a YAML file holds, by name.

    Raises:
        ValueError: for a file that is no YAML, holds something else than names with values, or a name twice. The
            sentence begins with `called`.
    """
    try:
        fields = yaml.load(Path(path).read_text(encoding="utf-8"), _OnceLoader) or {}
    except UnicodeDecodeError:
        raise ValueError(f"{called} is not UTF-8: save it as that.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise ValueError(f"{called} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{called} is nested too deeply: write fields as `name: value`.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{called} holds no fields, but {short_repr(fields)}: write them as `name: value`.")
    return fields


def as_typed(fields: dict, types: dict[str, Any], where: str = "") -> dict:
    """
    Fields that YAML has read as their types have them: a single value as a list, 0 and text such as 1e-3 as floats.

    Raises:
        ValueError: for a value of another type. The sentence names the field and, behind it, `where`.
    """
    typed = {}
    for name, value in fields.items():
        kind = types[name]
        if value is not None and (item := item_type(kind)):
            typed[name] = [as_number(entry, item) for entry in (value if isinstance(value, list) else [value])]
        else:
            typed[name] = as_number(value, kind)
        if not fits(typed[name], kind):
            hint = "; YAML reads yes, no, on and off as that: write such a word in quotes"
            words = f"{type_name(kind)}{hint * isinstance(value, bool)}"
            raise ValueError(f"`{name}`{where} is {short_repr(value)}, and must be {words}.")
    return typed


class _OnceLoader(yaml.SafeLoader):
    """YAML of plain values, in which no field is given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                where = f"line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"{where}: `{key.value}` is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def kinds(kind: Any) -> tuple:
    """The alternatives of a type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def item_type(kind: Any) -> type | None:
    """What a list holds, if one of the alternatives of a type is a list."""
    return next((get_args(option)[0] for option in kinds(kind) if get_origin(option) is list), None)


def as_number(value: Any, kind: Any) -> Any:
    """
    A number of the type, if it is one, of what YAML has read as text (1e-3) or as another number (0 for a float);
    all else as it is.
    """
    number = next((option for option in kinds(kind) if option in (int, float)), None)
    if isinstance(value, str) and number or type(value) is int and number is float:
        try:
            return number(value)
        except (ValueError, OverflowError):
            pass
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that YAML has read serves as a field of a type."""
    for option in kinds(kind):
        origin = get_origin(option)
        if (
            option is Any
            or (option is NoneType and value is None)
            or (origin is Literal and value in get_args(option))
        ):
            return True
        if origin is list:
            item = get_args(option)[0]
            if isinstance(value, list) and all(fits(v, item) for v in value):
                return True
        elif isinstance(value, str):
            if (origin or option) not in (NoneType, bool, int, float, dict, Literal):
                return True
        elif isinstance(value, bool):
            if option is bool:
                return True
        elif option is float and isinstance(value, int | float):
            return True
        elif isinstance(origin or option, type) and isinstance(value, origin or option):
            return True
    return False


def type_name(kind: Any) -> str:
    """A type, as a user would call it."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "fields"}
    words = []
    for option in kinds(kind):
        item = get_args(option)[0] if get_origin(option) is list else None
        if item is not None:
            words.append({int: "a list of whole numbers", float: "a list of numbers"}.get(item, "a list"))
        elif get_origin(option) is Literal:
            words.append(f"one of {', '.join(map(str, get_args(option)))}")
        elif option is not NoneType:
            words.append(names.get(get_origin(option) or option, "text"))
    return " or ".join(dict.fromkeys(words))


def short_repr(value: Any) -> str:
    """A value in a message: cut where it is long, nothing that ends a line."""
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 100 else f"{text[:100]}..."
