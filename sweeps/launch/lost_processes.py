"""Processes that ended without a record and without anybody watching: found by whoever looks next, and recorded.

A worker's end is recorded by its parent. A parent that is killed itself, together with its workers or while it runs a
cell in its own process, leaves the file in `<sweep>/logs` that says who was at work on what.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.records.lock import LOCK_FILE, SILENT_SECONDS
from ratplus.records.manifest import read_manifest
from ratplus.records.process import gone, in_sight, is_identity
from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, is_id
from ratplus.records.status import State
from ratplus.sweeps.batch.jobs_file import JOBS_FILE, JobsUnknown, live_jobs
from ratplus.sweeps.launch.lost_jobs import items_of, record_lost_jobs
from ratplus.sweeps.launch.progress import LOGS, SUFFIX, read_progress

if TYPE_CHECKING:
    from ratplus.sweeps.launch.work import WorkItem


def record_lost(folder: Path, items: Iterable[WorkItem]) -> int:
    """Record whatever of these items ended without a record: batch jobs that the queue no longer has, and processes.

    Where the queue cannot be asked, nothing is recorded, and whoever looks later does it.

    Raises:
        RecordError: sweep.json is damaged.
    """
    if not (folder / JOBS_FILE).exists() and not _notes(folder):
        return 0
    wanted = {item.id for item in items if item.state(folder).status != "done"}
    try:
        live = live_jobs(folder, wanted.__contains__)
        return record_lost_jobs(folder, live, wanted.__contains__) + record_lost_processes(folder, live)
    except JobsUnknown:
        return 0


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
