"""A command of this project on a simulated GPU: does everything lie on one device, and where is the device waited for?

    python -m benchmarks.simulated_gpu training.units model_cards/tiny --data my_audio/ --output units
    python -m benchmarks.simulated_gpu --waits training.pretrain --config training/recipes/tiny.yaml ...
    python -m benchmarks.simulated_gpu pytest tests/training/test_units.py

For machines without a GPU: it needs a C++ compiler and a build of torch for the CPU. The device computes on the CPU,
slowly, and says "cuda:0" (`gpu/device.cpp`): torch's rules for devices, autocast of CUDA, loss scaling and the states
of its random numbers are those of a GPU, and so is what Accelerate and the Trainer choose. Its numbers are the CPU's,
nothing runs at the same time, there is one of it in one process, and nothing can be compiled for it. `--waits` prints
how often the CPU waited for it to bring a value over, by the lines of this project.
"""

import argparse
import os
import sys

from benchmarks.gpu.building import build
from sjepa_hf.command import CommandParser, command


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--waits", action="store_true", help="count waits for the device and print where they are")
    parser.add_argument("module", help="module with a function `main(argv)`: training.units, pytest")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what it is given")
    asked = parser.parse_args(argv)
    library = build()
    program = "from benchmarks.gpu.process import main; main()"
    given = [str(library), *["--waits"] * asked.waits, asked.module, *asked.arguments]
    os.execv(sys.executable, [sys.executable, "-c", program, *given])  # torch is here, and must not be


if __name__ == "__main__":
    main()
