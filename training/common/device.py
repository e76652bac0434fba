"""Device: where a command computes when nobody says, and in which precision."""

import torch
from accelerate.utils import parse_flag_from_env


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_cpu() -> bool:
    """
    Whether Accelerate is to compute on the CPU, which it has to be told: else each process of a launch on a machine
    without a GPU takes itself for the only one.
    """
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def choose_precision(asked: str | None) -> str | None:
    """
    What Accelerate is told: `auto` becomes bf16 where that is the fast format of the device, else fp32.

    Raises:
        ValueError: for fp16 without a GPU, where Accelerate would compute in fp32 without a word.
    """
    if asked == "fp16" and not torch.accelerator.is_available():
        raise ValueError("`mixed_precision` fp16 needs a GPU: take bf16, auto or no.")
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # Without units for it bf16 is emulated, several times slower than fp32; with them it is faster (docs/measured.md).
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "no"
