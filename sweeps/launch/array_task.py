"""What runs on a node: one job of an array, its end near the time limit, and whether it should start at all.

submitit's handler calls `ArrayTask.checkpoint` when the time limit nears or the job is preempted: the child saves its
training state, and the job queues again and continues from it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ratplus.records.status import stage_state
from ratplus.sweeps.launch.child import SAVE_SECONDS, STOPPED, Child, record_death
from ratplus.sweeps.launch.progress import LOGS
from ratplus.sweeps.launch.work import Job

# SLURM may give a preempted job that long before it kills it.
_HOLD_SECONDS = 600


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
