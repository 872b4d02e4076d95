from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from pyg_dim.native import allocator

FAULTS = """
import resource, sys
import torch
from pyg_dim.native.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
before = faults()
for _ in range(20):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_large_blocks_are_used_again() -> None:
    def faults(mode: str) -> int:
        # Settings of the shell would hold for both.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", FAULTS, mode], capture_output=True, check=True, env=environment
        )
        return int(done.stdout)

    assert faults("keep") < 0.1 * faults("give")


@pytest.mark.parametrize("fault", [AttributeError, OSError, TypeError])
def test_a_c_library_without_the_settings_is_left_alone(monkeypatch, fault) -> None:
    class Library:
        def __getattr__(self, name: str) -> None:
            raise fault

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    assert not allocator.keep_freed_memory()
