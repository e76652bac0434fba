"""Model cards as the command writes them, and the files that it reads."""

import json

import yaml
from huggingface_hub import ModelCard

from sjepa_hf import model_card


def superb_rows(checkpoint, task="ks", **changes):
    """What `training.superb` writes: two seeds of the checkpoint, and a baseline."""
    row = {
        "task": task,
        "title": "keyword spotting",
        "metrics": {"accuracy": 0.0},
        "layer_weights": [1.0],
        "clips": {"train": 80, "dev": 20, "test": 20},
        "protocol": "s3prl/s3prl",
        "hyperparameters": {"head": "pooled", "train_data": ["/data/words"], "test_data": [], "max_steps": 100},
    } | changes
    found = [(str(checkpoint), 0, 0.9), (str(checkpoint), 1, 0.8), ("mfcc", 0, 0.5), ("untrained:x/y", 0, 0.6)]
    return [row | {"encoder": name, "seed": seed, "metrics": {"accuracy": value}} for name, seed, value in found]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def card(checkpoint, *arguments) -> ModelCard:
    model_card.main([str(checkpoint), *map(str, arguments)])
    return ModelCard.load(checkpoint / "README.md")


def facts_of(tmp_path, content) -> str:
    """Path of a file of facts."""
    (tmp_path / "facts.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(tmp_path / "facts.yaml")
