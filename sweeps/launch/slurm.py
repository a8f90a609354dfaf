"""`launcher=slurm`: submits a job array for the pretrainings and one for the cells, through submitit, and exits.

Each array task runs one cell in a child process (array_task.py). A cell starts after the pretrainings have ended in
whatever way. If its own is missing then, the cell trains it (the stages are idempotent and locked); if its own failed,
the cell does not try again.
"""

from __future__ import annotations

import io
import shlex
import sys
import uuid
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from ratplus.config.run import LauncherSection
from ratplus.records.lock import FolderLock
from ratplus.records.reading import LinkError, refuse_links
from ratplus.sweeps.batch.environment import submitting_environment
from ratplus.sweeps.batch.jobs_file import JobsUnknown, SubmissionRow, add_jobs, live_jobs, remove_jobs
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.batch.refusals import refusal
from ratplus.sweeps.batch.sbatch_options import resources, sbatch_options
from ratplus.sweeps.batch.slurm import SlurmError, cancel, most_in_array
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.array_task import ArrayTask, BatchJob
from ratplus.sweeps.launch.progress import LOGS
from ratplus.sweeps.launch.work import WorkItem, threads_per_cell

# submitit's local executor has no queue: it starts everything at once.
_MOST_LOCAL_JOBS = 16
# Keys of the launcher that are none of a job's.
_OF_THE_CALL = ("kind", "cluster", "address", "wait", "array_size")


@dataclass
class Submission:
    """What a call submitted.

    Attributes:
        began: ISO time, from before the first job was submitted: a job may fail before the last one is.
        id: unguessable, so that nobody can have put files where those of its jobs are going to lie.
        jobs: item id -> batch job id.
        arrays: ids of the jobs, or of their arrays, as squeue and scancel take them.
        already: items that are queued or running since an earlier call, by id.
        handles: submitit's objects of the jobs. Their results are never read: they are pickles, and records hold all.
        most: how many tasks the cluster allows in an array, if that is less than launcher.array_size.
    """

    cluster: str
    began: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="milliseconds"))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: dict[str, str] = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)
    already: dict[str, LiveJob] = field(default_factory=dict)
    handles: list = field(default_factory=list)
    most: int | None = None


def job_keys(launcher: LauncherSection) -> dict[str, Any]:
    """Those keys of the launcher that a job is submitted with."""
    return {key: value for key, value in asdict(launcher).items() if key not in _OF_THE_CALL}


def submit(
    items: list[WorkItem], folder: Path, last: str, launcher: LauncherSection, max_failures: int | None
) -> Submission:
    """Submit what is not queued or running yet, and note the job ids in `<folder>/jobs.json`.

    All of it is submitted or nothing: if the cluster refuses a part, the jobs of this call are cancelled.

    Raises:
        UsageError: no submitit, no cluster, or the cluster refuses the jobs.
    """
    submission = Submission(launcher.cluster)
    with submitting_environment(launcher):
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UsageError("launcher=slurm: submitit is not installed; pip install 'ratplus[slurm]'") from None
        with FolderLock(folder):
            ids = {item.id for item in items}
            try:
                live = live_jobs(folder, ids.__contains__)
            except JobsUnknown as error:
                raise UsageError(f"launcher=slurm: cannot tell which jobs are queued already: {error}") from None
            new = [item for item in items if item.id not in live]
            submission.already = {item.id: live[item.id] for item in items if item.id in live}
            if launcher.cluster == "local" and len(new) > _MOST_LOCAL_JOBS:
                raise UsageError(
                    f"launcher.cluster=local: {len(new)} jobs would all start at once; it is for trying out at most "
                    f"{_MOST_LOCAL_JOBS}"
                )
            if new:
                _submit_new(new, folder, last, launcher, max_failures, submission, live)
    return submission


def _submit_new(
    new: list[WorkItem], folder: Path, last: str, launcher: LauncherSection, max_failures: int | None,
    submission: Submission, live: dict[str, LiveJob],
) -> None:  # fmt: skip
    if launcher.cluster == "slurm":
        _executor(folder, folder, launcher, set())  # says whether there is a cluster at all, before it is asked
    logs = _make_logs(folder, submission)
    pretrainings = [item for item in new if item.last != last]
    cells = [item for item in new if item.last == last]
    # Cells also wait for pretrainings that an earlier call submitted.
    before = {live[item.needs].id for item in cells if item.needs in live}

    def jobs(part: list[WorkItem]) -> list[BatchJob]:
        limits = {name: getattr(launcher, name) for name in ("minutes", "grace_seconds", "requeues")}
        limits |= {"max_failures": max_failures, "submission": submission.id}
        return [cast(BatchJob, item.job(folder, threads_per_cell(launcher)) | limits) for item in part]

    def executor(after: set[str]):
        return _executor(folder, logs, launcher, after)

    if launcher.cluster == "slurm":
        submission.most = most_in_array()
    try:
        before |= set(_submit_all(pretrainings, folder, launcher, submission, set(), jobs, executor))
        _submit_all(cells, folder, launcher, submission, before, jobs, executor)
    except BaseException as error:  # also Ctrl-C and a full disk
        told = _take_back(folder, submission)
        if isinstance(error, UsageError) and told:
            raise UsageError(f"{error}; {told}") from None
        if told:
            print(told, file=sys.stderr)
        raise


def _make_logs(folder: Path, submission: Submission) -> Path:
    """The folder of job files, logs and pickles of this submission alone.

    A node unpickles the file of its job's number, so a folder that was there before could bring code of somebody else.
    """
    logs = folder.resolve() / LOGS / "slurm" / submission.id
    if any(sign in str(logs) for sign in "%\\"):
        raise UsageError(
            f"launcher=slurm: {logs.parents[2]}: SLURM takes % and \\ in the names of files for placeholders; choose "
            "another folder with output=..."
        )
    try:
        refuse_links(folder, (LOGS,))
    except LinkError as error:
        raise UsageError(f"launcher=slurm: {error}") from None
    logs.parent.mkdir(parents=True, exist_ok=True)
    logs.mkdir()
    return logs


def _submit_all(
    items: list[WorkItem], folder: Path, launcher: LauncherSection, submission: Submission, after: set[str],
    jobs: Callable[[list[WorkItem]], list[BatchJob]], executor: Callable[[set[str]], Any],
) -> list[str]:  # fmt: skip
    """Submit items as arrays of at most as many as launcher and cluster allow; returns the arrays' ids."""
    from submitit.core import utils

    arrays: list[str] = []
    size = min(launcher.array_size, submission.most or launcher.array_size)
    for begin in range(0, len(items), size):
        part = items[begin : begin + size]
        # SLURM limits how many jobs of one array run at once, so with a limit the arrays run one after the other.
        chained = set(arrays[-1:]) if launcher.workers is not None else set()
        one = executor(after | chained)
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, and so do we
                handles = one.map_array(ArrayTask(), jobs(part))
        except (utils.UncompletedJobError, utils.FailedSubmissionError) as error:
            raise UsageError(f"launcher=slurm: {refusal(error, asdict(launcher))}") from None
        except FileNotFoundError as error:
            if error.filename != "sbatch":
                raise
            raise UsageError("launcher=slurm: this machine has srun and no sbatch; run it on a login node") from None
        submission.handles += handles
        submission.jobs |= {item.id: handle.job_id for item, handle in zip(part, handles)}
        ids = {handle.job_id.partition("_")[0] for handle in handles}
        arrays += sorted(ids)
        submission.arrays += sorted(ids)
        # Noted after each array, so that a kill between two leaves no job unknown.
        note: SubmissionRow = {
            "id": submission.id, "time": submission.began, "cluster": submission.cluster,
            "jobs": submission.jobs, "launcher": job_keys(launcher),
        }  # fmt: skip
        add_jobs(folder, note)
    return arrays


def _take_back(folder: Path, submission: Submission) -> str:
    """Cancel what this call has submitted so far; returns a line on that, empty if there was nothing."""
    if not submission.jobs:
        return ""
    ids = " ".join(submission.arrays)
    jobs = f"what this call had submitted before (jobs {ids})"
    try:
        if submission.cluster == "slurm":
            cancel(submission.arrays)
        else:
            for handle in submission.handles:
                handle.cancel()
        remove_jobs(folder, submission.id)
    except (SlurmError, JobsUnknown, OSError) as error:
        return f"{jobs} could not be cancelled ({error}): `scancel {ids}`"
    return f"{jobs} is cancelled"


def _executor(folder: Path, logs: Path, launcher: LauncherSection, after: set[str]):
    import submitit

    # -P: a job starts in the folder of the user, and must import nothing from it.
    python = f"{shlex.quote(sys.executable)} -P"
    try:
        executor = submitit.AutoExecutor(
            logs, cluster=launcher.cluster, slurm_max_num_timeout=launcher.requeues, slurm_python=python,
            local_max_num_timeout=launcher.requeues, local_python=python,
        )  # fmt: skip
    except RuntimeError:
        raise UsageError(
            "launcher=slurm: this machine has no srun; run it on a login node of the cluster, or try the jobs out here "
            "with launcher.cluster=local"
        ) from None
    executor.update_parameters(
        name=f"ratplus-{folder.name}",
        timeout_min=launcher.minutes,
        tasks_per_node=1,
        nodes=1,
        **resources(launcher),
        slurm_partition=launcher.partition,
        slurm_account=launcher.account,
        slurm_qos=launcher.qos,
        slurm_constraint=launcher.constraint,
        slurm_signal_delay_s=launcher.grace_seconds,
        slurm_array_parallelism=launcher.workers or launcher.array_size,
        slurm_dependency="afterany:" + ":".join(sorted(after)) if after else None,
        slurm_setup=launcher.setup or None,
        # srun of SLURM 22.05 and later does not take it from sbatch.
        slurm_srun_args=["--cpus-per-task", str(launcher.cpus or 1)],
        # submitit queues a job again before its time limit; SLURM does when it preempts one or loses a node.
        slurm_additional_parameters={"requeue": True, **sbatch_options(launcher)},
    )
    return executor
