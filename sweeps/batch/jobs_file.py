"""`jobs.json`: which batch jobs were submitted for which items of a sweep folder, and which of them are still there.

An item (launch.work.WorkItem) has the id of a stage. This file imports neither Hydra nor submitit, since `ratplus
status` reads jobs.json too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.records.atomic import write_atomically
from ratplus.records.reading import read_json
from ratplus.sweeps.batch import slurm
from ratplus.sweeps.batch.reasons import LiveJob

JOBS_FILE = "jobs.json"
FORMAT = 1


class SubmissionRow(TypedDict):
    """What `jobs.json` holds of one submission.

    Attributes:
        id: 32 hex digits, and the name of the folder of its job files below `logs/slurm`. Earlier versions had 8, and
            the files in `logs/slurm` itself.
        time: when it began, in ISO form; in earlier versions when an array had been submitted, to the second.
        cluster: slurm, or local for submitit's local executor.
        jobs: item id -> batch job id.
        launcher: keys of `launcher` that the jobs were submitted with; earlier versions did not note them.
    """

    id: str
    time: str
    cluster: str
    jobs: dict[str, str]
    launcher: NotRequired[dict[str, Any]]


class JobsUnknown(Exception):
    """The cluster does not say which jobs it has; the message is one line."""


def read_jobs(folder: Path) -> list[SubmissionRow]:
    """Read the submissions of a sweep folder, oldest first.

    Raises:
        JobsUnknown: the file is damaged.
    """
    path = Path(folder) / JOBS_FILE
    try:
        content = read_json(path, follow=False)
        if content["format"] != FORMAT:
            raise JobsUnknown(f"{path}: format {content['format']!r}; this version reads {FORMAT}")
        for row in content["submissions"]:
            # Ids become parts of paths and words of commands, and the file may be a stranger's.
            shapes = [("[0-9a-f]{8,32}", row["id"]), ("[a-z]+", row["cluster"])]
            shapes += [("[0-9a-f]{12}", item) for item in row["jobs"]]
            shapes += [(r"\d{1,20}(_\d{1,20})?", job) for job in row["jobs"].values()]
            wrong = next((text for shape, text in shapes if not re.fullmatch(shape, text, re.ASCII)), None)
            if wrong is not None:
                raise ValueError(f"{wrong!r} is no id")
            if not isinstance(row.get("launcher", {}), dict):
                raise TypeError("the launcher's keys are no mapping")
        return content["submissions"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobsUnknown(f"{path}: damaged ({error}); delete it if no job of it is queued or running") from None


def add_jobs(folder: Path, submission: SubmissionRow) -> None:
    """Add a submission, or replace the one with its id. The caller holds the folder's lock."""
    _write(folder, [*_others(folder, submission["id"]), submission])


def remove_jobs(folder: Path, identity: str) -> None:
    """Forget a submission, whose jobs were cancelled. The caller holds the folder's lock."""
    _write(folder, _others(folder, identity))


def _others(folder: Path, identity: str) -> list[SubmissionRow]:
    return [row for row in read_jobs(folder) if row["id"] != identity]


def _write(folder: Path, rows: list[SubmissionRow]) -> None:
    content = {"format": FORMAT, "submissions": rows}
    write_atomically(Path(folder) / JOBS_FILE, json.dumps(content, indent=1) + "\n")


def live_jobs(folder: Path, wanted: Callable[[str], bool] = lambda item: True) -> dict[str, LiveJob]:
    """Ask which jobs have not ended; returns {item id: its latest such job}.

    Args:
        wanted: which items are asked about. SLURM is not asked at all if no job of its is of one.

    Raises:
        JobsUnknown: jobs.json is damaged, or squeue is missing or fails.
    """
    found: dict[str, LiveJob] = {}
    rows = [(row, {item: job for item, job in row["jobs"].items() if wanted(item)}) for row in read_jobs(folder)]
    try:
        queue = slurm.queue() if any(row["cluster"] == "slurm" and jobs for row, jobs in rows) else {}
    except slurm.SlurmError as error:
        raise JobsUnknown(f"{folder / JOBS_FILE} names jobs of SLURM: {error}") from None
    for row, jobs in rows:
        for item, job in jobs.items():
            known = queue.get(job) if row["cluster"] == "slurm" else _process_state(job)
            if known is not None:
                found[item] = LiveJob(job, *known, row.get("launcher", {}))
    return found


def _process_state(pid: str) -> tuple[str, str] | None:
    """("running", "") or None for a job of submitit's local executor, whose id is the number of its process."""
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return ("running", "") if b"submitit" in command else None
