"""A mirror of running stages in W&B: one run a stage, grouped by sweep, with the stage's id; offline by default.

Online, the curve is sent as it grows, and a stage that was interrupted continues its run. Offline, a stage's run is
written when it ends, from its record and its curve. So there is one offline run a stage, each step stands in it once
however often the stage was interrupted, and training never waits for W&B. A stage that was killed and not finished yet
can be seen with `ratplus sync --offline`.

A mirror never decides anything and never breaks a stage: if W&B fails, it says so once and does nothing more.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.config.run import LoggerSection
from ratplus.records.record import Record
from ratplus.records.secrets import scrub
from ratplus.sweeps.mirror.runs import RunSpec, add_result, report_run, row_of, stage_head, sweep_runs

_LONGEST_REASON = 500
# Once W&B has failed in this process, its other stages don't wait for it again.
_failed = False


def make_mirror(stage, folder: Path, config: Config) -> OfflineMirror | LiveMirror | None:
    """Make the mirror of a stage (ratplus.stages.stage_ids.Stage); None if W&B can't start."""
    if _failed or _switched_off():
        return None
    try:
        logger = config.logger
        head = stage_head(stage.name, stage.id, stage.config, stage.parent, asdict(config), folder.name, logger.tags)
        kind = LiveMirror if logger.wandb == "online" else OfflineMirror
        return kind(head, folder, stage.folder(folder), logger)
    except Exception as error:
        _give_up(error, folder)
        return None


class OfflineMirror:
    """Writes the run of a stage when it ends."""

    def __init__(self, head: RunSpec, sweep: Path, own: Path, logger: LoggerSection):
        self._head, self._sweep, self._own, self._logger = head, sweep, own, logger

    def log(self, step: int, values: dict) -> None:
        """Do nothing: `finish` reads the whole curve from its file."""

    def finish(self, record: Record) -> None:
        try:
            from ratplus.sweeps.mirror.write import write_run

            run = add_result(self._head, self._own, record, self._logger.checkpoints)
            write_run(run, "offline", self._sweep, self._logger.project, self._logger.entity)
        except Exception as error:
            _give_up(error, self._sweep)

    def abandon(self) -> None:
        """Do nothing: the process that continues the stage writes the whole run."""


class LiveMirror:
    """Sends a stage's curve to a server as it grows.

    W&B's own step is the absolute step too. So where a stage was killed after its last checkpoint, the rows that it
    logs again are dropped by W&B rather than doubled: they are the same, bit for bit.
    """

    def __init__(self, head: RunSpec, sweep: Path, own: Path, logger: LoggerSection):
        from ratplus.sweeps.mirror.server import find_server
        from ratplus.sweeps.mirror.write import start_run

        self._head, self._sweep, self._own, self._logger = head, sweep, own, logger
        self._server = find_server()
        self._run = start_run(
            head, "online", sweep, logger.project, logger.entity, resume="allow", models=logger.checkpoints
        )
        self._resumed = self._run.starting_step > 0
        self._broken = False

    def log(self, step: int, values: dict) -> None:
        self._try(lambda: self._run.log(row_of(self._head.job_type, {"step": step, **values}), step=step))

    def finish(self, record: Record) -> None:
        """Send the summary of a finished or failed stage, and end the run."""
        self._try(lambda: self._finish(record))

    def _finish(self, record: Record) -> None:
        from ratplus.sweeps.mirror.ledger import remember
        from ratplus.sweeps.mirror.write import add_outcome

        run = add_result(self._head, self._own, record, self._logger.checkpoints)
        add_outcome(self._run, run, self._sweep)
        self._run.finish(exit_code=run.exit_code)
        # A resumed run may lack steps, so `ratplus sync` has to compare it.
        if not self._resumed:
            remember(self._sweep, self._server.target(self._logger.entity, self._logger.project), run)

    def abandon(self) -> None:
        """End this process's part of a stage that will be continued."""
        self._try(lambda: (self._run.mark_preempting(), self._run.finish(exit_code=255)))

    def _try(self, action) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:
            self._broken = True
            _give_up(error, self._sweep)


def mirror_report(folder: Path, logger: LoggerSection) -> None:
    """Send the tables and figures that a report has written, as a run of their own."""
    if _switched_off():
        return
    try:
        from ratplus.sweeps.mirror.ledger import remember
        from ratplus.sweeps.mirror.server import find_server
        from ratplus.sweeps.mirror.write import offline_checksums, write_run

        run = report_run(folder, sweep_runs(folder)[0])
        if run is None or offline_checksums(folder).get(run.id) == run.checksum():
            return
        server = find_server() if logger.wandb == "online" else None
        write_run(run, logger.wandb, folder, logger.project, logger.entity)
        if server is not None:
            remember(folder, server.target(logger.entity, logger.project), run)
    except Exception as error:
        _give_up(error, folder)


def warn_without_key(folder: Path) -> None:
    """Say before a sweep starts, rather than in each worker's log, that W&B cannot show it live."""
    if _switched_off():
        return
    from ratplus.sweeps.mirror.server import check_key

    try:
        check_key()
    except ValueError as error:
        _give_up(error, folder)


def _switched_off() -> bool:
    """Whether the user's environment says that W&B is not wanted; told once in this process."""
    global _failed
    mode, off = os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_DISABLED", "")
    if mode.strip().lower() == "disabled":
        said = f"WANDB_MODE={mode}"
    elif off.strip().lower() in ("true", "1", "yes", "on", "t", "y"):
        said = f"WANDB_DISABLED={off}"
    else:
        return False
    if not _failed:
        print(f"W&B mirror is off ({said}); records and curves are not affected", file=sys.stderr, flush=True)
    _failed = True
    return True


def _give_up(error: Exception, sweep: Path) -> None:
    global _failed
    if _failed:
        return
    _failed = True
    # Cut only once it is masked: `scrub` would not know a part of a secret.
    lines = str(error).strip().split("\n")
    # The first line of a setting that W&B refuses does not say which one it is.
    text = " ".join(lines if "validation error" in lines[0] else lines[:1])
    reason = scrub(" ".join(text.split()))[:_LONGEST_REASON] or type(error).__name__
    print(
        f"W&B mirror is off from here on ({reason}); records and curves are not affected, and "
        f"`ratplus sync {shlex.quote(str(sweep))}` can send them later",
        file=sys.stderr,
        flush=True,
    )
