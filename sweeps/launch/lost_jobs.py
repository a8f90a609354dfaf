"""Batch jobs that ended without a record: found by whoever looks next, and recorded as failures."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.records.manifest import Entry, read_manifest
from ratplus.records.record import STAGES
from ratplus.records.status import State
from ratplus.sweeps.launch.batch_jobs import SubmissionRow, read_jobs
from ratplus.sweeps.launch.progress import LOGS

if TYPE_CHECKING:
    from ratplus.sweeps.launch.work import WorkItem


def record_lost_jobs(folder: Path, live: dict[str, tuple[str, str]]) -> int:
    """Write a failed record for every submitted item whose job has ended and that nothing was recorded of since.

    A node may die, or a job end before our code begins: then nobody but the queue knows, and only by not having it any
    more. Jobs that were left out on purpose ("not started: ...") are not failures.

    Args:
        live: of `batch_jobs.live_jobs`; what it holds has not ended.

    Returns:
        How many were recorded.

    Raises:
        JobsUnknown, RecordError: jobs.json or sweep.json is damaged.
    """
    latest: dict[str, tuple[str, SubmissionRow]] = {}
    for submission in read_jobs(folder):
        latest |= {item: (job, submission) for item, job in submission["jobs"].items()}
    ended = {item: known for item, known in latest.items() if item not in live}
    if not ended:
        return 0
    # Only now: what composes configs takes a second to import, which `ratplus status` has not got.
    from ratplus.sweeps.launch.child import folder_log, record_death, tail

    found = 0
    for identity, item in _items(read_manifest(folder)["cells"], set(ended)).items():
        number, submission = ended[identity]
        state = item.state(folder)
        if not _unrecorded(state, submission["time"]):
            continue
        texts = [folder / LOGS / "slurm" / f"{number}_0_log.{kind}" for kind in ("out", "err")]
        lines = [line for path in (*texts, folder_log(item.job(folder, 1))) for line in tail(path)]
        if any(line.startswith("not started: ") or line == "done" for line in tail(texts[0])):
            continue
        said = f"; it printed last: {lines[-1]}" if lines else "; it printed nothing"
        message = f"batch job {number} ended and left no record{said}"
        record_death(item.job(folder, 1), "JobEnded", message, lines)
        found += 1
    return found


def _items(cells: list[Entry], wanted: set[str]) -> dict[str, WorkItem]:
    """The items of these ids."""
    from ratplus.sweeps.launch.work import WorkItem

    found: dict[str, WorkItem] = {}
    for entry in cells:
        for stage in STAGES:
            identity = entry["stages"].get(stage)
            if identity in wanted:
                found.setdefault(identity, WorkItem(entry, stage, None))
    return found


def _unrecorded(state: State, submitted: str) -> bool:
    """Whether nothing tells how a job ended: no record at all, or only one of before the job was submitted."""
    if state.status == "missing":
        return True
    if state.status != "failed" or state.record is None:
        return False
    try:
        written = datetime.fromisoformat(state.record["provenance"]["written_at"])
        return written < datetime.fromisoformat(submitted)
    except (KeyError, TypeError, ValueError):
        return False  # records of before the key: they tell of a failure, whenever that was
