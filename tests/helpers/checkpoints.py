"""Checkpoints of tests."""

from pathlib import Path

from transformers import PreTrainedModel

from sjepa_hf.feature_extraction import feature_extractor


def save(model: PreTrainedModel, path: Path) -> str:
    """Save a model with its feature extractor; the folder, as a command takes it."""
    model.save_pretrained(path)
    feature_extractor().save_pretrained(path)
    return str(path)
