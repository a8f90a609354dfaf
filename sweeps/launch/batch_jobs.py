"""`jobs.json`: which batch jobs were submitted for which items of a sweep folder, and which of them are still there.

An item (launch.work.WorkItem) has the id of a stage. This file imports neither Hydra nor submitit, since `ratplus
status` reads jobs.json too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

from ratplus.records.atomic import write_atomically
from ratplus.records.lines import last_line
from ratplus.records.reading import read_json

JOBS_FILE = "jobs.json"
FORMAT = 1


class SubmissionRow(TypedDict):
    """What `jobs.json` holds of one submission.

    Attributes:
        time: when it was made, in ISO form.
        cluster: slurm, or local for submitit's local executor.
        jobs: item id -> batch job id.
    """

    id: str
    time: str
    cluster: str
    jobs: dict[str, str]


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
            texts = [row["id"], row["cluster"], *row["jobs"], *row["jobs"].values()]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a submission holds what is no text")
        return content["submissions"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobsUnknown(f"{path}: damaged ({error}); delete it if no job of it is queued or running") from None


def add_jobs(folder: Path, submission: SubmissionRow) -> None:
    """Add a submission, or replace the one with its id. The caller holds the folder's lock."""
    others = [s for s in read_jobs(folder) if s["id"] != submission["id"]]
    content = {"format": FORMAT, "submissions": [*others, submission]}
    write_atomically(Path(folder) / JOBS_FILE, json.dumps(content, indent=1) + "\n")


def live_jobs(folder: Path) -> dict[str, tuple[str, str]]:
    """Ask which jobs have not ended; returns {item id: (id of its latest batch job, "queued" or "running")}.

    Raises:
        JobsUnknown: jobs.json is damaged, or squeue is missing or fails.
    """
    found: dict[str, tuple[str, str]] = {}
    submissions = read_jobs(folder)
    queue = _squeue(folder) if any(s["cluster"] == "slurm" and s["jobs"] for s in submissions) else {}
    for submission in submissions:
        for item, job in submission["jobs"].items():
            state = queue.get(job) if submission["cluster"] == "slurm" else _process_state(job)
            if state is not None:
                found[item] = (job, state)
    return found


def _squeue(folder: Path) -> dict[str, str]:
    """Ask SLURM for the state of this user's jobs, by id; each task of an array has its own."""
    if shutil.which("squeue") is None:
        raise JobsUnknown(f"{folder / JOBS_FILE} names jobs of SLURM, and this machine has no squeue to ask about them")
    command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobsUnknown(f"squeue: {error}") from None
    if done.returncode != 0:
        raise JobsUnknown(f"squeue: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    pairs = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 2]
    return {job: "running" if state in ("RUNNING", "COMPLETING") else "queued" for job, state in pairs}


def _process_state(pid: str) -> str | None:
    """ "running" or None for a job of submitit's local executor, whose id is the number of its process."""
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return "running" if b"submitit" in command else None
