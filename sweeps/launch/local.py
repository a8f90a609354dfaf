"""`launcher=local`: cells in processes of this machine, each with GPUs of its own and its share of the cores."""

from __future__ import annotations

import os
from pathlib import Path

from ratplus.sweeps.launch.child import Child
from ratplus.sweeps.launch.progress import read_progress
from ratplus.sweeps.launch.work import WorkItem


class LocalRun:
    """An item in a process of this machine; a pool.Running."""

    def __init__(self, item: WorkItem, slot: int, folder: Path, threads: int, gpus: int):
        self.item, self.slot = item, slot
        self._child = Child(item.job(folder, threads), gpu_environment(slot, gpus))

    def poll(self) -> int | None:
        return None if self._child.process.poll() is None else self._child.finish()

    def ending(self) -> str:
        return self._child.ending()

    def progress(self) -> dict:
        return read_progress(self._child.progress)

    def request_stop(self) -> None:
        if self._child.process.poll() is None:
            self._child.process.terminate()

    def stop(self, seconds: float) -> None:
        self._child.stop(seconds)


def gpu_environment(slot: int, count: int) -> dict[str, str]:
    """Choose `count` of the GPUs that this process may use for the worker of a slot; slots take them in turn."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpus() if allowed is None else [g for g in allowed.split(",") if g]  # an empty value hides all GPUs
    if not gpus:
        return {}
    first = slot * count
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[(first + i) % len(gpus)] for i in range(min(count, len(gpus))))}


def _gpus() -> list[str]:
    """List the indices of this machine's NVIDIA GPUs, without starting CUDA in this process."""
    devices = Path("/dev")
    numbers = [p.name.removeprefix("nvidia") for p in devices.glob("nvidia[0-9]*")] if devices.exists() else []
    return sorted(numbers, key=int)
