"""Records: the small JSON files that stages leave, their ids, and writing them so that a crash loses nothing.

Torch-free. A record is `<sweep>/<stage>/<id>/record.json`; the id is a hash of the resolved scientific config and the
parent stage's id, so equal work has equal names and nothing is ever done twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.records.atomic import write_atomically
from ratplus.records.reading import StandIn, parse_json, read_text, whole_text
from ratplus.records.secrets import safe_environment, scrub, scrub_tree, scrub_words

FORMAT = 1
RECORD_FILE = "record.json"
# In order; not every cell has the stage `sft`.
STAGES = ("pretrain", "adapt", "sft", "evaluate")
TRAINING = STAGES[:-1]
LONGEST_NAME = 500  # characters of a metric's name
MOST_METRICS = 10_000


class Metric(TypedDict):
    """One result: its value, the value's standard error (None where there is none), and the number of items."""

    value: float
    stderr: float | None
    count: int


class Failure(TypedDict):
    """Why a stage failed: class of the exception or name of the signal, its text, and the traceback's last lines.

    `attempt` is 1 for the first failure in a row. `host` is the machine that it happened on.
    """

    type: str
    message: str
    traceback: list[str]
    host: NotRequired[str]
    attempt: NotRequired[int]


class Record(TypedDict):
    """What a stage leaves in its folder.

    Attributes:
        format: FORMAT of the version that wrote it.
        id: `stage_id` of stage, config and parent; the folder's name too.
        stage: one of STAGES.
        status: "done" or "failed".
        parent: id of the stage before; None for the first.
        config: what decides the result, plain.
        metrics: reproducible results by name.
        timing: wall times in seconds, memory in bytes, and what else differs from one machine to another.
        provenance: see `provenance`; {} where nobody said.
        error: None if done.
        weights_sha256: of the model.safetensors that a training stage made; records of before the key have none.
        checksum: SHA-256 of all the other keys.
    """

    format: int
    id: str
    stage: str
    status: str
    parent: str | None
    config: dict[str, Any]
    metrics: dict[str, Metric]
    timing: dict[str, Any]
    provenance: dict[str, Any]
    error: Failure | None
    weights_sha256: NotRequired[str]
    checksum: NotRequired[str]


class RecordError(ValueError):
    """A record or another file of a sweep folder is damaged or does not belong there."""


class ForeignRecord(RecordError):
    """A whole record that lies under another id than its own."""


def canonical_json(value) -> str:
    """One text per value: sorted keys, no spaces; NaN and infinities are refused, since JSON has none."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(plain: dict, prefix: str = "") -> dict:
    """Nested values by their whole keys, as users write them: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in plain.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def stage_id(stage: str, config: dict, parent: str | None) -> str:
    """Id of a stage: the first 12 hex digits of SHA-256 over (format, stage, config, parent)."""
    text = canonical_json({"format": FORMAT, "stage": stage, "config": config, "parent": parent})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_id(value: object) -> bool:
    """Whether something is the id of a stage, and so the name of a folder and of nothing else."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{12}", value) is not None


def _checksum(record: Record) -> str:
    body = {k: v for k, v in record.items() if k != "checksum"}
    # Metrics may be NaN in principle, so this text is only hashed, never parsed.
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(folder: Path, **parts) -> Record:
    """Write `<folder>/record.json` atomically and return it; `parts` are the arguments of `make_record`."""
    record = make_record(**parts)
    write_atomically(Path(folder) / RECORD_FILE, record_text(record))
    return record


def make_record(
    *,
    stage: str,
    config: dict,
    parent: str | None,
    status: str,
    metrics: dict[str, Metric],
    timing: dict[str, Any],
    provenance: dict[str, Any],
    error: Failure | None = None,
    weights_sha256: str | None = None,
) -> Record:
    """A record, as it will be read back.

    `metrics` holds reproducible results only; wall times and memory go to `timing`. Keys and tokens in `provenance` and
    `error` are masked (ratplus.records.secrets).
    """
    assert status in ("done", "failed"), status
    record: Record = {
        "format": FORMAT,
        "id": stage_id(stage, config, parent),
        "stage": stage,
        "status": status,
        "parent": parent,
        "config": config,
        "metrics": metrics,
        "timing": timing,
        "provenance": scrub_tree(provenance),
        "error": _scrubbed_error(error),
    }
    if weights_sha256 is not None:
        record["weights_sha256"] = weights_sha256
    # Through text and back, so that the checksum is of what a reader will see.
    record = json.loads(json.dumps(record))
    record["checksum"] = _checksum(record)
    return record


def with_checksum(record: Record) -> Record:
    """The record with the checksum of what it says now, as after something in it was masked."""
    return {**record, "checksum": _checksum(record)}


def record_text(record: Record) -> str:
    """What stands in the file of a record."""
    return json.dumps(record, indent=1) + "\n"


def _scrubbed_error(error: Failure | None) -> Failure | None:
    if error is None or not isinstance(error.get("traceback"), list):
        return scrub_tree(error)
    # As one text: a private key has several lines.
    lines = scrub("\n".join(error["traceback"])).split("\n") if error["traceback"] else []
    scrubbed: Failure = scrub_tree({**error, "traceback": []})
    scrubbed["traceback"] = lines
    return scrubbed


def read_record(folder: Path) -> Record | None:
    """The record of a stage folder, or None if there is none.

    Raises:
        RecordError: the file is truncated or altered, or of another format version.
        ForeignRecord: it is whole, but not of this folder.
    """
    path = Path(folder) / RECORD_FILE
    try:
        text = read_text(path, follow=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    try:
        record = parse_json(text)
        stored = record["checksum"]
        record["format"]
    except StandIn as error:
        raise RecordError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise RecordError(f"{path}: not a whole record (truncated or edited); delete it and run again") from None
    if record.get("format") != FORMAT:
        raise RecordError(f"{path}: record format {record.get('format')!r}; this version reads format {FORMAT}")
    if stored != _checksum(record):
        raise RecordError(f"{path}: checksum differs, so it was altered or damaged; delete it and run again")
    if problem := _misshapen(record):
        raise RecordError(f"{path}: not a record ({problem}); delete it and run again")
    try:
        expected = stage_id(record["stage"], record["config"], record["parent"])
    except ValueError:  # JSON of ours has no NaN, and so no id
        raise RecordError(f"{path}: not a record (its config holds NaN); delete it and run again") from None
    if not record["id"] == expected == path.parent.name:
        raise ForeignRecord(
            f"{path}: the record is of {record['stage']} {record['id']}, but lies in folder {path.parent.name} and its "
            f"config hashes to {expected}; it comes from another config: move it away and run again"
        )
    return whole_text(record, text)


def unfit_metric(record: Record) -> str:
    """`train_loss=nan`, where a done stage's record holds a loss that is not finite; empty where all is well.

    A loss over no items (count 0) is none, and counts as well.
    """
    if record["status"] != "done":
        return ""
    for name, metric in record["metrics"].items():
        if "loss" in name and metric["count"] and not math.isfinite(metric["value"]):
            return f"{name}={metric['value']}"
    return ""


def _is_number(value: object) -> bool:
    """Whether a value of JSON is a number that a float can hold: integers there have as many digits as they like."""
    return isinstance(value, (int, float)) and (isinstance(value, float) or abs(value) < 1 << 63)


def _misshapen(record: dict) -> str:
    """What is not as `Record` has it, so that no reader need expect anything else; empty if all is."""
    kinds = {
        "id": str, "stage": str, "status": str, "parent": (str, type(None)), "config": dict, "metrics": dict,
        "timing": dict, "provenance": dict, "error": (dict, type(None)),
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"{key} is a {type(record.get(key)).__name__}"
    if record["stage"] not in STAGES or record["status"] not in ("done", "failed"):
        return f"stage {record['stage']!r}, status {record['status']!r}"
    if len(record["metrics"]) > MOST_METRICS:
        return f"it has {len(record['metrics']):,} metrics"
    for name, metric in record["metrics"].items():
        if len(name) > LONGEST_NAME:
            return f"the name of a metric has {len(name):,} characters"
        facts = metric if isinstance(metric, dict) else {}
        if not _is_number(facts.get("value")) or not _is_number(facts.get("count")):
            return f"the metric {name!r} lacks a value or a count"
        if facts.get("stderr") is not None and not _is_number(facts["stderr"]):
            return f"the metric {name!r} has a standard error that is no number"
    if not _is_number(record["timing"].get("seconds", 0.0)):
        return "timing.seconds is no number"
    if problem := _odd_provenance(record["provenance"]):
        return f"provenance.{problem}"
    error = record["error"]
    if error is not None:
        lines = error.get("traceback") or []
        if not isinstance(lines, list):
            return "error.traceback is no list"
        texts = [*(error.get(key, "") for key in ("type", "message", "host")), *lines]
        if not all(isinstance(text, str) for text in texts):
            return "error holds what is no text"
        if not isinstance(error.get("attempt", 1), int):
            return "error.attempt is no whole number"
    return ""


def _odd_provenance(known: dict) -> str:
    git, tasks = known.get("git") or {}, known.get("tasks") or {}
    if not isinstance(git, dict) or (git and not isinstance(git.get("commit"), str)):
        return "git is no object with a commit"
    if not isinstance(tasks, dict) or not all(isinstance(facts, dict) for facts in tasks.values()):
        return "tasks is no object of objects"
    return ""


def provenance(save_diff_in: Path | None = None, **facts) -> dict:
    """Where a result comes from: code, package versions, host, environment, command line, and `facts` of the caller.

    Args:
        save_diff_in: sweep folder; of a dirty checkout its diff is kept there as `provenance/<sha256>.diff`.
    """
    git = code_version()
    if save_diff_in is not None and git is not None and git["dirty"]:
        _save_diff(Path(save_diff_in), git["diff_sha256"])
    return {
        **facts,
        "git": git,
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "environment": safe_environment(),
        "command": scrub_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "written_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


@lru_cache(maxsize=1)
def code_version() -> dict | None:
    """Commit, dirty flag and SHA-256 of `git diff HEAD` of the checkout that this code runs from.

    None for an installed wheel. Asked once a process, and best at its start: the files may change while it works.
    """
    try:
        root = _checkout()
        if root is None:
            return None
        diff = _run_git(root, *_DIFF)
        return {
            "commit": _run_git(root, "rev-parse", "HEAD").decode().strip(),
            "dirty": bool(diff),
            "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
        }
    except (OSError, subprocess.SubprocessError):
        return None


_DIFF = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")


def _save_diff(folder: Path, sha256: str) -> None:
    """Keep the diff of this hash, unless it is kept already or the files have changed since.

    The name is of the diff itself; in the file, keys and tokens are masked.
    """
    path = folder / "provenance" / f"{sha256}.diff"
    if path.exists():
        return
    root = _checkout()
    assert root is not None  # a diff has been taken of it
    diff = _run_git(root, *_DIFF)
    if hashlib.sha256(diff).hexdigest() == sha256:
        write_atomically(path, scrub(diff.decode(errors="surrogateescape")).encode(errors="surrogateescape"))


def _checkout() -> Path | None:
    """Root of the git checkout that this code lies in; not of somebody's that happens to hold our site-packages."""
    here = Path(__file__).resolve().parent
    # Asked of git rather than of a path that the next move of this file would make wrong without a word.
    if not _run_git(here, "ls-files", "--", Path(__file__).name):
        return None
    return Path(_run_git(here, "rev-parse", "--show-toplevel").decode().strip())


def _run_git(folder: Path, *words: str) -> bytes:
    # Whatever lies in the checkout's .git/config, no program of its own is started to look for changed files.
    done = subprocess.run(
        ["git", "-c", "core.fsmonitor=false", *words], cwd=folder, capture_output=True, check=True, timeout=10
    )
    return done.stdout


@lru_cache(maxsize=1)
def _versions() -> dict:
    found = {}
    for name in ("ratplus", "torch", "triton", "lightning", "hydra-core", "wandb", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
