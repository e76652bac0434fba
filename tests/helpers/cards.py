"""Model cards as the command writes them, and the files that it reads."""

import yaml
from huggingface_hub import ModelCard

from sjepa_hf import model_card
from sjepa_hf.scores import write_scores
from training.evaluation.superb.results import score_rows


def superb_rows(checkpoint, task="ks", **changes):
    """Results of `training.superb`: two seeds of the checkpoint, and a baseline."""
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


def write_superb(path, rows):
    """The file of scores that `training.superb` makes of its results."""
    write_scores(path, score_rows(rows))
    return path


def card(checkpoint, *arguments) -> ModelCard:
    model_card.main([str(checkpoint), *map(str, arguments)])
    return ModelCard.load(checkpoint / "README.md")


def facts_of(tmp_path, content) -> str:
    """Path of a file of facts."""
    (tmp_path / "facts.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(tmp_path / "facts.yaml")
