"""Contents of a checkpoint directory: what of it may be published, by a list of the files it consists of."""

import ast
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from .command import first_line
from .configuration_sjepa import AUTO_MAP, MODEL_CODE, own_classes
from .scores import data_name


CARD, RECORD, RESULTS, EVAL_RESULTS = "README.md", "training.json", "results.json", ".eval_results"
PICTURES = {  # and their titles in a card
    "loss.png": "Losses in pretraining",
    "hidden_frames.png": "What the prediction knows at hidden frames beyond voice and channel",
    "effective_rank.png": "Effective rank of every layer in pretraining",
    "predictor_entropy.png": "Entropy of the predictions, without masking",
    "learning_curve.png": "Losses and error rates in fine-tuning",
}
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
PRETRAINING = ("pretraining/config.json", "pretraining/model.safetensors")  # beside an encoder of another kind
SETTINGS = (CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json")
SETTINGS += ("tokenizer_config.json", "special_tokens_map.json", RECORD, RESULTS, ADAPTER[0], PRETRAINING[0])
TOKENIZER = ("added_tokens.json", "tokenizer.json", "vocab.json", "text_normalization.json")
TEXTS = ("vocab.txt", "merges.txt", "LICENSE", "LICENSE.md", "LICENSE.txt", CARD)
TOKENIZER_MODELS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
# Keys whose values are never paths.
USER_WORDS = ("id2label", "label2id", "added_tokens_decoder", "extra_special_tokens")
IMAGES = {  # and what such files begin with
    ".png": b"\x89PNG\r\n",
    ".jpg": b"\xff\xd8\xff",
    ".jpeg": b"\xff\xd8\xff",
    ".gif": b"GIF8",
    ".webp": b"RIFF",
}
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
PACKAGE = Path(__file__).parent
LARGEST_BUT_WEIGHTS = 100e6  # bytes
SHOWN = re.compile(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)|<img[^>]+src=[\"']([^\"']+)")  # pictures of a Markdown text
PATH = re.compile(r"(?:(?:/|~|file://)[^\n]*[^\n/]/|\.\./)[^\n]+")
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass
class Contents:
    """
    A checkpoint directory, sorted.

    Attributes:
        files: path in the repo -> file, of all that may be published.
        left_out: name in the directory -> why it stays there.
    """

    files: dict[str, Path]
    left_out: dict[str, str]


def contents(checkpoint: Path) -> Contents:
    """
    Sort a checkpoint directory by a list of what may go: weights, configuration, tokenizer, the model's code, card,
    pictures, scores and adapters. A file must lie in the directory itself: no link is followed.

    Raises:
        ValueError: if the directory is no checkpoint, or what it must have is not whole.
    """
    parts = Contents({}, {})
    if not os.path.lexists(checkpoint / CONFIG):
        raise ValueError(f"{checkpoint} is not a checkpoint: it has no {CONFIG}. Name the directory with the weights.")
    config = read_json(take(parts, checkpoint, CONFIG, required=True))
    for name, path in code_files(checkpoint, config).items():
        if path.parent == checkpoint:
            take(parts, checkpoint, name, required=True)
        else:
            parts.files[name] = path
    take_weights(parts, checkpoint)
    for name in (*SETTINGS, *TOKENIZER, *TEXTS, *TOKENIZER_MODELS, *ADAPTER, *PRETRAINING, *PICTURES):
        if name not in parts.files and os.path.lexists(checkpoint / name):
            take(parts, checkpoint, name)
    if is_own_folder(checkpoint / EVAL_RESULTS):
        for name in names_in(checkpoint / EVAL_RESULTS):
            if name.endswith(".yaml") and not name.startswith("."):
                take(parts, checkpoint, f"{EVAL_RESULTS}/{name}")
    if CARD in parts.files:
        for name in pictures_of(parts.files[CARD]):
            if name not in parts.files and os.path.lexists(checkpoint / name):
                take(parts, checkpoint, name)
    check_contents(parts)
    name_the_rest(parts, checkpoint)
    return parts


def take(parts: Contents, checkpoint: Path, name: str, required: bool = False) -> Path:
    """Enter one file as published or left out. Raises a ValueError if it is `required` and cannot be published."""
    path = checkpoint / name
    why = unfit(checkpoint, path)
    if why is None:
        parts.files[name] = path
    elif required:
        raise ValueError(f"{checkpoint} lacks {name}" + (f": {why}." if os.path.lexists(path) else "."))
    else:
        parts.left_out[name] = why
    return path


def unfit(checkpoint: Path, path: Path) -> str | None:
    """Why a file of a checkpoint may not be published; None if it may."""
    try:
        place = Path(os.path.realpath(checkpoint), path.relative_to(checkpoint))
        if os.path.realpath(path) != str(place):
            return "it is a link, and links are not followed; put the file itself there"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_size > LARGEST_BUT_WEIGHTS and path.suffix != ".safetensors":
            return f"it has {status.st_size / 1e6:,.0f} MB, more than such a file can have"
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not start:
        return "it is empty"
    if path.suffix in IMAGES and not start.startswith(IMAGES[path.suffix]):
        return "it is not a picture of the kind that its name says"
    return None


def is_own_folder(path: Path) -> bool:
    """Whether a path is a directory and no link to one."""
    return path.is_dir() and not path.is_symlink()


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted. Raises a ValueError if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error.strerror}).") from None


def take_weights(parts: Contents, checkpoint: Path) -> None:
    """Sort in the file of weights, or index and shards; where both are there, `from_pretrained` opens the file."""
    if os.path.lexists(checkpoint / WEIGHTS) or not os.path.lexists(checkpoint / INDEX):
        check_tensors(take(parts, checkpoint, WEIGHTS, required=True))
        return
    index = take(parts, checkpoint, INDEX, required=True)
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index} names no shards: save the model again.")
    tensors = {}
    for tensor, shard in shard_of.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ValueError(f"{index} names a shard that is not a file of this directory: {shown(str(shard))}.")
        tensors.setdefault(shard, []).append(tensor)
    for shard in sorted(tensors):
        check_tensors(take(parts, checkpoint, shard, required=True), tensors[shard])


def check_tensors(path: Path, wanted: Sequence[str] = ()) -> None:
    """Raise a ValueError unless a file is whole, by the header of safetensors, and has these tensors."""
    try:
        with safe_open(path, "pt") as file:
            absent = set(wanted) - set(file.keys())
    except Exception as error:  # safetensors has an error of its own, below Exception alone
        raise ValueError(f"{path} is not a complete safetensors file ({first_line(error)}).") from None
    if absent:
        raise ValueError(f"{path} lacks the tensor {shown(min(absent))}, which {INDEX} says is there.")


def code_files(checkpoint: Path, config: dict) -> dict[str, Path]:
    """
    The model's code that has to go along: that of the checkpoint, or this package's where it has none.

    Raises:
        ValueError: for an S-JEPA model with a part of it, and for code that is not ours.
    """
    if config.get("model_type") == "sjepa" and not own_classes(config.get("auto_map")):
        absent = [name for name in MODEL_CODE if not os.path.lexists(checkpoint / name)]
        if len(absent) == len(MODEL_CODE) and config.get("auto_map") == AUTO_MAP:
            return {name: PACKAGE / name for name in MODEL_CODE}
        if absent or config.get("auto_map") != AUTO_MAP:
            raise ValueError(
                f"{checkpoint} lacks the model's code ({', '.join(absent) or f'auto_map in {CONFIG}'}): open it with"
                " `from_pretrained` and save it again."
            )
        return {name: checkpoint / name for name in MODEL_CODE}
    if config.get("auto_map"):
        raise ValueError(
            f"{checkpoint} needs code that is not sjepa_hf's (`auto_map` in {CONFIG}): look through it and publish it"
            " with `hf upload`."
        )
    return {}


def check_contents(parts: Contents) -> None:
    """Raise a ValueError for settings that are no JSON, code and adapters that are not whole, bad cards, secrets."""
    for path in parts.files.values():
        if path.suffix not in (".safetensors", *IMAGES) and (secret := SECRET.search(path.read_bytes())):
            start = secret[0][:10].decode()
            raise ValueError(f"{path} holds what looks like a token or a private key ({start}...): take it out.")
    for name in (*SETTINGS, *TOKENIZER):
        if name in parts.files:
            read_json(parts.files[name])
    for name in MODEL_CODE:
        if name in parts.files:
            check_code(parts.files[name])
    for name in (ADAPTER[1], PRETRAINING[1]):
        if name in parts.files:
            check_tensors(parts.files[name])
    if CARD in parts.files:
        check_card(parts.files[CARD])


def check_code(path: Path) -> None:
    """Raise a ValueError for a file that is no Python: whoever opens the model runs it."""
    try:
        ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{path} is no Python ({first_line(error)}): open the model with `from_pretrained` and save it again."
        ) from None


def check_card(path: Path) -> None:
    """Raise a ValueError for a card whose text or metadata the Hub would refuse."""
    try:
        ModelCard(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not in UTF-8: save it so.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 2})" if mark else ""
        raise ValueError(f"{path}: the metadata at its top is no YAML{place}; mend or delete it.") from None
    except Exception as error:  # a model-index that is none fails in many ways
        raise ValueError(f"{path}: the metadata at its top are not a card's ({first_line(error)}).") from None


def pictures_of(card: Path) -> list[str]:
    """Pictures in the directory that a card shows."""
    text = card.read_bytes().decode(errors="replace")
    names = [unquote(first or second).removeprefix("./") for first, second in SHOWN.findall(text)]
    return [
        name
        for name in dict.fromkeys(names)
        if Path(name).suffix in IMAGES
        and not Path(name).is_absolute()
        and not any(part.startswith(".") for part in Path(name).parts)
    ]


def name_the_rest(parts: Contents, checkpoint: Path) -> None:
    """Enter what else lies in the directory; a folder of which nothing goes is one entry."""
    folders = {""} | {f"{parent}/" for name in parts.files for parent in map(str, Path(name).parents) if parent != "."}
    for folder in sorted(folders):
        for name in names_in(checkpoint / folder):
            full = folder + name
            shown_name = f"{full}/" if is_own_folder(checkpoint / full) else full
            if full not in parts.files and shown_name not in folders:
                is_link = (checkpoint / full).is_symlink()
                parts.left_out.setdefault(shown_name, "it is a link" if is_link else "it is not part of a checkpoint")


def read_json(path: Path) -> dict:
    """A JSON object. Raises a ValueError that names the file if it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__} where a JSON object should be.")
    return value


def without_paths(name: str, path: Path) -> Path | bytes:
    """A file as it may be shown to others: in settings, paths of this machine are reduced to their last names."""
    if name not in SETTINGS:
        return path
    settings = read_json(path)
    reduced = reduce_paths(settings)
    if reduced == settings:
        return path
    return (json.dumps(reduced, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def reduce_paths(value: Any, key: str = "") -> Any:
    """A JSON value whose paths, keys included, are reduced to names; labels and tokens stay as they are."""
    if key in USER_WORDS:
        return value
    if isinstance(value, str):
        return data_name(value) if PATH.fullmatch(value) else value
    if isinstance(value, list):
        return [reduce_paths(item) for item in value]
    if isinstance(value, dict):
        names = [reduce_paths(name) for name in value]
        if len(set(names)) < len(names):  # two of a name: told apart by number
            names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
        return {name: reduce_paths(item, own_key) for name, (own_key, item) in zip(names, value.items())}
    return value


def shown(name: str, most: int = 80) -> str:
    """A name on one line, cut in its middle where it is longer than `most` characters."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= most else f"{name[: most // 2 - 2]}...{name[-(most // 2) + 1 :]}"
