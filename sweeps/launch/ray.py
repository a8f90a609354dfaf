"""`launcher=ray`: cells as tasks of a Ray cluster, each in a process of its own on the node that Ray chooses.

Ray places the tasks and counts CPUs and GPUs; which task comes next is the pool's, as everywhere.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from ratplus.config.run import LauncherSection
from ratplus.records.lines import first_line
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.child import SAVE_SECONDS, Child, Records, folder_log, record_death, tail
from ratplus.sweeps.launch.progress import LOGS, read_progress
from ratplus.sweeps.launch.work import Job, WorkItem, threads_per_cell


class RayRun:
    """An item as a task of a Ray cluster; a pool.Running."""

    def __init__(self, ray, remote, item: WorkItem, slot: int, folder: Path, threads: int):
        self.item, self.slot = item, slot
        self._ray = ray
        self._job = item.job(folder, threads)
        self._records = Records(self._job)
        self._progress_file = folder / LOGS / f"{item.id}.progress.json"
        self._ref = remote.remote(self._job)
        self._text = ""

    def poll(self) -> int | None:
        ready, _ = self._ray.wait([self._ref], timeout=0)
        if not ready:
            return None
        try:
            code, self._text = self._ray.get(self._ref)
        except self._ray.exceptions.RayError as error:  # the node, or Ray's own worker there, has gone
            code, self._text = 1, f"{type(error).__name__}: {first_line(error)}"
            if not self._records.changed():
                lines = tail(folder_log(self._job))
                record_death(self._job, type(error).__name__, f"Ray's task was lost: {first_line(error)}", lines)
        return code

    def ending(self) -> str:
        return self._text

    def progress(self) -> dict:
        return read_progress(self._progress_file)

    def request_stop(self) -> None:
        self._ray.cancel(self._ref)

    def stop(self, seconds: float) -> None:
        self._ray.wait([self._ref], timeout=seconds + 1)


@contextmanager
def ray_cluster(launcher: LauncherSection):
    """Connect to the cluster, or start one here; gives (items at once, start) for the pool, and leaves it at the end.

    Raises:
        UsageError: no Ray, no such cluster, or one without room for a single cell.
    """
    _set_environment(launcher)
    try:
        import ray
    except ImportError:
        raise UsageError("launcher=ray: Ray is not installed; pip install 'ratplus[ray]'") from None
    try:
        # Ray puts the current folder before all others on the path of its workers, so that is one without modules. A
        # task goes to the user's folder itself (run_job).
        with tempfile.TemporaryDirectory() as empty, chdir(empty):
            ray.init(address=launcher.address or "local", include_dashboard=False, log_to_driver=False,
                     configure_logging=False)  # fmt: skip
    except Exception as error:
        raise UsageError(f"launcher.address: {launcher.address or 'a local cluster'}: {first_line(error)}") from None
    try:
        cpus, gpus = launcher.cpus or 1, launcher.gpus or 0
        resources = ray.cluster_resources()
        at_once = int(resources.get("CPU", 0) // cpus)
        if gpus:
            at_once = min(at_once, int(resources.get("GPU", 0) // gpus))
        if at_once == 0:
            raise UsageError(
                f"launcher.cpus={cpus} launcher.gpus={gpus}: the cluster has {resources.get('CPU', 0):.0f} CPUs and "
                f"{resources.get('GPU', 0):.0f} GPUs"
            )
        # A failed cell is recorded. As with every launcher, the user decides whether it is tried again.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_job)
        threads = threads_per_cell(launcher)

        def starter(folder: Path) -> Callable[[WorkItem, int], RayRun]:
            return lambda item, slot: RayRun(ray, remote, item, slot, folder, threads)

        yield min(at_once, launcher.workers or at_once), starter
    finally:
        ray.shutdown()


def _set_environment(launcher: LauncherSection) -> None:
    """Variables that Ray reads when it is imported, and that its processes inherit."""
    # Ray reports its use over the network unless this forbids it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if launcher.address:
        return
    # A cluster of this machine alone is not to be reached from others. Ray listens on loopback where it may not form
    # clusters, whatever the system; given 127.0.0.1 as an address, it takes that of the network all the same.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Other users of this machine reach loopback. Ray 2.52 and later ask for a token, and would keep theirs in the home
    # folder.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def run_job(job: Job) -> tuple[int, str]:
    """Run a job's worker process on a node to its end; returns (exit code, how it ended)."""
    os.chdir(job["cwd"])
    child = Child(job)
    try:
        while child.process.poll() is None:
            time.sleep(0.2)  # short sleeps let Ray's cancellation interrupt this loop
    except BaseException:
        with suppress(KeyboardInterrupt):
            child.stop(SAVE_SECONDS)
        raise
    return child.finish(), child.ending()
