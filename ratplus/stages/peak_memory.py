"""The most memory that a stage took, for its record: what can be measured of the stage alone, and what cannot."""

from __future__ import annotations

import platform
import resource
from pathlib import Path


def reset_gpu_peak(device: str) -> None:
    """Forget what earlier stages of this process allocated on the GPU, so that `gpu_peak` is of the next one alone.

    Args:
        device: "cuda" or "cpu", where there is nothing to forget.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, int]:
    """Entries of a record's `timing`, in bytes: `gpu_peak`, and `process_peak_memory_bytes`.

    The latter is the most host memory (resident set) that this process ever held. No system tells it of a part of a
    process's life, so it includes the stages that the process ran before.
    """
    return {**gpu_peak(device), "process_peak_memory_bytes": _process_peak_bytes()}


def gpu_peak(device: str) -> dict[str, int]:
    """`peak_gpu_memory_bytes`: the most that PyTorch's allocator held in tensors on this process's GPU since
    `reset_gpu_peak`; empty on a CPU.
    """
    if device != "cuda":
        return {}
    import torch

    return {"peak_gpu_memory_bytes": torch.cuda.max_memory_allocated()}


def _process_peak_bytes() -> int:
    # On Linux ru_maxrss starts at the size of the process that started this one, so the kernel's own mark is read.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
