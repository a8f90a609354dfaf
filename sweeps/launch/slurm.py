"""`launcher=slurm`: a job array for the pretrainings and one for the cells, through submitit; submit and exit.

Each array task runs one cell in a child process. When the time limit nears or the job is preempted, submitit's handler
calls `ArrayTask.checkpoint`: the child saves its training state, and the job queues again and continues from it. A cell
starts after the pretrainings have ended in whatever way: if its own is missing then, it does it itself (the stages are
idempotent and locked), and if that failed, it does not try again.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ratplus.config.run import LauncherSection
from ratplus.records.lock import FolderLock
from ratplus.records.status import stage_state
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.child import LOGS, SAVE_SECONDS, STOPPED, Child, record_death
from ratplus.sweeps.launch.jobs import JobsUnknown, add_jobs, live_jobs
from ratplus.sweeps.launch.tasks import Job, Task, threads_of

# submitit's local executor has no queue: it starts everything at once.
_MOST_LOCAL_TASKS = 16
# SLURM's grace before it kills a preempted job can be that long.
_HOLD_SECONDS = 600


@dataclass
class Submission:
    """What a call submitted: {task id: job id}, and the ids of jobs (or arrays) as squeue and scancel take them."""

    id: str
    cluster: str
    jobs: dict[str, str] = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)
    already: int = 0  # tasks that are queued or running since an earlier call
    handles: list = field(default_factory=list)  # submitit's


def submit(
    tasks: list[Task], folder: Path, last: str, launcher: LauncherSection, max_failures: int | None
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
        new = [task for task in tasks if task.id not in live]
        submission.already = len(tasks) - len(new)
        if launcher.cluster == "local" and len(new) > _MOST_LOCAL_TASKS:
            raise UsageError(
                f"launcher.cluster=local: {len(new)} jobs would all start at once; it is for trying out at most "
                f"{_MOST_LOCAL_TASKS}"
            )
        first = [task for task in new if task.last != last]
        cells = [task for task in new if task.last == last]
        # Also those that an earlier call submitted.
        before = {live[task.needs][0] for task in cells if task.needs in live}
        before |= set(_submit_all(first, folder, launcher, max_failures, submission, set()))
        _submit_all(cells, folder, launcher, max_failures, submission, before)
    return submission


def _submit_all(
    tasks: list[Task], folder: Path, launcher: LauncherSection, max_failures: int | None,
    submission: Submission, after: set[str],
) -> list[str]:  # fmt: skip
    """Submit tasks as arrays of at most `array_size`; returns the arrays' ids."""
    arrays: list[str] = []
    for begin in range(0, len(tasks), launcher.array_size):
        part = tasks[begin : begin + launcher.array_size]
        # A limit of cells at once is one of an array, so with a limit they run one array after the other.
        chained = set(arrays[-1:]) if launcher.workers is not None else set()
        executor = _executor(folder, launcher, after | chained)
        jobs = []
        for task in part:
            job = task.job(folder, threads_of(launcher))
            limits = {name: getattr(launcher, name) for name in ("minutes", "grace_seconds", "requeues")}
            jobs.append(job | limits | {"max_failures": max_failures, "submission": submission.id})
        try:
            handles = executor.map_array(ArrayTask(), jobs)
        except Exception as error:
            # sbatch's own words are in the cause; a refused option is the user's to mend.
            lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            said = next((line for line in lines if "sbatch: error" in line), lines[-1])
            raise UsageError(f"launcher=slurm: sbatch refused the jobs: {said}") from None
        submission.handles += handles
        submission.jobs |= {task.id: handle.job_id for task, handle in zip(part, handles)}
        ids = {handle.job_id.partition("_")[0] for handle in handles}
        arrays += sorted(ids)
        submission.arrays += sorted(ids)
        # After each array, so that a kill between two leaves none unknown.
        note = {"id": submission.id, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cluster": submission.cluster,
                "jobs": submission.jobs}  # fmt: skip
        add_jobs(folder, note)
    return arrays


def _executor(folder: Path, launcher: LauncherSection, after: set[str]):
    import submitit

    logs = (folder / LOGS / "slurm").resolve()
    try:
        executor = submitit.AutoExecutor(logs, cluster=launcher.cluster, slurm_max_num_timeout=launcher.requeues,
                                         local_max_num_timeout=launcher.requeues)  # fmt: skip
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

    def __call__(self, job: Job) -> str:
        """Run one job to its end; returns how it ended, empty if well. A failed cell is no failed batch job."""
        from submitit.core.utils import UncompletedJobError

        os.chdir(job["cwd"])
        if reason := why_not(job):
            print(f"not started: {reason}", flush=True)
            return reason
        self._child = Child(job)
        try:
            # Not Popen.wait, which would hold its lock while the signal's handler wants to see the child end.
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
            # Told to stop along with us: preempted, or cancelled. Who leaves early is not queued again; SLURM ends us.
            time.sleep(_HOLD_SECONDS)
        if code not in (0, *STOPPED):
            count_failure(job)
        return ending

    def checkpoint(self, job: Job):
        """Called in the signal's handler: let the child save, and say what to run when the job starts again."""
        import submitit

        if self._child is not None:
            self._child.stop(max(5.0, min(SAVE_SECONDS * 4, job["grace_seconds"] - 10)))
        return submitit.helpers.DelayedSubmission(ArrayTask(), job)


def why_not(job: Job) -> str:
    """Why a submitted job should not start any more; empty if it should. SLURM cannot be told to leave jobs out."""
    needs = job["needs"]
    if needs is not None and stage_state(Path(job["folder"]) / "pretrain" / needs).status == "failed":
        return "its pretraining failed"
    limit = job["max_failures"]
    if limit is not None and len(list(_failures(job).glob("*"))) >= limit:
        return f"max_failures={limit} is reached"
    return ""


def count_failure(job: Job) -> None:
    """Let the other jobs of this submission know of a failure."""
    if job["max_failures"] is not None:
        _failures(job).mkdir(parents=True, exist_ok=True)
        (_failures(job) / job["id"]).touch()


def _failures(job: Job) -> Path:
    return Path(job["folder"]) / LOGS / f"failures-{job['submission']}"
