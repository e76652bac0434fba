"""Resuming a fine-tuning: from which checkpoint, and whether it is of the same task."""

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import TrainerState, Wav2Vec2CTCTokenizer

from sjepa_hf.contents import read_json
from sjepa_hf.opening import open_config
from training.common.naming import several
from training.common.output_directory import FINAL, checkpoints, set_aside, step_of
from training.common.resuming import LATEST, NEWEST, named_checkpoint
from training.finetuning.text import FILE_NAME as NORMALIZATION


logger = logging.getLogger(__name__)

STATE, MERGED = "trainer_state.json", "merged"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
PICKLES = ("optimizer.pt", "scheduler.pt")


def choose_checkpoint(asked: str | None, output_dir: Path) -> str | None:
    """
    The checkpoint to go on from, or None to begin.

    Args:
        asked: `resume_from_checkpoint`: a directory, `latest` for the newest checkpoint that is whole, `auto` for the
            same or, where there is none, a run that begins, or None.
        output_dir: of the run.

    Raises:
        ValueError: if there is no such checkpoint, it is not whole, or `output_dir` holds checkpoints or the result of
            another run.
    """
    found = checkpoints(output_dir)
    if asked is None:
        if found:
            raise ValueError(
                f"`output_dir` {output_dir} holds checkpoints of another run: choose another, or go on from them"
                f" with --resume_from_checkpoint {LATEST}."
            )
        check_no_result(output_dir)
        return None
    if asked in NEWEST:
        for path in reversed(found):
            problem = what_is_torn(path)
            if problem is None:
                return str(path)
            logger.warning("%s is passed over: %s.", path, problem)
        if found and asked == LATEST:
            raise ValueError(f"None of the checkpoints in {output_dir} is whole: start again in another `output_dir`.")
        check_no_result(output_dir)
        if asked == LATEST:
            raise ValueError(f"There is no checkpoint in {output_dir} to resume from: start without resuming.")
        logger.info("%s holds no checkpoint%s: the run begins.", output_dir, " that is whole" if found else "")
        return None
    problem = what_is_torn(named_checkpoint(asked))
    if problem is not None:
        raise ValueError(f"`resume_from_checkpoint` {asked} cannot be resumed: {problem}.")
    return asked


def set_aside_after(output_dir: Path, resumed: str | None) -> None:
    """
    [`set_aside`] the checkpoints beyond the one that a run goes on from, torn ones among them; all where it begins.

    Raises:
        ValueError: if one cannot be renamed.
    """
    step = steps_taken(resumed) if resumed else 0
    set_aside([path for path in checkpoints(output_dir) if step_of(path) > step], step)


def check_no_result(output_dir: Path) -> None:
    """Raise a ValueError if a run that begins would replace the result of another one."""
    if (output_dir / FINAL).exists():
        raise ValueError(
            f"`output_dir` {output_dir} holds the result of another run in {FINAL}/, and no checkpoint to go on from:"
            " choose another, or delete it."
        )


def steps_taken(checkpoint: str) -> int:
    """Steps that the run of a whole checkpoint had taken."""
    return TrainerState.load_from_json(str(Path(checkpoint) / STATE)).global_step


def what_is_torn(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed; None if it can."""
    try:
        TrainerState.load_from_json(str(path / STATE))  # the last file that is written
    except Exception as error:  # whatever lies there
        return f"{STATE} is missing or torn ({type(error).__name__})"
    weights = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not weights:
        return "its weights are missing"
    try:
        with safe_open(weights[0], "pt") as file:
            file.keys()
    except Exception:
        return f"{weights[0].name} is torn"
    for name in PICKLES:
        if not (path / name).is_file():
            return f"{name} is missing: it was saved without the state of the optimizer"
        if not zipfile.is_zipfile(path / name):
            return f"{name} is torn"
    return None


def check_vocabulary(checkpoint: str, tokenizer: Wav2Vec2CTCTokenizer) -> None:
    """
    Raise a ValueError if the tokenizer that a checkpoint was trained with gives characters other numbers: its head
    would write wrong ones.
    """
    then = read_json(Path(checkpoint) / "vocab.json")
    now = tokenizer.get_vocab()
    if then == now:
        return
    changes = came_and_went(then, now, "character") or "the characters are in another order"
    raise ValueError(
        f"The transcripts have changed since {checkpoint} was saved: {changes}."
        " Its head numbers the characters of the old ones: go on with those, or start again in another `output_dir`."
    )


def check_normalization(checkpoint: str, now: dict) -> None:
    """Raise a ValueError if transcripts are normalised otherwise than when the checkpoint was saved."""
    then = read_json(Path(checkpoint) / NORMALIZATION)
    for name, value in now.items():
        if then.get(name) != value:
            raise ValueError(
                f"Transcripts were normalised with `{name}` {then.get(name)!r} when {checkpoint} was saved, and are"
                f" with {value!r} now: go on with the old setting, or start again in another `output_dir`."
            )


def check_classes(checkpoint: str, names: Sequence[str]) -> None:
    """Raise a ValueError if a checkpoint's head tells other classes apart."""
    merged = Path(checkpoint) / MERGED  # beside adapters, which have no configuration of the model
    then = [name for _, name in sorted(open_config(merged if merged.is_dir() else checkpoint).id2label.items())]
    if then != list(names):
        changes = came_and_went(then, names, "class")
        raise ValueError(
            f"The labels have changed since {checkpoint} was saved: {changes or 'they are in another order'}. Its head"
            " numbers the old ones: go on with those, or start again in another `output_dir`."
        )


def came_and_went(then: Sequence[str], now: Sequence[str], what: str) -> str:
    """Which characters or classes are new, and which are gone."""
    parts = []
    for names, verb in ((set(now) - set(then), "new"), (set(then) - set(now), "gone")):
        if names:
            listed = several(map(repr, sorted(names)), 10)
            plural = what if len(names) == 1 else {"class": "classes"}.get(what, f"{what}s")
            parts.append(f"the {plural} {listed} {'is' if len(names) == 1 else 'are'} {verb}")
    return ", ".join(parts)


def check_weights(checkpoint: str, model: nn.Module) -> None:
    """Raise a ValueError if a checkpoint holds weights of other shapes, or adapters where the model has none."""
    adapted = hasattr(model, "peft_config")
    path = Path(checkpoint) / WEIGHTS[adapted]
    if not path.is_file():
        kind = ("whole weights, not adapters", "adapters, not whole weights")[not adapted]
        raise ValueError(f"{checkpoint} holds {kind}: give `lora_rank` as the run began with it.")
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    if adapted:  # PEFT leaves the adapter's name out of the file
        expected = {name.replace(".default", "").replace(".modules_to_save", ""): s for name, s in expected.items()}
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    lacking = [] if adapted else sorted(set(expected) - set(shapes))
    other = lacking + sorted(name for name, shape in shapes.items() if expected.get(name) != shape)
    if other:
        raise ValueError(
            f"{checkpoint} is of another model: {other[0]} is {shapes.get(other[0], 'absent')} there and"
            f" {expected.get(other[0], 'absent')} in this one. Give `model_name_or_path` as the run began with it."
        )
