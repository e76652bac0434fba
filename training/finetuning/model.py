"""Model of a fine-tuning: a checkpoint with a head, and what of it starts afresh, is kept or gets adapters."""

import logging
from functools import partial

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor

import sjepa_hf  # noqa: F401  (registers its classes with the Auto classes)
from sjepa_hf.encoding import reads_padding
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.frames import samples_read
from sjepa_hf.opening import build_model, open_config, open_feature_extractor, open_model
from training.finetuning.arguments import FineTuningArguments


logger = logging.getLogger(__name__)

DROPOUTS = (
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "conformer_conv_dropout",
)
ADAPTER_DROPOUT = 0.05  # of LoRA, where `dropout` is not given
# What decides how outputs are read: the new task's, whatever the checkpoint was made for.
OUTPUTS = {"problem_type": None, "output_hidden_states": False, "output_attentions": False, "return_dict": True}


def open_extractor(model_name_or_path: str, auto_class: type, what: str) -> Wav2Vec2FeatureExtractor:
    """
    The checkpoint's feature extractor, that of this package for S-JEPA, always with attention mask.

    Args:
        auto_class: `AutoModelForCTC` or `AutoModelForAudioClassification`; `what` is how the error calls its head.

    Raises:
        ValueError: if the checkpoint cannot be opened, its type has no such head, or it does not read waveforms at
            16 kHz.
    """
    named = f"`model_name_or_path` {model_name_or_path}"
    config = open_config(model_name_or_path)
    if type(config) not in auto_class._model_mapping:
        raise ValueError(f"{named} is of type {config.model_type}, which has no {what} head in Transformers.")
    if config.model_type == "sjepa":
        return feature_extractor()
    extractor = open_feature_extractor(model_name_or_path)
    if not isinstance(extractor, Wav2Vec2FeatureExtractor):
        raise ValueError(f"{named} does not read waveforms: its extractor is a {type(extractor).__name__}.")
    extractor.return_attention_mask = True
    return extractor


def open_with_head(
    auto_class: type, arguments: FineTuningArguments, *, keep_head: bool = False, **changes
) -> PreTrainedModel:
    """
    The checkpoint with a head, in fp32; its weights fresh with `from_scratch`.

    Args:
        auto_class: `AutoModelForCTC` or `AutoModelForAudioClassification`.
        keep_head: take the checkpoint's head where it has one of the right size; its outputs must mean the same.
        changes: fields of the configuration. Those of `OUTPUTS` that are not given are set as there.

    Raises:
        ValueError: if the checkpoint cannot be opened, lacks weights of the encoder, or has too few layers for
            `reinit_layers` or a head that `lora_rank` cannot train.
    """
    path = arguments.model_name_or_path
    config = open_config(path)
    config.dtype = torch.float32  # also of fresh weights
    for name in ("mask_time_prob", "mask_feature_prob"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if arguments.dropout is not None:
        changes |= {name: arguments.dropout for name in DROPOUTS if hasattr(config, name)}
    outputs = getattr(config, "vocab_size", None), config.num_labels
    for name, value in (OUTPUTS | changes).items():
        setattr(config, name, value)
    if config.model_type == "wavlm" and not hasattr(config, "mask_feature_min_masks"):
        config.mask_feature_min_masks = 0  # its SpecAugment reads it, its class does not have it (Transformers 5.24)
    if arguments.from_scratch:
        model = build_model(auto_class, config, path)
    else:
        model = open_model(auto_class, path, fresh_head=True, config=config, dtype=torch.float32)
    if hasattr(model, "layer_weights") and config.model_type != "sjepa" and getattr(config, "layerdrop", 0):
        logger.info(
            "LayerDrop is off: of a layer that it leaves out, Transformers has no output for the sum of layers."
        )
        model.config.layerdrop = 0.0  # each encoder reads it anew
    if arguments.reinit_layers:
        reinitialize_top_layers(model, auto_class.from_config(config), arguments.reinit_layers)
    if not keep_head:
        had_one = type(model).__name__ in (config.architectures or ()) and not arguments.from_scratch
        if had_one and outputs == (getattr(config, "vocab_size", None), config.num_labels):
            kept = f"; with `tokenizer_name_or_path` {path} it and its vocabulary are kept" * hasattr(model, "lm_head")
            logger.info("%s has a head with as many outputs, which is drawn anew%s.", path, kept)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and not in_encoder(name, model):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)
        if hasattr(model, "layer_weights"):  # of a classifier that reads all layers
            nn.init.constant_(model.layer_weights, 1 / len(model.layer_weights))
    if arguments.freeze_feature_encoder:
        model.freeze_feature_encoder()
    if arguments.lora_rank:
        return with_adapters(
            model, arguments.lora_rank, ADAPTER_DROPOUT if arguments.dropout is None else arguments.dropout
        )
    return model


def transformer_layers(model: PreTrainedModel, wanted_by: str) -> nn.ModuleList:
    """The Transformer layers of the encoder. Raises ValueError where it has none, naming the setting that asks."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layers", None)
    if layers is None:
        raise ValueError(
            f"`{wanted_by}` looks for the layers of wav2vec 2.0's family (`encoder.layers`), and"
            f" {type(model.base_model).__name__} has none: leave it out."
        )
    return layers


def reinitialize_top_layers(model: PreTrainedModel, fresh: PreTrainedModel, count: int) -> None:
    """
    Give the top `count` Transformer layers the weights of the same layers of a model without pretraining.

    Raises:
        ValueError: if the encoder has fewer layers, or none where they are looked for.
    """
    layers, fresh_layers = (transformer_layers(each, "reinit_layers") for each in (model, fresh))
    if count > len(layers):
        raise ValueError(f"`reinit_layers` is {count}, but the encoder has {len(layers)} layers.")
    for layer, fresh_layer in list(zip(layers, fresh_layers))[-count:]:
        layer.load_state_dict(fresh_layer.state_dict())


def with_adapters(model: PreTrainedModel, rank: int, dropout: float = ADAPTER_DROPOUT):
    """
    LoRA (arXiv 2106.09685), with dropout of what it reads, on the linear maps of all Transformer layers, but for
    WavLM's attention, which reads its weights past any adapter; the head is trained, and saved, whole.

    Raises:
        ValueError: if the head has a weight of no module, such as the weights of a sum over layers: PEFT trains and
            saves none; if the encoder has no layers where they are looked for.
    """
    from peft import LoraConfig, get_peft_model

    if bare := [name for name, _ in model.named_parameters(recurse=False)]:
        raise ValueError(
            f"`lora_rank` cannot train {', '.join(bare)} of this head (`use_weighted_layer_sum` in the checkpoint's"
            " config.json): leave it out, or start from a checkpoint without, such as what a `frozen` run began with."
        )
    targets = sorted(
        {
            name.rpartition(".")[2]
            for name, module in transformer_layers(model, "lora_rank").named_modules()
            if isinstance(module, nn.Linear) and not (model.config.model_type == "wavlm" and ".attention." in name)
        }
    )
    encoder = model.base_model_prefix
    head = [name for name, module in model.named_children() if name != encoder and list(module.parameters())]
    adapted = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=targets, modules_to_save=head),
    )
    # PEFT takes a new vocabulary for new input embeddings, which no encoder of speech has.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    trained, total = adapted.get_nb_trainable_parameters()
    logger.info("LoRA (%s) and head: %d of %d parameters are trained.", ", ".join(targets), trained, total)
    return adapted


def scored_at_once(model: nn.Module, batch_size: int) -> int:
    """
    How many clips to score in a batch of at most `batch_size`: an encoder that reads padding gets each clip alone, so
    that no score depends on what else is in the batch.
    """
    return 1 if reads_padding(model.config) else batch_size


def shortest_batch(config: PretrainedConfig) -> int:
    """Samples that a training batch must have: the SpecAugment of Transformers refuses fewer frames than it masks at a
    time, where that of S-JEPA leaves such clips whole."""
    if config.model_type == "sjepa" or not (config.apply_spec_augment and config.mask_time_prob):
        return 0
    return samples_read(config, config.mask_time_length)


def in_encoder(name: str, model: nn.Module) -> bool:
    """Whether a parameter of that name belongs to the encoder rather than to the head."""
    return model.base_model_prefix in name.split(".")
