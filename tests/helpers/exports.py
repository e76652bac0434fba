"""Small checkpoints and the ONNX files that are written from them, each once for all processes of a run of tests."""

from pathlib import Path
from typing import NamedTuple

import torch
from configs import small_config
from filelock import FileLock
from transformers import Wav2Vec2Processor

from sjepa_hf import SJepaConfig, export_onnx
from sjepa_hf.feature_extraction import feature_extractor
from training.finetuning.text import build_tokenizer


CLASS_NAMES = ["yes", "no", "là"]


class Export(NamedTuple):
    """A checkpoint with its model, and the files that were written from it."""

    model: torch.nn.Module
    checkpoint: Path
    task: str
    path: Path
    int8: Path


def one_layer(front_end: str, **changes) -> SJepaConfig:
    """Small enough to be exported, with weights large enough for the outputs to differ from frame to frame."""
    sizes = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=64, conv_dim=[16] * 7)
    return small_config(front_end, initializer_range=0.2, **sizes, **changes)


def small_export(folder: Path, front_end: str, task: str) -> Export:
    """The export in `folder`, which several processes may share."""
    mine = folder / f"{front_end}-{task}"
    checkpoint, path = mine / "checkpoint", mine / "out" / "model.onnx"
    folder.mkdir(exist_ok=True)
    with FileLock(f"{mine}.lock"):
        if not path.exists():
            save(checkpoint, front_end, task)
            export_onnx.export_onnx(checkpoint, path, int8=True)  # the task is the checkpoint's
    model = export_onnx.TASKS[task].from_pretrained(checkpoint).eval()
    return Export(model, checkpoint, task, path, path.with_name("model.int8.onnx"))


def save(checkpoint: Path, front_end: str, task: str) -> None:
    torch.manual_seed(0)
    changes = {}
    if task == "ctc":
        tokenizer = build_tokenizer(["ABC É"])
        Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(checkpoint)
        changes = dict(vocab_size=len(tokenizer), use_weighted_layer_sum=True)
    elif task == "classification":
        changes = dict(id2label=dict(enumerate(CLASS_NAMES)))
    export_onnx.TASKS[task](one_layer(front_end, **changes)).save_pretrained(checkpoint)
