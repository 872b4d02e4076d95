"""Memory of tensors: how much a call takes, and how much there is."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_memory(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Most memory that tensors take at a time within a call, beyond what they took before.

    On a CPU PyTorch's allocations are followed by its profiler; what other libraries allocate is not seen.

    Args:
        call: what to run, once.
        device: whose memory.

    Returns:
        Bytes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def free_memory(device: torch.device | str = "cpu") -> float:
    """Bytes that can still be taken; infinite where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    known = Path("/proc/meminfo")
    lines = known.read_text().splitlines() if known.exists() else []
    found = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else math.inf
