"""Recipes: what they may hold, and what a wrong one is told."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from training.common.command_line import given, parse_dataclasses, read_recipe


@dataclass
class Settings:
    steps: int = 3
    rate: float = 0.1
    name: str = "x"
    precision: str | None = None
    flag: bool = False
    loud: bool = True
    layers: list[int] | None = None
    decays: list[float] = field(default_factory=lambda: [0.5])
    sources: list[str] | None = None
    extra: dict | None = None
    codec: Literal["flac", "opus", "no"] = "flac"


def parse(tmp_path, recipe: str, *argv):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    return parse_dataclasses((Settings,), ["--config", str(path), *argv], "")[0]


def test_values_and_the_command_line_over_them(tmp_path):
    recipe = (
        "steps: '5'\nrate: 1e-3\nlayers: 2\ndecays: [1e-1, 1]\nprecision: 'no'\nflag: yes\nsources: a\nextra: {a: 1}"
    )
    assert parse(tmp_path, recipe, "--steps", "7") == Settings(
        7, 0.001, "x", "no", True, True, [2], [0.1, 1.0], ["a"], {"a": 1}
    )
    assert parse(tmp_path, "") == Settings()
    assert parse(tmp_path, "precision:\nlayers:\n") == Settings()
    assert parse(tmp_path, "codec: opus") == Settings(codec="opus")
    assert parse(tmp_path, "codec: 'no'") == Settings(codec="no")


def test_a_whole_number_is_a_float_where_the_field_is_one(tmp_path):  # torch's AdamW refuses betas of 0 and 0.99
    settings = parse(tmp_path, "rate: 0\ndecays: [0, 1]\nsteps: 3\nlayers: [2]")
    assert [type(value) for value in (settings.rate, *settings.decays)] == [float] * 3
    assert [type(value) for value in (settings.steps, *settings.layers)] == [int] * 2
    assert parse(tmp_path, f"rate: {10**400}").rate == 10**400  # no float: what reads the field says its range


def test_a_list_is_written_once(tmp_path):
    assert parse(tmp_path, "sources: [c]", "--sources", "a", "b").sources == ["a", "b"]
    with pytest.raises(ValueError, match="--sources is given twice: write all of its values behind one"):
        parse(tmp_path, "", "--sources", "a", "--sources=b")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("steps: [1]", r"`steps` in the recipe .*recipe.yaml is \[1\], and must be a whole number\."),
        ("steps: 1.5", "must be a whole number"),
        ("steps: true", "must be a whole number"),
        ("steps: many", "is many, and must be a whole number"),
        ("rate: fast", "is fast, and must be a number"),
        ("flag: 'no'", "is no, and must be true or false"),
        ("steps:", "`steps` .* is None, and must be a whole number"),
        ("rate: {a: 1}", "must be a number"),
        ("rate: yes", "must be a number; YAML reads yes, no, on and off as that: write such a word in quotes"),
        ("precision: no", "`precision` .* is False, and must be text; YAML reads yes, no"),
        ("name: 5", "must be text"),
        ("flag: 3", "must be true or false"),
        ("layers: [a]", r"is \['a'\], and must be a list of whole numbers"),
        ("layers: [1.5]", "must be a list of whole numbers"),
        ("layers: [[1]]", "must be a list of whole numbers"),
        ("layers: [true]", "must be a list of whole numbers"),
        ("decays: [x]", "must be a list of numbers"),
        ("sources: [1]", "must be a list"),
        ("extra: a", "must be fields"),
        ("codec: zip", r"`codec` .* is zip, and must be one of flac, opus, no\."),
        ("codec: 5", "must be one of flac, opus, no"),
        ("codec: no", "is False, and must be one of flac, opus, no; YAML reads yes, no"),
        ("name: [" + "long, " * 500 + "]", r"\.\.\., and must be text"),
        ("stepz: 1", r"holds unknown fields: stepz \(near: steps\)\."),
        ("1: 1\nnull: 2", "holds unknown fields: 1, None"),
        ("steps: 1\nsteps: 2", "line 2: `steps` is given twice"),
        ("extra: {a: 1, a: 2}", "line 1: `a` is given twice"),
        ("[1, 2]", "holds no fields, but"),
        ("steps: [", "is not YAML"),
        ("steps: 2026-13-45", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"name: \xff\xfe", "is not UTF-8"),
        ("extra: " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, recipe, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse(tmp_path, recipe)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="There is no recipe .*absent.yaml"):
        read_recipe(str(tmp_path / "absent.yaml"), (Settings,))


@dataclass
class Needed:
    data_folder: str


def test_what_is_needed_may_stand_in_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data_folder: a")
    path = str(tmp_path / "recipe.yaml")
    assert parse_dataclasses((Needed,), ["--config", path], "")[0] == Needed("a")
    assert parse_dataclasses((Needed,), [], "", values={"data_folder": "b"})[0] == Needed("b")
    with pytest.raises(SystemExit):
        parse_dataclasses((Needed,), [], "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data_foldr", "a"], r"--data_foldr \(near: --data_folder\) is not an option of this command"),
        (["--data_folder", "a", "--data-foldr=3"], r"--data-foldr \(near: --data_folder\) is not an option"),
        (["--data_folder", "a", "--zzz", "3"], "--zzz is not an option of this command: --help lists them"),
        (["--data_folder", "a", "astray"], "astray is not an option of this command"),
        (["--data_fold", "a"], r"--data_fold \(near: --data_folder\) is not an option of this command"),
        (["--data_folder", "a", "--conf", "r.yaml"], r"--conf \(near: --config\) is not an option of this command"),
        (["--data_folder", "a", "--conf=r.yaml"], r"--conf \(near: --config\) is not an option of this command"),
        (["--data_folder", "a", "--config="], "There is no recipe"),
    ],
)
def test_an_unknown_option_is_one_sentence(argv, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        parse_dataclasses((Needed,), argv, "")


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        ("", {}),
        ("--steps 5 --rate=1e-3 --data_folder a", {"steps": "5", "rate": "1e-3", "data_folder": "a"}),
        ("--data-folder a --data-folder=b", {"data_folder": "b"}),
        ("--config r.yaml --name=--steps --steps -3", {"config": "r.yaml", "name": "--steps", "steps": "-3"}),
        ("--flag --no_loud --data_folder true", {"flag": "true", "loud": "false", "data_folder": "true"}),
        ("--flag false --loud --no-loud", {"flag": "false", "loud": "false"}),
        ("--sources a b --layers=1 -- place", {"sources": ["a", "b"], "layers": ["1"]}),
        ("place --layers 1 2 --name=", {"layers": ["1", "2"], "name": ""}),
    ],
)
def test_what_a_command_line_gives_is_what_its_parser_sets(argv, asked):
    assert given(argv.split(), (Settings, Needed)) == asked


def test_a_place_stands_before_the_options_or_behind_a_double_dash(tmp_path):
    for argv in (["a", "b", "--sources", "c"], ["--sources", "c", "--", "a", "b"]):
        settings, rest = parse_dataclasses((Settings,), argv, "", places=dict(nargs="+"))
        assert (settings.sources, rest.places) == (["c"], ["a", "b"])


def test_no_file_beside_a_command_adds_to_its_command_line(tmp_path, monkeypatch):
    (tmp_path / "command.args").write_text("--steps 7")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "command.py")])
    assert parse_dataclasses((Settings,), None, "")[0].steps == 3


def test_without_a_command_line_it_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", "--data_folder", "a"])
    assert parse_dataclasses((Needed,), None, "")[0].data_folder == "a"
