"""Small encoders of other kinds than ours, as their publishers save them."""

from pathlib import Path

from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
NORMS_FIRST = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
KINDS = {
    "hubert": HubertConfig(**SMALL, layerdrop=0.3, mask_feature_prob=0.5),
    "wav2vec2": Wav2Vec2Config(**SMALL, **NORMS_FIRST, mask_time_prob=0.0),
    "wavlm": WavLMConfig(**SMALL, **NORMS_FIRST),
    "data2vec-audio": Data2VecAudioConfig(**SMALL | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
    "unispeech-sat": UniSpeechSatConfig(**SMALL, apply_spec_augment=False),
}


def save_other(config: PreTrainedConfig, folder: Path, **extractor) -> Path:
    """An encoder with fresh weights and its feature extractor, which norms each waveform."""
    AutoModel.from_config(config).save_pretrained(folder)
    settings = {"do_normalize": True, "return_attention_mask": False} | extractor
    Wav2Vec2FeatureExtractor(**settings).save_pretrained(folder)
    return folder
