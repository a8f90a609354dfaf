"""Why a job waits, as SLURM says it, in words that tell whether it can start at all and which key to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ratplus.records.lines import plain


class LiveJob(NamedTuple):
    """A batch job that has not ended.

    Attributes:
        id: the batch system's.
        state: queued or running.
        reason: why it is queued, in SLURM's word; may be empty.
        launcher: keys of `launcher` that it was submitted with; empty for submissions of earlier versions.
    """

    id: str
    state: str
    reason: str = ""
    launcher: Mapping[str, Any] = MappingProxyType({})

    @property
    def array(self) -> str:
        """Id of the array that it belongs to, or its own."""
        return self.id.partition("_")[0]


class Hopeless(NamedTuple):
    """A reason for which a job stays in the queue whatever else happens.

    Attributes:
        pattern: of SLURM's word.
        words: what it means.
        keys: of `launcher`, one of which has to change.
    """

    pattern: str
    words: str
    keys: tuple[str, ...]


# SLURM's limits of a group of jobs (QOSGrp..., AssocGrp...) are no such reason: they end when other jobs do.
_HOPELESS = (
    Hopeless(r"PartitionTimeLimit|\w+MaxWallDurationPerJob\w*", "more time than is allowed", ("minutes",)),
    Hopeless(
        r"PartitionNodeLimit|BadConstraints|(QOS|Assoc)Max\w+Per(Job|Node)\w*|\w+MinCpu\w*|\w+MinGRES\w*",
        "more than a job may have there, or a node has", ("cpus", "memory_gb", "gpus", "constraint", "partition"),
    ),
    # SLURM's word for all of these until it has looked closer.
    Hopeless(r"PartitionConfig", "more than the partition has", ("cpus", "memory_gb", "gpus", "minutes", "partition")),
    Hopeless(r"InvalidAccount|AccountNotAllowed|AssociationJobLimit", "this account may not", ("account", "partition")),
    Hopeless(r"InvalidQOS|QOSNotAllowed", "this quality of service may not be used", ("qos", "partition")),
    Hopeless(r"DependencyNeverSatisfied", "the job that it waits for will never have ended", ()),
    Hopeless(r"ReservationDeleted|ReservationInvalid", "the reservation is gone", ("sbatch",)),
)  # fmt: skip
_HELD = re.compile(r"JobHeld\w*|JobHoldMaxRequeue|.*\bheld\b.*", re.IGNORECASE)


def hopeless(reason: str) -> Hopeless | None:
    """What keeps a job from ever starting as it is; None for a reason that may pass."""
    return next((known for known in _HOPELESS if re.fullmatch(known.pattern, reason)), None)


def held(reason: str) -> bool:
    """Whether somebody has to release the job."""
    return _HELD.fullmatch(reason) is not None


def stuck(jobs: Iterable[LiveJob]) -> bool:
    """Whether none of the jobs can start, be it that they wait for jobs that cannot."""
    jobs = list(jobs)
    blocked = [job for job in jobs if hopeless(job.reason)]
    return bool(blocked) and all(job in blocked or job.reason == "Dependency" for job in jobs)


def queue_lines(jobs: Iterable[LiveJob]) -> list[str]:
    """Lines on jobs that are queued: why, and for those that cannot start, what to do."""
    groups: dict[str, list[LiveJob]] = {}
    for job in jobs:
        if job.state == "queued":
            groups.setdefault(job.reason, []).append(job)
    waiting, lines = [], []
    for reason, group in groups.items():
        arrays = " ".join(dict.fromkeys(job.array for job in group))
        count = f"{len(group)} job{'s' if len(group) > 1 else ''} ({arrays})"
        known = hopeless(reason)
        if known is not None:
            keys = " or ".join(f"launcher.{key}={_value(group[0], key)}" for key in known.keys)
            change = f"change {keys}: " if keys else ""
            lines.append(
                f"{count} can never start, SLURM says {plain(reason)} ({known.words}); {change}`scancel {arrays}`, "
                "then the same command again"
            )
        elif held(reason):
            are, them = ("are", "them") if len(group) > 1 else ("is", "it")
            lines.append(
                f"{count} {are} held, SLURM says {plain(reason)}; `scontrol release {arrays}` lets {them} start"
            )
        elif reason:
            waiting.append(f"{len(group)} {plain(reason)}")
    return ([f"queued, with SLURM's reason: {', '.join(waiting)}"] if waiting else []) + lines


def _value(job: LiveJob, key: str) -> str:
    value = job.launcher.get(key)
    return "null" if value is None else plain(str(value))


def changed_keys_lines(jobs: Iterable[LiveJob], now: dict[str, Any]) -> list[str]:
    """Lines on jobs that were submitted with other keys of `launcher` than a call gives now."""
    groups: dict[str, list[LiveJob]] = {}
    for job in jobs:
        other = [key for key, value in job.launcher.items() if key in now and now[key] != value]
        if other:
            before = " ".join(f"launcher.{key}={_value(job, key)}" for key in other)
            after = " ".join(f"launcher.{key}={'null' if now[key] is None else now[key]}" for key in other)
            groups.setdefault(f"with {before} and stay so (given now: {after})", []).append(job)
    lines = []
    for words, group in groups.items():
        arrays = " ".join(dict.fromkeys(job.array for job in group))
        are = "jobs are" if len(group) > 1 else "job is"
        lines.append(
            f"{len(group)} {are} queued or running {plain(words)}; to change that: `scancel {arrays}`, then the same "
            "command again"
        )
    return lines
