"""Freed memory is kept, where there is a glibc to keep it."""

import platform
import subprocess
import sys

import pytest

from tests.readme import ROOT

_PROGRAM = """
import resource, sys, torch
from models.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(16 * 2**20).add_(1)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc: there is nothing to tell it")
def test_pages_are_not_faulted_in_again():
    """Prevents a setting that is accepted and does nothing: ten tensors one after the other use the same pages."""
    faults = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", _PROGRAM, how]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["leave"] / 4, faults
