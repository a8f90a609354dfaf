"""How any stage is run: done, interrupted, failed or at work elsewhere; its record, its files, and where it ran."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratplus.config.cell import Config
from ratplus.records.atomic import remove_temporaries
from ratplus.records.curve import StageLog
from ratplus.records.lock import LOCK_FILE, FolderLock, LockLost, clear_lock
from ratplus.records.record import (
    ForeignRecord,
    Metric,
    Record,
    RecordError,
    provenance,
    read_record,
    unfit_metric,
    write_record,
)
from ratplus.stages.failures import failure_of
from ratplus.stages.peak_memory import peak_memory, reset_gpu_peak
from ratplus.stages.stage_ids import Stage
from ratplus.stages.store import claimed
from ratplus.training.errors import Interrupted

Progress = Callable[[str, int, int, dict], None]


@dataclass(frozen=True)
class Result:
    """What the work of a stage ends with, for its record.

    Attributes:
        metrics: reproducible results by name.
        timing: what differs from one machine to another.
        facts: for the provenance.
        weights_sha256: of the weights that a training stage wrote, as it wrote them; None if it wrote none.
    """

    metrics: dict[str, Metric]
    timing: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None


# Does a stage's work in its folder: (stage, folder, log, lock) -> Result.
Work = Callable[[Stage, Path, StageLog, FolderLock], Result]


@dataclass
class Surroundings:
    """What a stage runs in, none of which changes its result.

    Args:
        root: the sweep folder.
        make_mirror: (stage, sweep folder, config) -> stage_log.Mirror or None.
        progress: told (stage name, steps done, steps in all, numbers).
        print_line: told one-line messages (waiting for a lock, a damaged record).
    """

    root: Path
    make_mirror: Callable | None = None
    progress: Progress = lambda *_: None
    print_line: Callable[[str], None] = print


def run_stage(stage: Stage, surroundings: Surroundings, config: Config, work: Work) -> Record:
    """Do a stage unless it is done; returns its record. Failures are recorded, then raised."""
    folder = stage.folder(surroundings.root)
    record = _finished(folder, print_line=lambda _line: None)
    if record is not None:
        tidy(folder)
        return record
    with FolderLock(
        folder, on_wait=lambda who: surroundings.print_line(f"{stage.name} {stage.id}: waiting for {who}")
    ) as lock:
        record = _finished(folder, surroundings.print_line)  # somebody may have done it while we waited
        if record is not None:
            return record
        with claimed(config.run.store, stage.name, stage.id, folder, surroundings.print_line) as shared:
            if shared is not None:
                remove_temporaries(folder)
                record = shared.take(folder)
                if record is not None:
                    tidy(folder)
                    return record
            record = _work(stage, folder, surroundings, config, work, lock)
            if shared is not None:
                shared.give(folder, record)
            return record


def _finished(folder: Path, print_line: Callable[[str], None]) -> Record | None:
    try:
        record = read_record(folder)
    except ForeignRecord:
        raise
    except RecordError as error:
        print_line(f"{error}; doing this stage again")
        return None
    if record is not None and (unfit := unfit_metric(record)):
        print_line(f"{folder}: the record is of training that diverged ({unfit}); doing this stage again")
        return None
    return record if record is not None and record["status"] == "done" else None


def _work(
    stage: Stage, folder: Path, surroundings: Surroundings, config: Config, work: Work, lock: FolderLock
) -> Record:
    """Do the work and write its record, done or failed; only an interruption leaves none."""
    remove_temporaries(folder)
    mirror = surroundings.make_mirror(stage, surroundings.root, config) if surroundings.make_mirror else None
    device = training_device(config.run.accelerator)
    started = time.monotonic()
    reset_gpu_peak(device)

    def publish(facts: dict, **outcome) -> Record:
        lock.check()
        timing = {"seconds": time.monotonic() - started, **peak_memory(device), **outcome.pop("timing")}
        record = write_record(
            folder, stage=stage.name, config=stage.config, parent=stage.parent,
            provenance=provenance(surroundings.root if config.run.save_diff else None, **_hardware(config), **facts),
            timing=timing, **outcome,
        )  # fmt: skip
        if mirror is not None:
            mirror.finish(record)
        return record

    try:
        result = work(stage, folder, StageLog(folder, mirror), lock)
    except (Interrupted, KeyboardInterrupt, LockLost):
        if mirror is not None:
            mirror.abandon()
        raise
    except Exception as error:
        publish({}, status="failed", metrics={}, timing={}, error=failure_of(error, stage.name, config, folder))
        raise
    record = publish(
        result.facts, status="done", metrics=result.metrics, timing=result.timing, error=None,
        weights_sha256=result.weights_sha256,
    )  # fmt: skip
    tidy(folder)
    return record


def tidy(folder: Path) -> None:
    """Remove what a finished stage needs no more; only once its record stands, so that no kill costs a finished run."""
    # One look where nothing is left, as in nearly all stages of a large sweep that is only reported again.
    if not any(name.startswith((".", "training-", LOCK_FILE)) for name in os.listdir(folder)):
        return
    remove_temporaries(folder)
    for path in folder.glob("training-*.pt"):
        path.unlink(missing_ok=True)
    clear_lock(folder)  # left by a process that was killed between the record and the release


def _hardware(config: Config) -> dict:
    """What decides the last bits of a result beside code and config."""
    import torch

    device = training_device(config.run.accelerator)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device}: {name}",
        "threads": torch.get_num_threads(),
        "kernels": os.environ.get("RATPLUS_KERNELS"),
    }


def training_device(accelerator: str) -> str:
    """The torch device of `run.accelerator`."""
    import torch

    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator
