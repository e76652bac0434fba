"""The process that has the simulated GPU: torch is imported here after the device is loaded, and a module is run."""

import ctypes
import importlib
import sys


def main() -> None:
    """Run by `sys.argv[1:]`, `LIBRARY [--waits] MODULE ARGUMENTS`, the module's `main(ARGUMENTS)` on the device."""
    library, *given = sys.argv[1:]
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # torch asks for devices once, while it is imported

    from benchmarks.gpu.torch_cuda import announce
    from benchmarks.gpu.waits import Waits

    announce()
    count = given[0] == "--waits"
    module, *arguments = given[count:]
    run = importlib.import_module(module).main
    if not count:
        sys.exit(run(arguments))
    with Waits() as waits:
        try:
            run(arguments)
        finally:
            print(waits.table())
