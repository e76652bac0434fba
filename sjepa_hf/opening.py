"""Open what a user names as a checkpoint, or say in one sentence why it does not open."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from .command import first_line


def open_pretrained(auto_class: Any, checkpoint: str | Path, **options) -> Any:
    """
    `auto_class.from_pretrained(checkpoint, **options)`: a model, configuration, processor, tokenizer, ...

    Raises:
        ValueError: whatever is wrong with it: absent, torn, edited by hand, of another kind. A damaged file makes the
            libraries below raise nearly anything, so nearly everything is caught; the cause stays attached.
    """
    try:
        return auto_class.from_pretrained(checkpoint, **options)
    except Exception as error:
        raise ValueError(f"{checkpoint} cannot be opened as a directory or a name on the Hub: {why(error)}") from error


def open_config(checkpoint: str | Path, **options) -> PreTrainedConfig:
    """The configuration of a checkpoint. Raises ValueError as [`open_pretrained`] does."""
    return open_pretrained(AutoConfig, checkpoint, **options)


def why(error: Exception) -> str:
    """What an error says, in one line; where it is not meant for people, its kind too."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = ValueError(str(error.__cause__))  # the sentence about the field; what is around it names validators
    said = first_line(error)
    return said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"
