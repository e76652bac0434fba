"""Pages of documentation: what they say one can run, open and follow, and checks of it, as functions on text."""

import argparse
import ast
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock


ROOT = Path(__file__).parents[2]
PACKAGES = ("training", "sjepa_hf", "benchmarks", "examples", "model_cards", "tests", "tools", "docs", "notebooks")
# Files and folders that a reader brings or names, or that a library leaves; runs/ is where all runs of the pages go.
READERS = re.compile(
    r"(runs|demo-output|S3PRL)/.*|(my_audio|my_clips|noise|words|speech|aligned|test|dev|clips|analysis|adapter)/"
    r"|probes/probes\.\w+|\.eval_results/|(clip|other)\.wav|(list|train|rare|a)\.jsonl|(sid|ks)\.(jsonl|json|md)|lm\.arpa"
    r"|facts\.yaml|FILE\.yaml|asr(\.int8)?\.onnx|quick_probe\.py"
)
OPTIONS_OF_OTHERS = {
    "--shm-size": "docker run",
    "--cpu": "accelerate launch",
    "--num_processes": "accelerate launch",
    "--help": "every command",
}
COMMAND = re.compile(r"(\w+=\S* )*(python |accelerate launch|sbatch |make |hf |pip |training/launch/\S+\.sh )")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """All pages, the README first."""
    patterns = ("docs/*.md", "benchmarks/study/*.md", "model_cards/**/README.md")
    return [ROOT / "README.md", *(page for pattern in patterns for page in sorted(ROOT.glob(pattern)))]


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, but those under a comment `<!-- not run: REASON -->`."""
    text = re.sub(r"<!-- not run: \S.*? -->\n```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [content for name, content in FENCE.findall(text) if name == language]


def inline(text: str) -> list[str]:
    """Code spans of a text, outside its blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text: str) -> list[str]:
    """Every command of a page, in blocks and in code spans, each on one line."""
    lines = []
    for block in blocks(text, "bash"):
        lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    for _, block in FENCE.findall(text):  # comments in blocks
        lines += re.findall(r"`([^`\n]+)`", block)
    return [found for line in [*lines, *inline(text)] for found in split_line(line)]


def commands_of_comments(text: str) -> list[str]:
    """Commands that stand in the comments or docstring of a file, each on a line of its own."""
    text = re.sub(r"\\\n[#\s]*", " ", text)
    return [found for line in text.splitlines() for found in split_line(line.strip().removeprefix("#").strip())]


def split_line(line: str) -> list[str]:
    """The commands of a line of shell."""
    line = re.sub(r"\s#\s.*", "", line)
    return [part.strip() for part in re.split(r"&&|;|\|", line) if COMMAND.match(part.strip())]


class Parsed(BaseException):
    """A command line has been read to its end; holds the words that were not understood."""


def parse(main: Callable, name: str, words: list[str]) -> str | None:
    """
    What is wrong with a command line, found by the command's own parser, which then goes no further; None if nothing.
    What stands for more ("...") may hide options that are required.
    """
    original = argparse.ArgumentParser.parse_known_args
    incomplete = "..." in words
    words = [word for word in words if word != "..."]

    def parse_known_args(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        if self.add_help:  # not the one that looks for --config alone
            raise Parsed(found[1])
        return found

    said = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_args),
        mock.patch.object(sys, "argv", [name, *words]),
        redirect_stderr(said),
        redirect_stdout(said),
    ):
        try:
            main()
        except Parsed as parsed:
            return f"{name} has no {' '.join(parsed.args[0])}" if parsed.args[0] else None
        except SystemExit as end:
            last = (said.getvalue().strip().splitlines() or [str(end.code)])[-1]
            if end.code in (0, None) or (incomplete and "are required" in last):
                return None
            return f"{name}: {end.code if isinstance(end.code, str) else last}"
    return None


def check_module(module: str, words: list[str]) -> str | None:
    """What is wrong with `python -m MODULE WORDS`."""
    module = "training.__main__" if module == "training" else module
    try:
        if importlib.util.find_spec(module) is None:
            return f"there is no module {module}"
    except ModuleNotFoundError:
        return f"there is no module {module}"
    if module.partition(".")[0] not in PACKAGES:
        return None
    main = getattr(importlib.import_module(module), "main", None)
    if main is None:
        return f"{module} is no command"
    return parse(main, module, words) if words or module == "training.__main__" else None


@cache
def options_of_file(file: str) -> frozenset[str]:
    """Options that a script adds to its parser, read off its source."""
    calls = [node for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    return frozenset(arg.value for call in added for arg in call.args if isinstance(arg, ast.Constant))


def check_file(file: str, words: list[str]) -> str | None:
    """What is wrong with `python FILE WORDS`."""
    if file == "run_downstream.py":  # S3PRL's
        return None
    if not (ROOT / file).is_file():
        return f"there is no file {file}"
    if file.startswith(("training/", "sjepa_hf/", "benchmarks/")):
        return check_module(file.removesuffix(".py").replace("/", "."), words)
    unknown = [word for word in words if word.startswith("-") and word not in options_of_file(file)]
    return f"{file} has no {' '.join(unknown)}" if unknown else None


def check_accelerate(words: list[str]) -> str | None:
    """What is wrong with `accelerate launch WORDS`."""
    from accelerate.commands.launch import launch_command_parser

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            launched = launch_command_parser().parse_args(words)
    except SystemExit:
        return f"accelerate launch: {said.getvalue().strip().splitlines()[-1]}"
    if launched.config_file and not (ROOT / launched.config_file).is_file():
        return f"there is no file {launched.config_file}"
    check = check_module if launched.module else check_file
    return check(launched.training_script, launched.training_script_args)


def check_hub(words: list[str]) -> str | None:
    """What is wrong with `hf WORDS`."""
    from huggingface_hub.cli.hf import app

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            app.main(args=[*words, "--help"], prog_name="hf", standalone_mode=False)
        except Exception as error:  # click's own, or that of the copy of it that comes with the command
            return f"hf {' '.join(words[:2])}: {getattr(error, 'message', error)}"
    return None


def check_make(words: list[str]) -> str | None:
    """What is wrong with `make WORDS`."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, assigned, _ = word.partition("=")
        if not re.search(rf"\$\({name}\)" if assigned else rf"^{name}:", makefile, re.MULTILINE):
            return f"the Makefile has no {name}"
    return None


def check_pip(words: list[str]) -> str | None:
    """What is wrong with `pip install WORDS`, as far as this project's extras go."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for word in words for extra in re.findall(r"[\w-]+", (re.findall(r"^\.\[(.*)\]", word) or [""])[0])}
    return f"pyproject.toml has no extra {' '.join(named - set(extras))}" if named - set(extras) else None


@cache
def wrong_with(command: str) -> str | None:
    """What is wrong with one command of a page; None if nothing."""
    try:
        words = shlex.split(command.replace("[", "").replace("]", "") if "-m " in command else command)
    except ValueError as error:
        return f"`{command}`: {error}"
    variables = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    program, words = words[0], words[1:]
    if program == "python" and words[0] == "-m":
        found = check_module(words[1], words[2:]) if words[1:] else "no module is named"
    elif program == "python":
        found = check_file(words[0], words[1:])
    elif program == "accelerate":
        found = check_accelerate(words[1:])
    elif program == "sbatch":  # --nodes N FILE WORDS
        script = next((n for n, word in enumerate(words) if word.endswith(".sh")), len(words))
        file, words = "".join(words[script : script + 1]), [*words[script + 1 :], "--output_dir", "runs"]
        found = check_launch_script(file, words, variables.get("COMMAND", "training/pretrain.py"))
    elif program.endswith(".sh"):
        found = check_launch_script(program, words)
    else:
        found = {"make": check_make, "hf": check_hub, "pip": check_pip}[program](words)
    return found and f"`{command}`: {found}"


def check_launch_script(script: str, words: list[str], command: str = "training/pretrain.py") -> str | None:
    """What is wrong with a launch script that passes its words on to a command."""
    if not (ROOT / script).is_file():
        return f"there is no file {script}"
    return check_file(command, words)


def wrong_commands(found: Iterable[str]) -> list[str]:
    """What is wrong with commands."""
    with mock.patch("os.getcwd", lambda: str(ROOT)):
        return [said for said in map(wrong_with, found) if said]


@cache
def known_options() -> frozenset[str]:
    """The options of all commands, the page among them."""
    from training.__main__ import MENU

    found = set(options_of_file("model_cards/space/app.py")) | set(OPTIONS_OF_OTHERS)
    modules = [f"{package}.{name}" for package, names in MENU.items() for name in names]
    study = [f"benchmarks.study.{name}" for name in ("run", "score", "noise", "speech_manifest")]
    for module in [*modules, "benchmarks.step", *study]:
        for words in ([], *([[sub] for sub in ("build-ngram", "decode")] if module.endswith("decoding") else [])):
            shown = io.StringIO()
            with mock.patch.object(sys, "argv", [module, *words, "--help"]), redirect_stdout(shown):
                try:
                    importlib.import_module(module).main()
                except SystemExit:
                    pass
            found |= set(re.findall(r"--[\w-]+", shown.getvalue()))
    return frozenset(found)


def wrong_options(text: str) -> list[str]:
    """Options in prose that no command has."""
    spans = [span for span in inline(text) if span.startswith("--")]
    named = [word for span in spans for word in span.split() if word.startswith("--")]
    return [f"no command has {word}" for word in named if word.partition("=")[0] not in known_options()]


@cache
def sources() -> str:
    """The text of all that is no page: code, recipes, scripts."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    files = [ROOT / name for name in listed] if any(listed) else [*ROOT.glob("*"), *ROOT.glob("[!.]*/**/*")]
    kept = [p for p in files if p.suffix in (".py", ".yaml", ".toml", ".sh", ".js") or p.name in ("Makefile", "run")]
    return "\n".join(p.read_text() for p in kept if p.is_file() and "tests" not in p.relative_to(ROOT).parts)


@cache
def words_of_sources() -> frozenset[str]:
    """Every name that the sources know."""
    return frozenset(re.findall(r"\w+", sources()))


def wrong_names(text: str) -> list[str]:
    """Fields, modules and names in code spans that nothing in the sources bears."""
    found = []
    for span in inline(text):
        if COMMAND.match(span) or span.startswith("-"):
            continue
        for name in re.findall(r"(?<![\w/.:-])[a-z]+(?:_[a-z0-9]+)+(?![\w/-])", span):
            if name not in words_of_sources():
                found.append(f"nothing is called {name}")
        for name in re.findall(r"^(?:training|sjepa_hf|benchmarks|examples)(?:\.\w+)+$", span):
            if name not in sources() and not is_module(name):
                found.append(f"there is no module {name}")
    for block in blocks(text, "yaml"):
        found += [
            f"no field is called {name}"
            for name in re.findall(r"^(\w+):", block, re.MULTILINE)
            if name not in words_of_sources()
        ]
    return found


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:
        pass
    above, _, last = name.rpartition(".")
    return "." in name and is_module(above) and hasattr(importlib.import_module(above), last)


def wrong_files(text: str, folder: Path) -> list[str]:
    """Files and folders that a text names and that are neither here, nor the reader's, nor written by the code."""
    rooted = re.findall(rf"(?<![\w/.:=-])(?:{'|'.join(PACKAGES)})/[\w./*{{}},-]*", links_taken_out(text))
    ending = r"(?:py|yaml|yml|md|png|sh|jsonl|json|toml|css|js|csv|ipynb)"
    spans = [word for span in inline(text) for word in span.split()]
    named = [w for w in spans if re.fullmatch(rf"[\w.-]+(/[\w.-]+)*\.{ending}|([\w.-]+/)+", w)]
    found = []
    for name in dict.fromkeys([*(r.rstrip(".,") for r in rooted), *named]):
        if READERS.fullmatch(name) or any((place / name).exists() for place in (ROOT, folder)):
            continue
        if any(any(place.glob(name)) for place in (ROOT, folder) if "*" in name):
            continue
        if "/" not in name and name in sources():
            continue
        found.append(f"there is no {name}")
    return found


def links_taken_out(text: str) -> str:
    """A text without the targets of its links, which are checked as links."""
    return re.sub(r"\]\([^)]*\)", "]", text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def wrong_links(text: str, folder: Path) -> list[str]:
    """Links and pictures that lead nowhere, anchors included. Addresses outside are not asked."""
    found = []
    outside_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", outside_blocks)):
        if re.match(r"https?://[\w.-]+\.\w+", target):
            continue
        path, _, anchor = target.partition("#")
        page = folder / path
        if path and not page.exists():
            found.append(f"the link {target} leads nowhere")
        elif anchor and anchor not in anchors(page.read_text() if path else text):
            found.append(f"the link {target} names no heading")
    return found


def unclosed_tables(text: str) -> list[str]:
    """Lines of tables that stand under no heading of a table, which are not shown as one."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    return [f"no table begins so: {t.splitlines()[0]}" for t in tables if not re.match(r"\|.*\n\|[ :|-]+\n", t)]
