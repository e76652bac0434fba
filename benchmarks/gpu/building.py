"""Building: the simulated device, compiled against the torch that is installed."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths


SOURCE = Path(__file__).parent / "device.cpp"
BUILT = Path(__file__).parent / "build"


def why_not() -> str | None:
    """What keeps this machine from simulating a GPU, in a sentence; None where nothing does."""
    if shutil.which("g++") is None:
        return "The simulated GPU is compiled, and there is no g++: install a C++ compiler."
    if torch.version.cuda or torch.version.hip:
        return "The simulated GPU takes the place of a real one's code: install a build of torch for the CPU."
    return None


def build() -> Path:
    """
    The compiled device, made once (20 seconds) for each version of its source and of torch.

    Raises:
        ValueError: if it cannot be made here, or the compiler refuses it.
    """
    if reason := why_not():
        raise ValueError(reason)
    known = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__}".encode()).hexdigest()[:16]
    library = BUILT / f"{known}.so"
    if library.exists():
        return library
    BUILT.mkdir(exist_ok=True)
    made = library.with_suffix(f".{os.getpid()}")
    paths = [f"-I{path}" for path in include_paths()]
    paths += [option for path in library_paths() for option in (f"-L{path}", f"-Wl,-rpath,{path}")]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(made), *paths, "-ltorch_cpu", "-lc10"]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode:
        raise ValueError(f"{SOURCE} does not compile against torch {torch.__version__}: {compiled.stderr[:2000]}")
    os.replace(made, library)
    return library
