"""Who a process is, so that another one can tell later whether it still runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TypedDict

from ratplus.pattern import is_whole

_LONGEST_HOST = 255


class Identity(TypedDict):
    """A process of some host.

    Attributes:
        space: tells boots and containers of one host name apart, whose process numbers mean different processes; None
            where the system does not say.
        started: start time in clock ticks since boot (Linux), which tells a reused number; None elsewhere.
    """

    host: str
    space: str | None
    pid: int
    started: str | None


def identity() -> Identity:
    """Of this process."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "space": _space(), "pid": pid, "started": _start_time(pid)}


def is_identity(value: object) -> bool:
    """Whether something that was read from a file can be asked about."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("host", ""), str)
        and value.get("host", "").isprintable()
        and len(value.get("host", "")) <= _LONGEST_HOST
        and is_whole(value.get("pid", 1))
        and 0 < value.get("pid", 1) < 1 << 31
    )


def in_sight(process: dict) -> bool:
    """Whether a process, if it runs, is one that this process could see."""
    return (process.get("host"), process.get("space")) == (socket.gethostname(), _space())


def gone(process: dict) -> bool:
    """True if it was a process that we could see if it still ran, and it doesn't."""
    if not in_sight(process):
        return False
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError, TypeError):
        return False
    # The number may belong to a new process by now.
    return process.get("started") != _start_time(process["pid"])


def _space() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *facts = stat.rpartition(")")[2].split()
    # A zombie has ended: only its parent has not asked for its exit code yet.
    return None if state == "Z" else facts[18]
