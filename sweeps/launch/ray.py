"""`launcher=ray`: cells as tasks of a Ray cluster, each in a process of its own on the node that Ray chooses.

Ray places the tasks and counts CPUs and GPUs; which task comes next is the pool's, as everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from ratplus.config.run import LauncherSection
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.child import LOGS, SAVE_SECONDS, Child, read_progress
from ratplus.sweeps.launch.tasks import Job, Task, threads_of


class RayRun:
    """A task in a Ray cluster; a pool.Running."""

    def __init__(self, ray, remote, task: Task, slot: int, folder: Path, threads: int):
        self.task, self.slot = task, slot
        self._ray = ray
        self._progress = folder / LOGS / f"{task.id}.progress.json"
        self._ref = remote.remote(task.job(folder, threads))
        self._text = ""

    def poll(self) -> int | None:
        ready, _ = self._ray.wait([self._ref], timeout=0)
        if not ready:
            return None
        try:
            code, self._text = self._ray.get(self._ref)
        except self._ray.exceptions.RayError as error:  # the node or Ray's own worker is gone
            code, self._text = 1, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return code

    def ending(self) -> str:
        return self._text

    def news(self) -> dict:
        return read_progress(self._progress)

    def tell(self) -> None:
        self._ray.cancel(self._ref)

    def stop(self, seconds: float) -> None:
        self._ray.wait([self._ref], timeout=seconds + 1)


@contextmanager
def ray_cluster(launcher: LauncherSection):
    """Connect to the cluster, or start one here; gives (tasks at once, start) for the pool, and leaves it at the end.

    Raises:
        UsageError: no Ray, no such cluster, or one without room for a single cell.
    """
    # Ray reports its use over the network unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("launcher=ray: Ray is not installed; pip install 'ratplus[ray]'") from None
    try:
        ray.init(address=launcher.address or "local", include_dashboard=False, log_to_driver=False,
                 configure_logging=False)  # fmt: skip
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"launcher.address: {launcher.address or 'a local cluster'}: {reason}") from None
    try:
        cpus, gpus = launcher.cpus or 1, launcher.gpus or 0
        there = ray.cluster_resources()
        room = int(there.get("CPU", 0) // cpus)
        if gpus:
            room = min(room, int(there.get("GPU", 0) // gpus))
        if room == 0:
            raise UsageError(
                f"launcher.cpus={cpus} launcher.gpus={gpus}: the cluster has {there.get('CPU', 0):.0f} CPUs and "
                f"{there.get('GPU', 0):.0f} GPUs"
            )
        # A cell that fails is recorded; trying it again is up to the user, as with every launcher.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_job)
        threads = threads_of(launcher)

        def starter(folder: Path) -> Callable[[Task, int], RayRun]:
            return lambda task, slot: RayRun(ray, remote, task, slot, folder, threads)

        yield min(room, launcher.workers or room), starter
    finally:
        ray.shutdown()


def run_job(job: Job) -> tuple[int, str]:
    """On a node: the job's worker process to its end; (exit code, how it ended)."""
    os.chdir(job["cwd"])
    child = Child(job)
    try:
        while child.process.poll() is None:
            time.sleep(0.2)  # in steps, so that a cancellation is heard
    except BaseException:
        with suppress(KeyboardInterrupt):
            child.stop(SAVE_SECONDS)
        raise
    return child.finish(), child.ending()
