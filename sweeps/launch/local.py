"""`launcher=local`: cells in processes of this machine, each with GPUs of its own and its share of the cores."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from ratplus.sweeps.launch.child import Child, Process, start_process, worker_environment
from ratplus.sweeps.launch.fork_server import server_for, start_server
from ratplus.sweeps.launch.progress import read_progress
from ratplus.sweeps.launch.work import WorkItem


def warm_up(items: int, workers: int, threads: int) -> None:
    """Prepare to start the workers of so many items, `workers` at once: those after the first ones will be forked.

    A server imports what they need while the first ones run. With few items after them that would not pay. Only Linux
    is relied on to fork what has imported torch.
    """
    environment = worker_environment(threads)
    if sys.platform == "linux" and items > workers + 1 and server_for(environment) is None:
        start_server(environment)


def start_forked(job_file: str, environment: dict[str, str], cwd: str, output: int) -> Process:
    """Have a worker forked, or start it as any other process while there is no server that is ready."""
    server = server_for(environment)
    if server is not None and server.ready():
        with suppress(ConnectionError):  # the server has ended
            return server.fork(
                "ratplus.sweeps.launch.worker:work", ["worker", job_file], environment=environment, cwd=cwd,
                stdout=output, stderr=output,
            )  # fmt: skip
    return start_process(job_file, environment, cwd, output)


class LocalRun:
    """An item in a process of this machine; a pool.Running."""

    def __init__(self, item: WorkItem, slot: int, folder: Path, threads: int, gpus: int):
        self.item, self.slot = item, slot
        self._child = Child(item.job(folder, threads), gpu_environment(slot, gpus), start_forked)

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
