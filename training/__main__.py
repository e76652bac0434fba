"""The menu: `python -m training` prints every command with the first line of its docstring."""

import ast
import sys
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]
MENU = {
    "training": (
        "pretrain",
        "finetune_ctc",
        "finetune_classification",
        "decoding",
        "superb",
        "probe",
        "analyze",
        "target_information",
        "units",
        "fit_units",
        "unit_quality",
        "pack",
    ),
    "sjepa_hf": ("push", "model_card", "export_onnx", "convert_original"),
}
TITLES = {"training": "Train and measure:", "sjepa_hf": "Share and convert (these need `sjepa_hf` alone):"}


def first_line(package: str, name: str) -> str:
    """What a command is for: the first line of its docstring, read without importing it."""
    source = (REPOSITORY / package / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).partition("\n")[0]


def menu() -> str:
    """All commands, a line each."""
    width = max(len(f"{package}.{name}") for package, names in MENU.items() for name in names)
    blocks = []
    for package, names in MENU.items():
        lines = [f"  {f'{package}.{name}':{width}}  {first_line(package, name)}" for name in names]
        blocks.append("\n".join([TITLES[package], *lines]))
    blocks.append("`python -m NAME --help` lists the options of each, such as `python -m training.pretrain --help`.")
    return "\n\n".join(blocks)


def main(words: list[str] | None = None) -> None:
    """Print the menu; behind any word but `--help`, which `python -m training` does not take, as an error."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(menu())
        return
    print(
        menu(),
        f"error: `python -m training` takes no {words[0]!r}: call a command by its name above.",
        sep="\n\n",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
