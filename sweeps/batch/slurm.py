"""Asking SLURM which jobs there are, how they ended and what it allows, and cancelling jobs. Each question is short."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from ratplus.records.lines import last_line, plain
from ratplus.sweeps.batch.environment import clean_environment

# Long enough for a busy controller. Nobody waits for longer: SLURM's commands would try for up to a minute.
SECONDS = 10.0
# After these states nothing more comes. A job that is preempted, or lost its node, and queues again is PENDING.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
# How many jobs are asked about one by one.
_MOST_ASKED = 50


class SlurmError(Exception):
    """SLURM does not answer, or refuses; the message is one line."""


@dataclass(frozen=True)
class End:
    """How a job ended, as SLURM tells.

    Attributes:
        state: such as FAILED, TIMEOUT or CANCELLED.
        code: exit code and signal, as `3:0`; empty where it is not known.
        host: the node of its batch script; empty where it is not known.
    """

    state: str
    code: str = ""
    host: str = ""

    def __str__(self) -> str:
        status, _, signal = self.code.partition(":")
        status = "" if self.code == "0:0" and self.state != "COMPLETED" else status  # cancelled before it ran
        how = f", signal {signal}" if signal not in ("", "0") else f", exit code {status}" if status else ""
        return f"{self.state}{how}" + (f", on {self.host}" if self.host else "")


def ask(*words: str) -> str:
    """What a command of SLURM prints.

    Raises:
        SlurmError: it is not there, fails, or takes longer than SECONDS.
    """
    done = _run(words)
    if done.returncode != 0:
        raise SlurmError(f"{words[0]}: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def _run(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    name = words[0]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(f"this machine has no {name}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name}: no answer within {SECONDS:g} s") from None
    except OSError as error:
        raise SlurmError(f"{name}: {error}") from None


def check_reachable() -> None:
    """Ask whether a controller is there, which is answered at once; other commands try again and again.

    Raises:
        SlurmError: none is there.
    """
    if shutil.which("scontrol") is None:
        return
    done = _run(("scontrol", "ping"))
    # The exit code is not 0 either where only one of two controllers is down.
    if done.returncode != 0 and not re.search(r"\bUP\b", done.stdout):
        said = plain(f"{done.stdout}\n{done.stderr}").strip().partition("\n")[0]
        raise SlurmError(f"SLURM's controller cannot be reached: {said or 'scontrol ping fails'}")


def queue() -> dict[str, tuple[str, str]]:
    """This user's jobs that have not ended: {id: ("queued" or "running", SLURM's reason)}.

    Each task of an array is a job of its own.

    Raises:
        SlurmError: there is no squeue, or it does not answer.
    """
    if shutil.which("squeue") is None:
        raise SlurmError("this machine has no squeue to ask about jobs of SLURM")
    check_reachable()
    # All states, since squeue by itself leaves suspended jobs out.
    text = ask(
        "squeue", "--noheader", "--array", "--states=all", "--user", str(os.getuid()), "--format", "%i %T %r"
    )  # fmt: skip
    found = {}
    for line in text.splitlines():
        words = line.split(maxsplit=2)
        if len(words) >= 2 and words[1] not in _ENDED:
            state = "queued" if words[1] in _QUEUED else "running"
            reason = words[2].strip() if len(words) == 3 and state == "queued" else ""
            found[words[0]] = (state, "" if reason in ("None", "(null)") else reason)
    return found


def ends(jobs: list[str]) -> dict[str, End]:
    """How jobs ended, of those that SLURM still knows; it forgets soon unless it keeps accounts."""
    found = {job: end for job in jobs[:_MOST_ASKED] if (end := _known_end(job)) is not None}
    rest = [job for job in jobs if job not in found]
    if rest and shutil.which("sacct") is not None:
        fields = "--format=JobID,State,ExitCode,NodeList"
        try:
            text = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(rest)}", fields)
        except SlurmError:
            return found
        for line in text.splitlines():
            job, state, code, host = [*line.split("|"), "", "", ""][:4]
            if job in rest and (state := state.partition(" ")[0]) in _ENDED:  # "CANCELLED by 1000"
                found[job] = End(state, code, host if host != "None assigned" else "")
    return found


def _known_end(job: str) -> End | None:
    """How a job ended, as the controller tells for some minutes; None if it does not."""
    array = job.partition("_")[0]
    try:
        lines = ask("scontrol", "--oneliner", "show", "job", job).splitlines()
    except SlurmError:
        if array == job:
            return None
        # Tasks that were cancelled before they started are one entry, under the array's own number.
        try:
            lines = ask("scontrol", "--oneliner", "show", "job", array).splitlines()
        except SlurmError:
            return None
        lines = [line for line in lines if line.startswith(f"JobId={array} ")]
    for line in lines:
        values = dict(re.findall(r"(?:^|\s)(JobState|ExitCode|BatchHost)=(\S+)", line))
        if values.get("JobState") in _ENDED:
            return End(values["JobState"], values.get("ExitCode", ""), values.get("BatchHost", ""))
    return None


def most_in_array() -> int | None:
    """How many tasks one job array may have; None if SLURM does not say."""
    try:
        text = ask("scontrol", "show", "config")
    except SlurmError:
        return None
    numbers = [int(n) for n in re.findall(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)]
    numbers += [int(n) for n in re.findall(r"\bmax_array_tasks=(\d+)", text)]
    # Tasks are numbered from 0, and the largest number is one less than MaxArraySize. 0 forbids arrays.
    return max(1, min(numbers)) if numbers else None


def cancel(jobs: list[str]) -> None:
    """Cancel jobs or whole arrays.

    Raises:
        SlurmError: scancel is missing or fails.
    """
    if jobs:
        ask("scancel", *jobs)
