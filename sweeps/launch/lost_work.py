"""Work that ended without a record and without anybody watching: found by whoever looks next, and recorded.

Batch jobs: a node may die, or a job end before our code begins. Then nobody but the queue knows, and only by not having
it any more. Processes: a worker's end is recorded by its parent. A parent that is killed itself, together with its
workers or while it runs a cell in its own process, leaves the file in `<sweep>/logs` that says who was at work on what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.records.lock import LOCK_FILE, SILENT_SECONDS
from ratplus.records.manifest import Entry, evaluations, read_manifest
from ratplus.records.process import gone, in_sight, is_identity
from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, STAGES, is_id
from ratplus.records.status import State
from ratplus.sweeps.batch import slurm
from ratplus.sweeps.batch.jobs_file import JOBS_FILE, SubmissionRow, live_jobs, read_jobs
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.launch.progress import LOGS, SUFFIX, read_progress

if TYPE_CHECKING:
    from ratplus.sweeps.launch.work import WorkItem


def record_lost(folder: Path, items: Iterable[WorkItem]) -> int:
    """Record whatever of these items ended without a record: batch jobs that the queue no longer has, and processes.

    Raises:
        JobsUnknown: the queue cannot be asked, so nothing is recorded, and whoever looks later does it.
        RecordError: sweep.json is damaged.
    """
    if not (folder / JOBS_FILE).exists() and not _notes(folder):
        return 0
    wanted = {item.id for item in items if item.state(folder).status != "done"}
    live = live_jobs(folder, wanted.__contains__)
    return record_lost_jobs(folder, live, wanted.__contains__) + record_lost_processes(folder, live)


def record_lost_jobs(folder: Path, live: dict[str, LiveJob], wanted: Callable[[str], bool] = lambda item: True) -> int:
    """Write a failed record for every submitted item whose job has ended and that nothing was recorded of since.

    Jobs that were left out on purpose ("not started: ...") are not failures.

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
    for entry in evaluations(cells):
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


def _notes(folder: Path) -> dict[str, Path]:
    found = {path.name.removesuffix(SUFFIX): path for path in (Path(folder) / LOGS).glob(f"*{SUFFIX}")}
    return {item: path for item, path in found.items() if is_id(item)}


def record_lost_processes(folder: Path, live: Container[str]) -> int:
    """Write a failed record for every item that a process worked on which has gone, and nothing was recorded since.

    The file may be a stranger's, so it only says which item of the manifest is meant, and which process.

    Args:
        live: items with a batch job that is queued or running; their processes may be elsewhere.

    Returns:
        How many were recorded.
    """
    found = {item: path for item, path in _notes(folder).items() if item not in live}
    if not found:
        return 0
    from ratplus.sweeps.launch.child import folder_log, record_death, tail

    count = 0
    for name, item in items_of(read_manifest(folder)["cells"], set(found)).items():
        path = found[name]
        try:
            written = path.stat().st_mtime
            content = read_json(path, follow=False)
        except (OSError, ValueError):
            continue  # its process has just ended, or the file is damaged
        content = content if isinstance(content, dict) else {}
        state = item.state(folder)
        stages = [Path(folder) / stage / identity for stage, identity in item.entry["stages"].items()]
        progress = path.with_name(f"{name}.progress.json")
        if state.status == "running" or not _has_ended(content, [path, progress, *stages]):
            continue
        if not _tells(state, item.entry["stages"], folder, written):
            job = item.job(folder, 1)
            lines = tail(folder_log(job), _start(content))
            record_death(job, "ProcessEnded", _message(content, read_progress(progress), lines), lines)
            count += 1
        try:
            path.unlink(missing_ok=True)
            progress.unlink(missing_ok=True)
        except OSError:
            pass  # a folder that can only be read: the next one who looks finds the same
    return count


def _has_ended(content: dict, places: list[Path]) -> bool:
    """Whether nobody is at work: all processes are gone, or, where they cannot be seen, nothing moved for long."""
    processes = content.get("processes")
    if not isinstance(processes, list) or not processes or not all(map(is_identity, processes)):
        processes = []
    if processes and all(map(in_sight, processes)):
        return all(map(gone, processes))
    moved = [_changed(file) for place in places for file in (place, place / LOCK_FILE, place / RECORD_FILE)]
    return time.time() - max(moved) > SILENT_SECONDS


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tells(state: State, stages: dict[str, str], folder: Path, since: float) -> bool:
    """Whether a record tells how the work ended that began at the time `since`: done, failed or damaged by now."""
    if state.status in ("done", "damaged"):
        return True
    if state.status != "failed":
        return False
    return _changed(Path(folder) / state.stage / stages[state.stage] / RECORD_FILE) >= since


def _start(content: dict) -> int:
    start = content.get("log_start", 0)
    return start if isinstance(start, int) and not isinstance(start, bool) and 0 <= start < 1 << 62 else 0


def _message(content: dict, progress: dict, lines: list[str]) -> str:
    processes = content.get("processes")
    known = isinstance(processes, list) and processes and is_identity(processes[-1]) and processes[-1].get("pid")
    who = f"process {processes[-1]['pid']} on {processes[-1].get('host')}" if known else "the process"
    said = f"{who} ended without a record, as when it is killed (out of memory?) or its machine goes down"
    if progress:
        said += f"; it was at {progress['done']} of {progress['total']} of {progress['stage']}"
    return f"{said}; it printed last: {lines[-1]}" if lines else said
