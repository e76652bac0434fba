"""S-JEPA's pretraining over an encoder of another kind: the same predictor, cluster head, mixture and loss.

A checkpoint of it is one of the encoder's own kind, which `AutoModel` opens where this package is not installed. What
only pretraining needs lies beside it in `pretraining/`.
"""

import logging
from pathlib import Path

from huggingface_hub import is_offline_mode
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from sjepa_hf.contents import PRETRAINING, read_json
from sjepa_hf.opening import file_of, why
from training.pretraining.arguments import Arguments, check_unchanged
from training.pretraining.other_encoder import OtherEncoder, check_kind, open_other_encoder


logger = logging.getLogger(__name__)

MASK_EMBEDDING = "sjepa.model.masked_spec_embed"


class OtherForPreTraining(SJepaForPreTraining):
    """
    [`SJepaForPreTraining`] whose `sjepa` is an [`OtherEncoder`].

    Args:
        config (`SJepaConfig`): of predictor, cluster head and mixture, with the sizes of the encoder.
        encoder (`OtherEncoder`): the encoder; no weight of it is changed.
    """

    encoder_class = nn.Identity  # until it has the encoder

    def __init__(self, config: SJepaConfig, encoder: OtherEncoder):
        super().__init__(config)
        self.sjepa = encoder

    def freeze_feature_encoder(self) -> None:
        """Stop the gradient at the encoder's convolutions."""
        self.sjepa.freeze_feature_encoder()

    def save_pretrained(self, directory: str | Path) -> None:
        """Save the encoder as one of its own kind, and the rest in `pretraining/`."""
        config, weights = (Path(directory) / name for name in PRETRAINING)
        self.sjepa.save_pretrained(directory)
        config.parent.mkdir(exist_ok=True)
        self.config.to_json_file(config)
        rest = {name: value.contiguous() for name, value in self.state_dict().items() if self.lies_beside(name)}
        save_file(rest, weights, metadata={"format": "pt"})

    def lies_beside(self, name: str) -> bool:
        """Whether a weight is saved in `pretraining/`: what is not the encoder's as its configuration has it."""
        return not name.startswith("sjepa.") or (name == MASK_EMBEDDING and self.sjepa.lends_mask_embedding)


def open_other(
    checkpoint: str | Path, own_config: PreTrainedConfig, arguments: Arguments, **options
) -> OtherForPreTraining:
    """
    The model of a run over an encoder of another kind; predictor, head and mixture are those of the checkpoint, or new
    where it has none.

    Args:
        checkpoint: directory or Hub name.
        own_config: the checkpoint's configuration.
        arguments: of the run; `model_config` may set the predictor's fields.
        options: of `from_pretrained`.

    Raises:
        ValueError: if the encoder cannot be pretrained further, what lies beside it is damaged, or the settings want
            another model.
    """
    check_kind(checkpoint, own_config)
    config = arguments.sjepa_config(own_config)
    model = load_other(checkpoint, own_config, **options)
    if model is None:
        encoder = open_other_encoder(checkpoint, own_config, **options)
        lacks = "predictor, cluster head" + ", mask embedding" * encoder.lends_mask_embedding
        logger.info("%s is a %s without %s: they are fresh.", checkpoint, own_config.model_type, lacks)
        return OtherForPreTraining._from_config(config, encoder=encoder, **options)
    whose = f"the predictor of {checkpoint}"
    check_unchanged(arguments.chosen_model(), config, model.config, whose, "leave that out")
    return model


def load_other(checkpoint: str | Path, own_config: PreTrainedConfig, **options) -> OtherForPreTraining | None:
    """
    The whole model of pretraining over an encoder of another kind, or None where nothing lies beside the encoder.

    Raises:
        ValueError: as [`open_other`] does.
    """
    paths = [file_beside(checkpoint, name) for name in PRETRAINING]
    if not any(paths):
        return None
    for name, path in zip(PRETRAINING, paths):
        if path is None:
            raise ValueError(
                f"{checkpoint} lacks {name}, though other files of pretraining lie there: copy it too, or delete those"
                " to begin with a fresh predictor."
            )
    try:
        config = SJepaConfig(**read_json(paths[0]))
    except Exception as error:  # of whatever Transformers makes of a value in a field that it checks itself
        raise ValueError(f"{paths[0]} is not a configuration: {why(error)}") from error
    encoder = open_other_encoder(checkpoint, own_config, **options)
    model = OtherForPreTraining._from_config(config, encoder=encoder, **options)
    try:
        weights = load_file(paths[1])
        unmatched = set(filter(model.lies_beside, model.state_dict())) ^ weights.keys()
        if unmatched:
            raise ValueError(f"it and {PRETRAINING[0]} do not agree on {min(unmatched)}")
        model.load_state_dict(weights, strict=False)
    except Exception as error:  # of safetensors, or of torch where a shape is another
        raise ValueError(f"{paths[1]} cannot be taken: {why(error)}") from error
    return model


def file_beside(checkpoint: str | Path, name: str) -> Path | None:
    """
    As [`sjepa_hf.opening.file_of`], but that offline a file is taken as absent where that is not known; the log says
    so.

    Raises:
        ValueError: if the Hub does not say whether it is there.
    """
    try:
        return file_of(checkpoint, name)
    except ValueError:
        if not is_offline_mode():
            raise
        logger.warning("%s: %s is taken as absent, for all that is known offline.", checkpoint, name)
        return None
