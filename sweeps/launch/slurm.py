"""`launcher=slurm`: submits a job array for the pretrainings and one for the cells, through submitit, and exits.

Each array task runs one cell in a child process. When the time limit nears or the job is preempted, submitit's handler
calls `ArrayTask.checkpoint`: the child saves its training state, and the job queues again and continues from it. A cell
starts after the pretrainings have ended in whatever way. If its own is missing then, the cell trains it (the stages are
idempotent and locked); if its own failed, the cell does not try again.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ratplus.config.run import LauncherSection
from ratplus.records.lock import FolderLock
from ratplus.records.status import stage_state
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.batch_jobs import JobsUnknown, SubmissionRow, add_jobs, live_jobs
from ratplus.sweeps.launch.child import SAVE_SECONDS, STOPPED, Child, record_death
from ratplus.sweeps.launch.progress import LOGS
from ratplus.sweeps.launch.work import Job, WorkItem, threads_per_cell

# submitit's local executor has no queue: it starts everything at once.
_MOST_LOCAL_JOBS = 16
# SLURM may give a preempted job that long before it kills it.
_HOLD_SECONDS = 600


@dataclass
class Submission:
    """What a call submitted.

    Attributes:
        jobs: item id -> batch job id.
        arrays: ids of the jobs, or of their arrays, as squeue and scancel take them.
        already: how many items are queued or running since an earlier call.
        handles: submitit's objects of the jobs.
    """

    id: str
    cluster: str
    jobs: dict[str, str] = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)
    already: int = 0
    handles: list = field(default_factory=list)


class BatchJob(Job):
    """A job with what its array task decides on a node.

    Attributes:
        minutes, grace_seconds, requeues: of the launcher's section.
        max_failures: how many jobs of the submission may fail before the others are not started; None has no limit.
        submission: id of the submission.
    """

    minutes: int
    grace_seconds: int
    requeues: int
    max_failures: int | None
    submission: str


def submit(
    items: list[WorkItem], folder: Path, last: str, launcher: LauncherSection, max_failures: int | None
) -> Submission:
    """Submit what is not queued or running yet, and note the job ids in `<folder>/jobs.json`.

    Raises:
        UsageError: no submitit, no cluster, or the cluster refuses the jobs.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("launcher=slurm: submitit is not installed; pip install 'ratplus[slurm]'") from None
    submission = Submission(uuid.uuid4().hex[:8], launcher.cluster)
    with FolderLock(folder):
        try:
            live = live_jobs(folder)
        except JobsUnknown as error:
            raise UsageError(f"launcher=slurm: cannot tell which jobs are queued already: {error}") from None
        new = [item for item in items if item.id not in live]
        submission.already = len(items) - len(new)
        if launcher.cluster == "local" and len(new) > _MOST_LOCAL_JOBS:
            raise UsageError(
                f"launcher.cluster=local: {len(new)} jobs would all start at once; it is for trying out at most "
                f"{_MOST_LOCAL_JOBS}"
            )
        pretrainings = [item for item in new if item.last != last]
        cells = [item for item in new if item.last == last]
        # Cells also wait for pretrainings that an earlier call submitted.
        before = {live[item.needs][0] for item in cells if item.needs in live}
        before |= set(_submit_all(pretrainings, folder, launcher, max_failures, submission, set()))
        _submit_all(cells, folder, launcher, max_failures, submission, before)
    return submission


def _submit_all(
    items: list[WorkItem], folder: Path, launcher: LauncherSection, max_failures: int | None,
    submission: Submission, after: set[str],
) -> list[str]:  # fmt: skip
    """Submit items as arrays of at most `array_size`; returns the arrays' ids."""
    arrays: list[str] = []
    for begin in range(0, len(items), launcher.array_size):
        part = items[begin : begin + launcher.array_size]
        # SLURM limits how many jobs of one array run at once, so with a limit the arrays run one after the other.
        chained = set(arrays[-1:]) if launcher.workers is not None else set()
        executor = _executor(folder, launcher, after | chained)
        limits = {name: getattr(launcher, name) for name in ("minutes", "grace_seconds", "requeues")}
        limits |= {"max_failures": max_failures, "submission": submission.id}
        jobs = [cast(BatchJob, item.job(folder, threads_per_cell(launcher)) | limits) for item in part]
        try:
            handles = executor.map_array(ArrayTask(), jobs)
        except Exception as error:
            # The cause holds what sbatch printed; it names the option that the user has to change.
            lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            reason = next((line for line in lines if "sbatch: error" in line), lines[-1])
            raise UsageError(f"launcher=slurm: sbatch refused the jobs: {reason}") from None
        submission.handles += handles
        submission.jobs |= {item.id: handle.job_id for item, handle in zip(part, handles)}
        ids = {handle.job_id.partition("_")[0] for handle in handles}
        arrays += sorted(ids)
        submission.arrays += sorted(ids)
        # Noted after each array, so that a kill between two leaves no job unknown.
        note: SubmissionRow = {
            "id": submission.id, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cluster": submission.cluster,
            "jobs": submission.jobs,
        }  # fmt: skip
        add_jobs(folder, note)
    return arrays


def _executor(folder: Path, launcher: LauncherSection, after: set[str]):
    import submitit

    logs = (folder / LOGS / "slurm").resolve()
    # -P: a job starts in the folder of the user, and must import nothing from it.
    python = f"{shlex.quote(sys.executable)} -P"
    try:
        executor = submitit.AutoExecutor(
            logs, cluster=launcher.cluster, slurm_max_num_timeout=launcher.requeues, slurm_python=python,
            local_max_num_timeout=launcher.requeues, local_python=python,
        )  # fmt: skip
        cpus = launcher.cpus or 1
        executor.update_parameters(
            name=f"ratplus-{folder.name}",
            timeout_min=launcher.minutes,
            cpus_per_task=cpus,
            tasks_per_node=1,
            nodes=1,
            gpus_per_node=launcher.gpus or 0,
            **({} if launcher.memory_gb is None else {"mem_gb": launcher.memory_gb}),
            slurm_partition=launcher.partition,
            slurm_account=launcher.account,
            slurm_qos=launcher.qos,
            slurm_constraint=launcher.constraint,
            slurm_signal_delay_s=launcher.grace_seconds,
            slurm_array_parallelism=launcher.workers or launcher.array_size,
            slurm_dependency="afterany:" + ":".join(sorted(after)) if after else None,
            slurm_setup=launcher.setup or None,
            # srun of SLURM 22.05 and later does not take it from sbatch.
            slurm_srun_args=["--cpus-per-task", str(cpus)],
            # submitit queues a job again before its time limit; SLURM does when it preempts one or loses a node.
            slurm_additional_parameters={"requeue": True, **launcher.sbatch},
        )
    except RuntimeError:
        raise UsageError(
            "launcher=slurm: this machine has no srun; run it on a login node of the cluster, or try the jobs out here "
            "with launcher.cluster=local"
        ) from None
    return executor


class ArrayTask:
    """What an array task calls; pickled by submitit, so it holds nothing but the running child."""

    def __init__(self):
        self._child: Child | None = None

    def __call__(self, job: BatchJob) -> str:
        """Run one job to its end; returns how it ended, empty if well. A failed cell is no failed batch job."""
        from submitit.core.utils import UncompletedJobError

        os.chdir(job["cwd"])
        if reason := why_not(job):
            print(f"not started: {reason}", flush=True)
            return reason
        self._child = Child(job)
        try:
            # Popen.wait would hold its lock while the signal's handler waits for the child's end.
            while self._child.process.poll() is None:
                time.sleep(0.2)
        except UncompletedJobError:
            # The signal's handler has run `checkpoint`, and may not queue the job again.
            message = (
                f"the job reached its limit of {job['minutes']} minutes more than {job['requeues']} times; training "
                "continues where it was when the sweep is run again with a higher launcher.minutes or launcher.requeues"
            )
            record_death(job, "TimeLimit", message, [])
            count_failure(job)
            raise
        code = self._child.finish()
        ending = self._child.ending()
        print(ending or "done", flush=True)
        if code in STOPPED and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            # The child was stopped together with this process: the job is preempted or cancelled. SLURM does not queue
            # a preempted job again if it leaves early, so wait until SLURM ends this process.
            time.sleep(_HOLD_SECONDS)
        if code not in (0, *STOPPED):
            count_failure(job)
        return ending

    def checkpoint(self, job: BatchJob):
        """Let the child save; returns what submitit runs when the job starts again. A signal's handler calls this."""
        import submitit

        if self._child is not None:
            self._child.stop(max(5.0, min(SAVE_SECONDS * 4, job["grace_seconds"] - 10)))
        return submitit.helpers.DelayedSubmission(ArrayTask(), job)


def why_not(job: BatchJob) -> str:
    """Why a submitted job should not start any more; empty if it should. SLURM itself leaves no job of an array out."""
    needs = job["needs"]
    if needs is not None and stage_state(Path(job["folder"]) / "pretrain" / needs).status == "failed":
        return "its pretraining failed"
    limit = job["max_failures"]
    if limit is not None and len(list(_failures(job).glob("*"))) >= limit:
        return f"max_failures={limit} is reached"
    return ""


def count_failure(job: BatchJob) -> None:
    """Let the other jobs of this submission know of a failure."""
    if job["max_failures"] is not None:
        _failures(job).mkdir(parents=True, exist_ok=True)
        (_failures(job) / job["id"]).touch()


def _failures(job: BatchJob) -> Path:
    return Path(job["folder"]) / LOGS / f"failures-{job['submission']}"
