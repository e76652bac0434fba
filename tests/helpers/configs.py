"""The configuration of the small models that most tests make."""

from sjepa_hf import SJepaConfig


def small_config(front_end: str = "waveform", **changes) -> SJepaConfig:
    """
    A model small enough for a test, with every part of the full one; "stem" is a log-mel front end with all that it
    can have.
    """
    settings = dict(
        front_end=front_end,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        predictor_intermediate_size=96,
        num_mixture_components=10,
        num_mel_bins=24,
    )
    if front_end == "stem":
        settings |= dict(front_end="log_mel", stem_kernel_size=3, log_mel_cmn=True, log_mel_prior_frames=10)
    return SJepaConfig(**(settings | changes))
