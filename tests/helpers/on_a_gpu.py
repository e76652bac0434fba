"""A program for a simulated GPU: commands on small data, and what `torch` refuses there. `main([FOLDER])`."""

import json
from pathlib import Path

import pytest
import shortcuts
import torch
from finetuning_runs import SHORT, SIZES, write_clips
from pretraining_runs import RECIPE, write_noise

from benchmarks.gpu.waits import Waits
from sjepa_hf import SJepaConfig, SJepaModel
from sjepa_hf.feature_extraction import feature_extractor
from training import finetune_ctc, pretrain, superb, units


def main(argv: list[str]) -> None:
    folder = Path(argv[0])
    shortcuts.take()
    look_at_the_device()
    (folder / "recipe.yaml").write_text(RECIPE.format(front_end="log_mel"))
    (folder / "noise").mkdir()
    noise, run = write_noise(folder / "noise", 12, 0.5), folder / "run"
    asked = ["--config", str(folder / "recipe.yaml"), "--train_data", str(noise), "--mixed_precision", "bf16"]
    with Waits() as waits:
        pretrain.main([*asked, "--output_dir", str(run)])
    (folder / "waits.json").write_text(json.dumps(list(waits.places)))
    units.main([str(run / "final"), "--data", str(noise), "--output", str(folder / "units")])

    SJepaModel(SJepaConfig(**SIZES)).save_pretrained(folder / "encoder")
    feature_extractor().save_pretrained(folder / "encoder")
    texts = write_clips(folder / "texts", ["A", "B", "AB", "BA"] * 4)
    asked = ["--model_name_or_path", str(folder / "encoder"), "--train_data", str(texts)]
    finetune_ctc.main([*asked, "--output_dir", str(folder / "recogniser"), "--fp16", "true", *SHORT])
    words = write_clips(folder / "words", ["A" * 8, "B" * 8] * 8, "label", lambda i: "ab"[i % 2])
    asked = ["--task", "ks", "--model", str(run / "final"), "--train_data", str(words), "--max_steps", "2"]
    superb.main([*asked, "--output_dir", str(folder / "superb"), "--cache_dir", str(folder / "cache")])


def look_at_the_device() -> None:
    """What holds of a GPU holds of this one."""
    numbers = torch.arange(6.0, device="cuda").view(2, 3)
    assert torch.cuda.is_available() and numbers.device == torch.device("cuda:0")
    numbers[:, 1:].zero_()  # a view, of the same memory
    assert numbers.tolist() == [[0, 0, 0], [3, 0, 0]] and numbers[numbers > 0].device.type == "cuda"
    with pytest.raises(RuntimeError, match="on the same device"):
        numbers + torch.ones(3)
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        numbers.normal_(generator=torch.Generator())
    on_cpu, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state()
    torch.randn(3, device="cuda")
    assert torch.equal(torch.get_rng_state(), on_cpu) and not torch.equal(torch.cuda.get_rng_state(), on_gpu)
    layer = torch.nn.Linear(3, 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(numbers)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    torch.testing.assert_close(layer.weight.grad.cpu(), torch.tensor([[3.0, 0, 0], [3.0, 0, 0]]))
    with Waits() as waits:
        numbers.add(1).relu()
    assert not waits.places.total()
    for wait in (
        numbers.sum().item,
        numbers.cpu,
        numbers.nonzero,
        lambda: numbers[numbers > 0],
        lambda: bool(numbers[0, 0]),
    ):
        with Waits() as waits, torch.inference_mode():
            wait()
        assert waits.places.total() == 1, wait
