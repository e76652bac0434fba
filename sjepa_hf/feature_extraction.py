"""Feature extractor of S-JEPA checkpoints: Transformers' own, with the settings that lie beside the weights."""

from transformers import Wav2Vec2FeatureExtractor

from .frames import SAMPLING_RATE


def feature_extractor() -> Wav2Vec2FeatureExtractor:
    """16 kHz waveforms as they are (the front end norms them), zero-padded, with an attention mask."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLING_RATE, padding_value=0.0, do_normalize=False, return_attention_mask=True
    )
