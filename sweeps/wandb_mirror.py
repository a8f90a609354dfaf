"""W&B as a mirror of records: one run a stage, grouped by sweep, id = stage id; offline unless asked otherwise.

A mirror never decides anything and never breaks a stage: if W&B fails, it says so once and falls silent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ratplus.config import Config


def make_mirror(stage, folder: Path, config: Config) -> WandbMirror | None:
    """The mirror of a stage (ratplus.stages.Stage), or None if W&B can't start."""
    try:
        return WandbMirror(stage, folder, config)
    except Exception as error:
        _warn(error)
        return None


class WandbMirror:
    """Logs a stage's curve with its own absolute `step`, so that the segments of a resumed stage line up."""

    def __init__(self, stage, folder: Path, config: Config):
        # Before the import: W&B would otherwise print hints and look for a server.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.logger.project,
            entity=config.logger.entity,
            mode=config.logger.wandb,
            dir=str(folder),
            group=folder.name,
            job_type=stage.name,
            id=stage.id,
            name=f"{config.model.name} {config.patterns.label} {stage.name}"
            if stage.name != "pretrain"
            else f"{config.model.name} pretrain",
            tags=[config.model.name, stage.name],
            config={**stage.config, "parent": stage.parent},
            resume="allow" if config.logger.wandb == "online" else None,
            reinit="finish_previous",
            settings=wandb.Settings(x_disable_stats=True, console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        self._broken = False

    def log(self, step: int, values: dict) -> None:
        self._try(lambda: self._run.log({"step": step, **values}))

    def finish(self, record: dict) -> None:
        """Summary of a finished or failed stage; ends the run."""
        for name, metric in record["metrics"].items():
            self._try(lambda name=name, metric=metric: self._run.summary.update({name: metric["value"]}))
        self._try(lambda: self._run.finish(exit_code=0 if record["status"] == "done" else 1))

    def abandon(self) -> None:
        """End of this process's part of a stage that will be continued."""
        self._try(lambda: self._run.finish(exit_code=255))

    def _try(self, action) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:
            self._broken = True
            _warn(error)


def _warn(error: Exception) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"W&B mirror is off for this stage ({reason}); records and CSV are not affected", file=sys.stderr, flush=True)
