"""Freed memory is used again: once there is room, tensors of the same size cause no more page faults."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from training.common.memory import keep_freed_memory


FAULTS = """
import resource, torch
from training.common.memory import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(50):
        torch.empty(10 * 2**20).fill_(1.0)  # 40 MiB, more than malloc ever keeps by itself
def faults_of_more_work():
    work()
    before = faults()
    work()
    return faults() - before
given_back = faults_of_more_work()
keep_freed_memory()
print(given_back, faults_of_more_work())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True).stdout
    given_back, kept = map(int, said.split())
    assert kept < 0.1 * given_back


def test_nothing_is_asked_of_windows(monkeypatch):
    def refuse(name: None):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        patch.setattr(ctypes, "CDLL", refuse)
        keep_freed_memory()
