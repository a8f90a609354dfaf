"""What stands and what is missing in a sweep folder, from its manifest, records, locks and progress files alone.

Torch-free and read-only, so it can be asked of a sweep at work, from any machine that sees the folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ratplus.records.manifest import read_manifest
from ratplus.records.record import STAGES
from ratplus.records.status import State, cell_state, stage_state
from ratplus.sweeps.launch.jobs import JobsUnknown, live_jobs

# The statuses of a cell, in the order in which they are counted. A stage (ratplus.records.status) is never queued.
CELL_STATUSES = ("done", "running", "queued", "failed", "missing", "damaged")
FORMAT = 1
# Finished cells whose timing is read for the time left; more would tell no more.
_SAMPLE = 200


@dataclass
class SweepView:
    """A look at a sweep folder.

    Attributes:
        cells: one a cell of the manifest, with keys id, model, label, seed, axes, status (one of CELL_STATUSES), stage
            (at work or failed; else empty), error (one line), attempt (of the failure; else null), job (of a batch
            system; else null), progress (of a running stage: stage, done, total, maybe loss; else null).
        counts: cells by status.
        running_stages: stages at work now; several cells may wait for one.
        eta_seconds: time left at as many at once as now; None if nothing runs or no cell has finished yet.
        notes: lines on what could not be found out.

    Raises:
        UsageError: not a sweep folder.
    """

    folder: Path
    cells: list[dict] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    running_stages: int = 0
    eta_seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._look = lru_cache(maxsize=None)(stage_state)
        manifest = read_manifest(self.folder)["cells"]
        try:
            jobs = live_jobs(self.folder)
        except JobsUnknown as error:
            jobs = {}
            self.notes.append(f"queued jobs are not known: {error}")
        news = self._news()
        self.cells = [self._cell(entry, jobs, news) for entry in manifest]
        counts = Counter(cell["status"] for cell in self.cells)
        self.counts = {status: counts[status] for status in CELL_STATUSES if counts[status]}
        self.eta_seconds = self._eta(manifest)

    @property
    def bad(self) -> bool:
        return bool(self.counts.get("failed") or self.counts.get("damaged"))

    @property
    def settled(self) -> bool:
        """True if every cell is done or has failed."""
        return not any(self.counts.get(status) for status in ("running", "queued", "missing"))

    def _cell(self, entry: dict, jobs: dict, news: dict) -> dict:
        state = cell_state(self.folder, entry["stages"], look=self._look)
        status, stage, error = state.status, state.stage, state.error
        attempt = progress = None
        if status == "failed":
            attempt = (state.record["error"] or {}).get("attempt")
        ids = [entry["stages"][s] for s in reversed(STAGES) if s in entry["stages"]]
        job = next((jobs[i] for i in ids if i in jobs), None)
        if job is not None and status in ("failed", "damaged", "missing"):
            # Submitted again since.
            status, stage, error, attempt = job[1], "", "", None
        if status == "running" and stage:
            told = next((news[i] for i in ids if i in news and news[i].get("stage") == stage), None)
            progress = told and {k: told[k] for k in ("stage", "done", "total", "loss") if k in told}
        known = {k: entry[k] for k in ("id", "model", "label", "seed", "axes")}
        return known | {
            "status": status,
            "stage": "" if status == "done" else stage,
            "error": error,
            "attempt": attempt,
            "job": job and job[0],
            "progress": progress,
        }

    def _news(self) -> dict[str, dict]:
        """What workers last said, by the id of their task."""
        found = {}
        for path in (self.folder / "logs").glob("*.progress.json"):
            try:
                news = json.loads(path.read_text())
                if isinstance(news, dict) and {"stage", "done", "total"} <= news.keys():
                    found[path.name.partition(".")[0]] = news
            except (OSError, ValueError):
                continue  # just ended, or a killed writer's
        return found

    def _eta(self, manifest: list[dict]) -> float | None:
        """Seconds left, if all that is left takes as long as what is finished did and as many run at once as now."""
        running: dict[tuple[str, str], float] = {}  # stage and id -> fraction that is left
        left_cells, left_first = 0, set()
        for entry, cell in zip(manifest, self.cells):
            if cell["status"] not in ("running", "queued", "missing"):
                continue
            left_cells += 1
            if self._state(entry, "pretrain").status not in ("done", "failed"):
                left_first.add(entry["stages"]["pretrain"])
            if cell["stage"]:
                told = cell["progress"]
                left = 1 - told["done"] / told["total"] if told and told["total"] else 1.0
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
        own = STAGES[1:]  # of each cell
        total = left_cells * sum(seconds[stage] for stage in own) + len(left_first) * seconds["pretrain"]
        for (stage, _), left in running.items():
            behind = sum(seconds[s] for s in own[: own.index(stage)]) if stage in own else 0.0  # done already
            total -= (1 - left) * seconds[stage] + behind
        return max(total, 0.0) / len(running)

    def _state(self, entry: dict, stage: str) -> State:
        return self._look(self.folder / stage / entry["stages"][stage])

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
    """Mean seconds of finished stages; 0 if none is there, as when records were copied without their parents."""
    seconds = [s.record["timing"].get("seconds", 0.0) for s in states if s.status == "done"]
    return sum(seconds) / len(seconds) if seconds else 0.0


def summary(statuses: Iterable[str]) -> str:
    """`20 done, 2 failed, 1 missing`, of the statuses of cells."""
    counts = Counter(statuses)
    return ", ".join(f"{counts[status]} {status}" for status in CELL_STATUSES if counts[status]) or "no cells"
