"""Batch jobs that ended without a record: found by whoever looks next, and recorded as failures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.records.manifest import Entry, read_manifest
from ratplus.records.record import STAGES
from ratplus.records.status import State
from ratplus.sweeps.batch import slurm
from ratplus.sweeps.batch.jobs_file import SubmissionRow, read_jobs
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.launch.progress import LOGS

if TYPE_CHECKING:
    from ratplus.sweeps.launch.work import WorkItem


def record_lost_jobs(folder: Path, live: dict[str, LiveJob], wanted: Callable[[str], bool] = lambda item: True) -> int:
    """Write a failed record for every submitted item whose job has ended and that nothing was recorded of since.

    A node may die, or a job end before our code begins: then nobody but the queue knows, and only by not having it any
    more. Jobs that were left out on purpose ("not started: ...") are not failures.

    Args:
        live: of `jobs_file.live_jobs`; what it holds has not ended.
        wanted: which items are looked at.

    Returns:
        How many were recorded.

    Raises:
        JobsUnknown, RecordError: jobs.json or sweep.json is damaged.
    """
    latest: dict[str, tuple[str, SubmissionRow]] = {}
    for submission in read_jobs(folder):
        latest |= {item: (job, submission) for item, job in submission["jobs"].items()}
    ended = {item: known for item, known in latest.items() if item not in live and wanted(item)}
    if not ended:
        return 0
    # Only now: what composes configs takes a second to import, which `ratplus status` has not got.
    from ratplus.sweeps.launch.child import folder_log, record_death, tail

    lost: list[tuple[WorkItem, str, list[str]]] = []
    for identity, item in items_of(read_manifest(folder)["cells"], set(ended)).items():
        number, submission = ended[identity]
        state = item.state(folder)
        if not _unrecorded(state, submission["time"]):
            continue
        texts = [_log(folder, submission["id"], f"{number}_0_log.{kind}") for kind in ("out", "err")]
        lines = [line for path in (*texts, folder_log(item.job(folder, 1))) for line in tail(path)]
        if any(line.startswith("not started: ") or line == "done" for line in tail(texts[0])):
            continue
        lost.append((item, number, lines))
    clusters = {number: submission["cluster"] for number, submission in ended.values()}
    ends = slurm.ends([number for _, number, _ in lost if clusters[number] == "slurm"])
    found = 0
    for item, number, lines in lost:
        if not _unrecorded(item.state(folder), ended[item.id][1]["time"]):
            continue  # it needs a stage that has just been recorded as failed
        end = ends.get(number)
        how = f" ({end})" if end is not None else ""
        said = f"; it printed last: {lines[-1]}" if lines else "; it printed nothing"
        message = f"batch job {number} ended{how} and left no record{said}"
        record_death(item.job(folder, 1), "JobEnded", message, lines, end.host if end is not None else None)
        found += 1
    return found


def _log(folder: Path, submission: str, name: str) -> Path:
    """A file that a job prints to. Earlier versions had those of all submissions in one folder."""
    place = folder / LOGS / "slurm"
    own = place / submission
    return (own if own.is_dir() and not own.is_symlink() else place) / name


def items_of(cells: list[Entry], wanted: set[str]) -> dict[str, WorkItem]:
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
