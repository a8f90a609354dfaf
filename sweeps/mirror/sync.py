"""`ratplus sync`: W&B runs rebuilt from a sweep's records, and sent where they are missing or differ.

What was sent where is kept in `<sweep>/wandb-synced.json`: {server/entity/project: {run id: checksum of the run}}. A
run that changed since (a stage finished, was retried, or its record now says something else) is sent again, whole; one
that the server lost is sent again as well; a workspace that was made there is brought up to date. Nothing is read from
W&B's own local files.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ratplus.config.run import LoggerSection
from ratplus.records.lines import plain
from ratplus.records.lock import FolderLock
from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror.ledger import read_ledger, remember
from ratplus.sweeps.mirror.runs import RunSpec, report_run, sweep_runs
from ratplus.sweeps.mirror.server import Server, find_server, reason_of, server_url, target_name


def sync(
    folder: Path, entity: str | None = None, project: str | None = None, *, dry_run: bool = False,
    offline: bool = False, checkpoints: bool = False, workspace: bool = False,
) -> None:  # fmt: skip
    """Send what W&B lacks of a sweep folder, and print what was sent.

    Args:
        entity, project: where to; None takes the account's own and `ratplus`. What the folder says of this
            (`logger.entity`, `logger.project`) is only told: somebody else may have written it.
        dry_run: only list what would be sent.
        offline: write offline runs below `<folder>/wandb` instead.
        checkpoints: also send each trained model as an artifact.
        workspace: also make a workspace of panels.

    Raises:
        RecordError: no sweep folder.
        UsageError: no key, no network, or a server that refuses; what was sent until then is kept.
    """
    if not offline:
        _tell_other_place(folder, entity, project)
    project = project or LoggerSection().project
    if not dry_run:
        _fresh_report(folder)
    runs, problems = sweep_runs(folder, True if checkpoints else None)
    report = report_run(folder, runs)
    runs += [report] if report else []
    for line in problems:
        print(f"left out: {line}", file=sys.stderr)
    if dry_run:
        _list(folder, runs, offline, entity, project)
        return
    server = None if offline else find_server()
    with FolderLock(folder / "wandb", on_wait=lambda who: print(f"waiting for {who}", file=sys.stderr)):
        if server is None:
            _offline(folder, runs, entity, project)
        else:
            _online(folder, runs, entity, project, server)
        if workspace:
            from ratplus.sweeps.mirror.workspace import publish

            print(publish(folder, entity, project, report, server))


def _tell_other_place(folder: Path, entity: str | None, project: str | None) -> None:
    """Say with which options the runs would go where the sweep was made to send them, if that is elsewhere."""
    cells = read_manifest(folder)["cells"]
    logger = cells[-1]["run"].get("logger", {}) if cells else {}
    default = LoggerSection()
    words = [
        f"--{key} {shlex.quote(str(logger[key]))}"
        for key, given in (("entity", entity), ("project", project))
        if given is None and logger.get(key) not in (None, getattr(default, key))
    ]
    if words:
        line = f"{folder} was made to send to another place; to send there, add {' '.join(words)}"
        print(plain(line), file=sys.stderr)


def _fresh_report(folder: Path) -> None:
    """Write tables and figures again if a record is newer than they are; a sweep without any record gets none."""
    records = [p.stat().st_mtime for p in folder.glob("*/*/record.json")]
    page = folder / "report" / "index.html"  # the file that a report writes last
    if records and (not page.exists() or page.stat().st_mtime < max(records)):
        from ratplus.analysis.report import report
        from ratplus.sweeps.define.reproduce import reproducer

        report(folder, reproduce=reproducer(len(read_manifest(folder)["cells"])))


# ---- the three ways -----------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """What a place lacks of a sweep's runs.

    Attributes:
        send: runs that it lacks ("new") or has with other content ("changed").
        same: how many runs it has already.
        running: how many belong to stages that still run, and are left for later.
    """

    send: list[tuple[RunSpec, str]]
    same: int
    running: int

    @property
    def rest(self) -> str:
        parts = [f"{self.same} up to date"] if self.same else []
        parts += [f"{self.running} still running, left for later"] if self.running else []
        return "".join(f"; {part}" for part in parts)


def _compare(runs: list[RunSpec], known: dict[str, str]) -> Difference:
    difference = Difference([], 0, 0)
    for run in runs:
        if run.exit_code is None:
            difference.running += 1
        elif run.id not in known:
            difference.send.append((run, "new"))
        elif known[run.id] != run.checksum():
            difference.send.append((run, "changed"))
        else:
            difference.same += 1
    return difference


def _list(folder: Path, runs: list[RunSpec], offline: bool, entity: str | None, project: str) -> None:
    from ratplus.sweeps.mirror.write import offline_checksums

    target = "offline" if offline else target_name(server_url(), entity, project)
    known = offline_checksums(folder) if offline else read_ledger(folder)["targets"].get(target, {})
    difference = _compare(runs, known)
    for run, why in difference.send:
        print(plain(f"{why:<8} {run.job_type:<9} {run.id}  {run.name}  ({len(run.rows)} rows, {_ending(run)})"))
    where = f"written to {folder / 'wandb'}" if offline else f"sent to {target}"
    print(f"{len(difference.send)} runs would be {where}{difference.rest}")


def _ending(run: RunSpec) -> str:
    return {0: "done", 1: "failed"}.get(run.exit_code, "interrupted")


def _offline(folder: Path, runs: list[RunSpec], entity: str | None, project: str) -> None:
    from ratplus.sweeps.mirror.write import offline_checksums, write_run

    difference = _compare(runs, offline_checksums(folder))
    for run in _with_progress(difference):
        try:
            write_run(run, "offline", folder, project, entity)
        except (OSError, ValueError):  # told as everywhere
            raise
        except Exception as error:  # W&B's own, such as of a project that it has no name like
            raise UsageError(f"run {run.id} could not be written ({reason_of(error)})") from None
    print(f"{len(difference.send)} runs written to {folder / 'wandb'}{difference.rest}")


def _online(folder: Path, runs: list[RunSpec], entity: str | None, project: str, server: Server) -> None:
    import tempfile

    from ratplus.sweeps.mirror.write import write_run

    target = server.target(entity, project)
    known = read_ledger(folder)["targets"].get(target, {})
    existing = server.existing(entity, project, list(known)) if known else set()
    difference = _compare(runs, {name: checksum for name, checksum in known.items() if name in existing})
    sent = 0
    for run in _with_progress(difference):
        try:
            with tempfile.TemporaryDirectory(prefix="ratplus-wandb-") as place:
                write_run(run, "online", Path(place), project, entity)
        except Exception as error:
            raise UsageError(
                f"{target}: run {run.id} could not be sent ({reason_of(error)}); {sent} of {len(difference.send)} "
                "were, run the same command again for the rest"
            ) from None
        remember(folder, target, run, locked=True)
        sent += 1
    print(f"{sent} runs sent to {target}{difference.rest}")


def _with_progress(difference: Difference) -> Iterator[RunSpec]:
    """The runs to send; on a terminal, a line shows how many were."""
    for number, (run, _) in enumerate(difference.send, start=1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(difference.send)} {run.job_type} {run.id}", end="", file=sys.stderr, flush=True)
        yield run
    if sys.stderr.isatty() and difference.send:
        print(file=sys.stderr)
