"""Open what a user names as a checkpoint, or say in one sentence why it does not open."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from .command import first_line
from .frames import SAMPLING_RATE


logger = logging.getLogger(__name__)

MAY_BE_FRESH = ("masked_spec_embed",)  # SpecAugment's vector, which encoders are published without
EMA_ENCODER = "training_state/teacher.safetensors"  # of a training checkpoint of phase 2
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".json", ".yaml")  # no name of a repo ends so
LFS_POINTER = b"version https://git-lfs"


class MissingWeights(ValueError):
    """A checkpoint that lacks weights; `names` are theirs."""

    def __init__(self, checkpoint: str | Path, kind: str, names: list[str]):
        self.names = names
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        super().__init__(
            f"{checkpoint} lacks {len(names)} weights of {kind} ({listed}): it is incomplete, or of another kind of"
            " model."
        )


def file_of(checkpoint: str | Path, name: str) -> Path | None:
    """
    Where a file of a checkpoint, a directory or a repo on the Hub, lies; None where it has none of that name.

    Raises:
        ValueError: if it is not in the cache, and neither that nor the Hub says whether it is there.
    """
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(checkpoint), name))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(str(checkpoint), name) is not _CACHED_NO_EXIST:
            raise ValueError(
                f"Whether {checkpoint} has {name} is not known, as the Hub did not answer"
                f" ({why(error.__cause__ or error)}): try again, or give a directory."
            ) from error
    except EntryNotFoundError:
        pass
    return None


def open_pretrained(auto_class: Any, checkpoint: str | Path, **options) -> Any:
    """
    `auto_class.from_pretrained(checkpoint, **options)`: a model, configuration, processor, tokenizer, ...

    Raises:
        ValueError: whatever is wrong with it or with the options: absent, torn, edited by hand, of another kind. A
            damaged file makes the libraries below raise nearly anything, so nearly everything is caught; the cause
            stays attached.
    """
    folder = Path(checkpoint)
    if is_path(checkpoint) and not folder.is_dir():  # the Hub, which has no such name, is not asked
        reason = "it is a file: give its directory." if folder.is_file() else "there is no such directory."
        raise ValueError(f"{checkpoint} cannot be opened: {reason}")
    try:
        return auto_class.from_pretrained(checkpoint, **options)
    except Exception as error:
        not_found = not folder.is_dir() and isinstance(error, OSError | HFValidationError)
        where = " from the Hub, and is no directory here" if not_found else ""
        needed = getattr(auto_class, "vocab_files_names", {}).get("vocab_file", "config.json")
        reason = lacking(folder, needed) or undownloaded(folder) or why(error)
        raise ValueError(f"{checkpoint} cannot be opened{where}: {reason}") from error


def open_config(checkpoint: str | Path, **options) -> PreTrainedConfig:
    """The configuration of a checkpoint. Raises ValueError as [`open_pretrained`] does."""
    return open_pretrained(AutoConfig, checkpoint, **options)


def open_model(auto_class: Any, checkpoint: str | Path, *, fresh_head: bool = False, **options) -> PreTrainedModel:
    """
    A model all of whose weights are the checkpoint's: Transformers alone would fill what is absent with fresh weights.

    Args:
        fresh_head: whether what is not the encoder may be fresh: absent from the checkpoint, or of another size. The
            log says what is.
        options: of `from_pretrained`.

    Raises:
        MissingWeights: if it lacks weights.
        ValueError: if it cannot be opened, or has weights of another shape, NaN or infinite.
    """
    if (Path(checkpoint) / "adapter_config.json").is_file() and not (Path(checkpoint) / "model.safetensors").is_file():
        raise ValueError(
            f"{checkpoint} holds adapters, not a whole model: give the folder into which they were merged, such as"
            " `final`, or `merged` in a checkpoint."
        )
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with unreported():
        model, loading = open_pretrained(auto_class, checkpoint, **options)
    prefix = model.base_model_prefix
    whole = model.base_model is model  # no head: all of it is encoder

    def needed(names) -> list[str]:
        chosen = (name for name in names if not name.endswith(MAY_BE_FRESH))
        return sorted(name for name in chosen if not fresh_head or whole or name.startswith(f"{prefix}."))

    missing = needed(loading["missing_keys"])
    if missing:
        raise MissingWeights(checkpoint, type(model).__name__, missing)
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in loading["mismatched_keys"]}
    for name in needed(shapes):
        found, wanted = shapes[name]
        raise ValueError(
            f"{checkpoint}: {name} has the shape {found}, but its config.json makes it {wanted}: the two files do not"
            " belong together."
        )
    resized = {name.partition(".")[0]: sizes for name, sizes in shapes.items() if not name.endswith(MAY_BE_FRESH)}
    for name, (found, wanted) in resized.items():
        message = "%s has %s for %d outputs, here there are %d (another vocabulary, classes or clusters): it is fresh."
        logger.info(message, checkpoint, name, found[0], wanted[0])
    absent = {name.partition(".")[0] for name in loading["missing_keys"] if not name.endswith(MAY_BE_FRESH)}
    if absent:
        logger.info("%s has no weights for %s: they are fresh.", checkpoint, ", ".join(sorted(absent)))
    model.config.return_dict = True  # outputs are read by their names
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{checkpoint}: {name} holds NaN or infinite weights: it is damaged, or of a failed run.")
    return model


def open_sjepa_config(checkpoint: str | Path, way_out: str = "give one that is") -> PreTrainedConfig:
    """
    The configuration of an S-JEPA checkpoint. Raises ValueError if it cannot be opened or is of another type, and then
    tells the way out.
    """
    config = open_config(checkpoint)
    if config.model_type != "sjepa":
        raise ValueError(f"{checkpoint} is of type {config.model_type}, not an S-JEPA checkpoint: {way_out}.")
    return config


def open_sjepa(auto_class: Any, checkpoint: str | Path, **options) -> PreTrainedModel:
    """
    [`open_model`] for an S-JEPA checkpoint, in fp32 however it was saved.

    Raises:
        ValueError: as there, or if it is of another type.
    """
    open_sjepa_config(checkpoint)
    return open_model(auto_class, checkpoint, dtype=torch.float32, **options)


def open_pretraining(checkpoint: str | Path) -> PreTrainedModel | None:
    """
    The whole model of pretraining, or None for an S-JEPA checkpoint without the cluster head: fine-tuned, or the
    encoder alone.

    Raises:
        ValueError: as [`open_sjepa`] does.
    """
    try:
        return open_sjepa(AutoModelForPreTraining, checkpoint)
    except MissingWeights as error:
        if any(name.startswith("cluster_head.") for name in error.names):
            return None
        raise


def open_with_ema(checkpoint: str | Path) -> PreTrainedModel:
    """
    The model of a training checkpoint of phase 2 with the EMA encoder's weights in the encoder's place: what its
    mixture was fitted to, so that `unit_posteriors` are the run's targets.

    Raises:
        ValueError: if there is no EMA encoder in it, or as [`open_sjepa`] does.
    """
    path = Path(checkpoint) / EMA_ENCODER
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no EMA encoder ({EMA_ENCODER}): only training checkpoints of phase 2 do.")
    model = open_sjepa(AutoModelForPreTraining, checkpoint)
    try:
        model.sjepa.load_state_dict(load_file(path))
    except Exception as error:  # safetensors has an error of its own, below Exception alone
        raise ValueError(f"{path} cannot be read: {why(error)}.") from error
    return model


def open_feature_extractor(checkpoint: str | Path, **options) -> Any:
    """
    The feature extractor of a checkpoint, of waveforms at 16 kHz. Raises ValueError as [`open_pretrained`] does, or if
    it is for other input.
    """
    extractor = open_pretrained(AutoFeatureExtractor, checkpoint, **options)
    check_feature_extractor(extractor, checkpoint)
    return extractor


def check_feature_extractor(extractor: Any, checkpoint: str | Path) -> None:
    """Raise a ValueError for a feature extractor that does not take waveforms at 16 kHz, as all audio is read here."""
    given = extractor.model_input_names[0]
    if given != "input_values":
        raise ValueError(f"The extractor of {checkpoint} gives {given}: only encoders of waveforms can be read here.")
    if extractor.sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"{checkpoint} hears audio of {extractor.sampling_rate:,} Hz (`sampling_rate` of its feature extractor),"
            f" but all audio here is made one of {SAMPLING_RATE:,} Hz: take an encoder of that rate."
        )


def open_recogniser(checkpoint: str | Path) -> tuple[Any, PreTrainedModel]:
    """
    Processor and model, in fp32, of a CTC checkpoint of any type.

    Raises:
        ValueError: if it cannot be opened, does not take waveforms at 16 kHz, or has no CTC head or no tokenizer that
            belongs to it.
    """
    try:
        model = open_model(AutoModelForCTC, checkpoint, dtype=torch.float32)
    except MissingWeights as error:
        if any(name.startswith("lm_head.") for name in error.names):
            raise ValueError(
                f"{checkpoint} has no CTC head, which transcripts need: give the result of a fine-tuning with CTC."
            ) from None
        raise
    processor = open_processor(checkpoint)
    check_feature_extractor(processor.feature_extractor, checkpoint)
    outputs, labels = model.config.vocab_size, len(processor.tokenizer)
    if outputs > labels:
        raise ValueError(
            f"{checkpoint} has {outputs} outputs, but its tokenizer only {labels} labels: the two do not belong"
            " together."
        )
    return processor, model


def open_processor(checkpoint: str | Path) -> Any:
    """
    Feature extractor and tokenizer of a checkpoint that writes text.

    Raises:
        ValueError: if it cannot be opened, or has no tokenizer.
    """
    open_config(checkpoint)  # whatever else is wrong with it, is said first
    reason = ""
    try:
        processor = open_pretrained(AutoProcessor, checkpoint)
        if hasattr(processor, "tokenizer"):
            return processor
    except ValueError as error:
        reason = f" ({why(error.__cause__).rstrip(': ')})" if error.__cause__ else ""
    raise ValueError(
        f"{checkpoint} has no tokenizer that opens, which transcripts need{reason}: give the result of a fine-tuning"
        " with CTC."
    )


def build_model(auto_class: Any, config: PreTrainedConfig, checkpoint: str | Path) -> PreTrainedModel:
    """A model of a checkpoint's configuration with fresh weights. Raises ValueError if it makes no network."""
    try:
        return auto_class.from_config(config)
    except Exception as error:
        raise ValueError(f"The configuration of {checkpoint} makes no network: {why(error)}") from error


def why(error: BaseException) -> str:
    """What an error says, in one line; where it is not meant for people, its kind too."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = ValueError(str(error.__cause__))  # the sentence about the field; what is around it names validators
    line = first_line(error)
    if isinstance(error, SafetensorError):
        return f"a file of weights (.safetensors) is damaged or cut short ({line})"
    lines = str(error).strip().splitlines()
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1].strip()}"
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"


@contextmanager
def unreported() -> Iterator[None]:
    """Without Transformers' table of missing and unexpected weights: what matters of it is checked here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def is_path(checkpoint: str | Path) -> bool:
    """Whether what a user names is a path by its looks, or a file: no repo on the Hub is called so."""
    name = str(checkpoint)
    begins = Path(name).is_absolute() or name.startswith((".", "~"))
    return begins or name.endswith(("/", *FILES)) or name.count("/") > 1 or os.path.isfile(name)


def is_repo_id(name: Any) -> bool:
    """Whether a repo on the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def lacking(folder: Path, needed: str) -> str | None:
    """What to say of a directory without the file that opening begins with; None where it has it."""
    if not folder.is_dir() or (folder / needed).is_file():
        return None
    way_out = "; give its `final`" if (folder / "final" / needed).is_file() else ""
    return f"it has no {needed}{way_out}."


def undownloaded(folder: Path) -> str | None:
    """What to say of a clone whose large files were never downloaded; None for any other checkpoint."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(LFS_POINTER):
            return f"{path.name} is a Git LFS pointer in place of the file: run `git lfs pull` there."
    return None
