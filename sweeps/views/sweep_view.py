"""How far each cell of a sweep folder is, from its manifest, records, locks and progress files alone.

Nothing here needs torch or writes a file, so a running sweep can be looked at from any machine that sees its folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ratplus.records.manifest import Added, Entry, evaluations, read_manifest
from ratplus.records.note import read_note
from ratplus.records.record import STAGES
from ratplus.records.status import State, cell_state, stage_state
from ratplus.sweeps.batch.jobs_file import JobsUnknown, live_jobs
from ratplus.sweeps.batch.reasons import LiveJob, queue_lines
from ratplus.sweeps.launch.lost_work import record_lost_jobs, record_lost_processes
from ratplus.sweeps.launch.progress import LOGS, read_progress

# The statuses of a cell, in the order in which they are counted. A stage (ratplus.records.status) is never queued.
CELL_STATUSES = ("done", "running", "queued", "failed", "missing", "damaged")
FORMAT = 1
# How many finished cells' times are read to estimate the time left; more would change little.
_SAMPLE = 200


@dataclass
class SweepView:
    """The state of a sweep folder at one moment.

    Attributes:
        cells: one a cell of the manifest, with keys id, model, label, seed, axes, status (one of CELL_STATUSES), stage
            (at work or failed; else empty), error (one line), attempt (of the failure; else null), job (of a batch
            system; else null), reason (why that job is queued, in SLURM's word; else null), progress (of a running
            stage: stage, done, total, maybe loss; else null), note (what somebody wrote of it; else
            empty), added (suites of `evaluate --add`: suite, id, status, error).
        counts: cells by status.
        running_stages: stages at work now; several cells may wait for one.
        eta_seconds: time left at as many at once as now; None if nothing runs or no cell has finished yet.
        notes: lines on what could not be found out.

    Raises:
        RecordError: the folder is no sweep folder.
    """

    folder: Path
    cells: list[dict] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    running_stages: int = 0
    eta_seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._read_state = lru_cache(maxsize=None)(stage_state)
        manifest = read_manifest(self.folder)["cells"]
        jobs = self._jobs(manifest)
        progress = self._progress_by_item()
        self.cells = [self._cell(entry, jobs, progress) for entry in manifest]
        counts = Counter(cell["status"] for cell in self.cells)
        self.counts = {status: counts[status] for status in CELL_STATUSES if counts[status]}
        self.eta_seconds = self._eta(manifest)

    @property
    def bad(self) -> bool:
        bad = ("failed", "damaged")
        return any(self.counts.get(status) for status in bad) or any(one["status"] in bad for one in self.added)

    @property
    def settled(self) -> bool:
        """True if every cell, and every suite that was added to one, is done or has failed."""
        waiting = ("running", "queued", "missing")
        return not any(self.counts.get(status) for status in waiting) and not any(
            one["status"] in waiting for one in self.added
        )

    @property
    def added(self) -> list[dict]:
        """The suites that were added to cells."""
        return [one for cell in self.cells for one in cell["added"]]

    def _jobs(self, manifest: list[Entry]) -> dict[str, LiveJob]:
        """Jobs that have not ended, by item; jobs that ended without a record get one."""
        places = {identity: stage for entry in evaluations(manifest) for stage, identity in entry["stages"].items()}

        def is_open(item: str) -> bool:
            return item not in places or self._read_state(self.folder / places[item] / item).status != "done"

        try:
            # About what is done, nobody need be asked, who may be away.
            jobs = live_jobs(self.folder, is_open)
            if record_lost_jobs(self.folder, jobs, is_open) + record_lost_processes(self.folder, jobs):
                self._read_state.cache_clear()
        except JobsUnknown as error:
            self.notes.append(f"queued jobs are not known: {error}")
            return {}
        first = [job for item, job in jobs.items() if places.get(item) == "pretrain" and job.state == "queued"]
        if first:
            self.notes.append(f"pretrainings that are queued: {len(first)} ({' '.join(job.id for job in first[:8])})")
        self.notes += queue_lines(jobs.values())
        return jobs

    def _cell(self, entry: Entry, jobs: dict[str, LiveJob], progress_by_item: dict) -> dict:
        state = cell_state(self.folder, entry["stages"], look=self._read_state)
        status, stage, error = state.status, state.stage, state.error
        attempt = progress = None
        if status == "failed":
            failure = state.record["error"] if state.record is not None else None
            attempt = failure and failure.get("attempt")
        ids = [entry["stages"][s] for s in reversed(STAGES) if s in entry["stages"]]
        # The job of a pretraining is not that of the cells that need it: those may have none.
        own = (jobs[i] for i in ids if i in jobs and i != entry["stages"].get("pretrain"))
        job = next(own, None)
        if job is not None and status in ("failed", "damaged", "missing"):
            # The cell was submitted again after it failed.
            status, stage, error, attempt = job.state, "", "", None
        if status == "running" and stage:
            files = [progress_by_item[i] for i in ids if i in progress_by_item]
            written = next((content for content in files if content["stage"] == stage), None)
            progress = written and {k: written[k] for k in ("stage", "done", "total", "loss") if k in written}
        known: dict = {k: entry[k] for k in ("id", "model", "label", "seed", "axes")}
        return known | {
            "status": status,
            "stage": "" if status == "done" else stage,
            "error": error,
            "attempt": attempt,
            "job": job and job.id,
            "reason": (job and status == "queued" and job.reason) or None,
            "progress": progress,
            "added": [self._added(added, jobs) for added in entry.get("added", [])],
            "note": read_note(self.folder / "evaluate" / entry["stages"]["evaluate"]),
        }

    def _added(self, added: Added, jobs: dict[str, LiveJob]) -> dict:
        """One suite that a cell was asked later."""
        state = self._read_state(self.folder / "evaluate" / added["id"])
        job = jobs.get(added["id"])
        status = job.state if job is not None and state.status in ("failed", "damaged", "missing") else state.status
        error = state.error if status == state.status else ""
        return {"suite": added["suite"], "id": added["id"], "status": status, "error": error}

    def _progress_by_item(self) -> dict[str, dict]:
        """What workers last wrote of their progress, by the id of the item that they run."""
        found = {}
        for path in (self.folder / LOGS).glob("*.progress.json"):
            progress = read_progress(path)
            if {"stage", "done", "total"} <= progress.keys():
                found[path.name.partition(".")[0]] = progress
        return found

    def _eta(self, manifest: list[Entry]) -> float | None:
        """Seconds left, if the rest takes as long as what is finished did, and as many stages run at once as now."""
        running: dict[tuple[str, str], float] = {}  # (stage, its id) -> the fraction of it that is left
        cells_left, pretrainings_left = 0, set()
        for entry, cell in zip(manifest, self.cells):
            if cell["status"] not in ("running", "queued", "missing"):
                continue
            cells_left += 1
            if self._state(entry, "pretrain").status not in ("done", "failed"):
                pretrainings_left.add(entry["stages"]["pretrain"])
            if cell["stage"]:
                progress = cell["progress"]
                left = 1 - progress["done"] / progress["total"] if progress and progress["total"] else 1.0
                running[cell["stage"], entry["stages"][cell["stage"]]] = left
        self.running_stages = len(running)
        finished = [entry for entry, cell in zip(manifest, self.cells) if cell["status"] == "done"]
        finished = finished[:: max(1, len(finished) // _SAMPLE)]
        if not running or not finished:
            return None
        seconds = {
            stage: _mean(self._state(entry, stage) for entry in finished if stage in entry["stages"])
            for stage in STAGES
        }  # fmt: skip
        own = STAGES[1:]  # the stages that a cell shares with no other
        total = cells_left * sum(seconds[stage] for stage in own) + len(pretrainings_left) * seconds["pretrain"]
        for (stage, _), left in running.items():
            before = sum(seconds[s] for s in own[: own.index(stage)]) if stage in own else 0.0
            total -= (1 - left) * seconds[stage] + before
        return max(total, 0.0) / len(running)

    def _state(self, entry: Entry, stage: str) -> State:
        return self._read_state(self.folder / stage / entry["stages"][stage])

    def to_json(self) -> dict:
        """The documented form for scripts; keys are only ever added within a format."""
        return {
            "format": FORMAT,
            "folder": str(self.folder),
            "counts": self.counts,
            "running_stages": self.running_stages,
            "eta_seconds": self.eta_seconds,
            "notes": self.notes,
            "cells": self.cells,
        }


def _mean(states) -> float:
    """The mean seconds of finished stages; 0 if there are none, as when records were copied without their parents."""
    seconds = [s.record["timing"].get("seconds", 0.0) for s in states if s.status == "done"]
    return sum(seconds) / len(seconds) if seconds else 0.0


def summary(statuses: Iterable[str]) -> str:
    """Count the statuses of cells in words: `20 done, 2 failed, 1 missing`."""
    counts = Counter(statuses)
    return ", ".join(f"{counts[status]} {status}" for status in CELL_STATUSES if counts[status]) or "no cells"
