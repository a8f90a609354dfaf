"""The three stages: pretrain, adapt, evaluate. Each is a function of its config, and idempotent.

Done: the stored record is returned. Interrupted: training continues from its last state. Failed: tried again. At work
in another process: waited for. A stage makes sure of its parent first, so `evaluate` alone does all three.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ratplus.config import Config, RecipeSection
from ratplus.data.corpus import Corpus, open_corpus
from ratplus.data.sources import prepare
from ratplus.lock import FolderLock, LockLost
from ratplus.record import (
    ForeignRecord,
    RecordError,
    provenance,
    read_record,
    remove_temporaries,
    stage_id,
    write_record,
)

Progress = Callable[[str, int, int, dict], None]


@dataclass
class Stage:
    """One stage of a cell: its name, the config that decides its result, and its parent's id."""

    name: str
    config: dict
    parent: str | None

    @property
    def id(self) -> str:
        return stage_id(self.name, self.config, self.parent)

    def folder(self, root: Path) -> Path:
        return Path(root) / self.name / self.id


@dataclass
class Plan:
    """The stages of one cell, parent first; torch-free, so that a sweep can be listed in no time."""

    pretrain: Stage
    adapt: Stage
    evaluate: Stage
    vocab_size: int

    def __iter__(self):
        return iter((self.pretrain, self.adapt, self.evaluate))


@dataclass
class Surroundings:
    """What a stage runs in, none of which changes its result.

    Args:
        root: the sweep folder.
        make_mirror: (stage, sweep folder, config) -> stage_log.Mirror or None.
        progress: told (stage name, steps done, steps in all, numbers).
        say: told one-line messages (waiting for a lock, a damaged record).
    """

    root: Path
    make_mirror: Callable | None = None
    progress: Progress = lambda *_: None
    say: Callable[[str], None] = print


def plan(config: Config, corpus_identity: dict, text_vocab: int) -> Plan:
    """The stages of a cell with their ids. Only what decides results enters: no paths, devices or worker counts."""
    recall = config.data.recall
    data = {**corpus_identity, "recall": asdict(recall) if recall.fraction > 0 else None}
    vocab = text_vocab
    if recall.fraction > 0:
        vocab += 1 + recall.keys * recall.values + recall.keys + recall.values
    shape = {k: v for k, v in asdict(config.model).items() if k != "name"} | {"vocab_size": vocab}
    common = {"data": data, "context": config.train.context, "seed": config.seed}
    patterns = config.patterns.to_dict()

    def recipe(section: RecipeSection) -> dict:
        plain = asdict(section) | {"micro_batch": section.micro_batch or section.batch}
        if not section.arl:
            plain = {k: v for k, v in plain.items() if not k.startswith("arl_")}
        return plain | {"precision": config.train.precision}

    pretrain = Stage("pretrain", {**common, "model": shape, "recipe": recipe(config.train.pretrain)}, None)
    adapt = Stage("adapt", {**common, "pattern": patterns, "recipe": recipe(config.train.adapt)}, parent=pretrain.id)
    rows = {"text_rows": config.eval.text_rows, "recall_rows": config.eval.recall_rows}
    evaluate = Stage("evaluate", {**common, "pattern": patterns, "eval": rows}, parent=adapt.id)
    return Plan(pretrain, adapt, evaluate, vocab)


class Cell:
    """One cell of a sweep: `Cell(config, surroundings).run("evaluate")` makes sure of its three stages."""

    def __init__(self, config: Config, around: Surroundings):
        self.config, self.around = config, around
        self.corpus: Corpus = open_corpus(prepare(config.data))
        self.plan = plan(config, self.corpus.identity, self.corpus.vocab_size)

    def run(self, last: str = "evaluate") -> dict:
        """Run the stages up to `last`; returns its record.

        Raises:
            RecordError, CheckpointError, ...: the stage's own failure, after it has been recorded.
            ratplus.training.Interrupted: on SIGTERM or Ctrl-C, with the training state saved.
        """
        work = {"pretrain": self._pretrain, "adapt": self._adapt, "evaluate": self._evaluate}
        record = None
        for stage in self.plan:
            record = run_stage(stage, self.around, self.config, work[stage.name])
            if stage.name == last:
                break
        return record

    # ---- the work of each stage: (stage, folder, log, lock) -> (metrics, timing) ----

    def _batches(self):
        from ratplus.data.batches import Batches

        return Batches.of(self.config, self.corpus)

    def _model_config(self):
        return self.config.model.build(self.plan.vocab_size, self.config.train.context)

    def _pretrain(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        from ratplus.model import RATPlus
        from ratplus.pattern import Pattern

        model = RATPlus(self._model_config())
        model.reset_parameters(self.config.seed, self.config.model.init_std)
        r = self.config.train.pretrain
        arl = Pattern(r.arl_dilation, r.arl_window, r.arl_sinks) if r.arl else None
        return self._train(model, r, stage, folder, log, lock, patterns=None, arl=arl)

    def _adapt(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        model = self._load(self.plan.pretrain)
        return self._train(model, self.config.train.adapt, stage, folder, log, lock, self.config.patterns, arl=None)

    def _train(self, model, recipe, stage: Stage, folder: Path, log, lock, patterns, arl) -> tuple[dict, dict]:
        from ratplus import checkpoint, training
        from ratplus.evaluation.metrics import metric

        outcome = training.train(
            model, recipe, self._batches(), folder, purpose=stage.name, stage_id=stage.id, run=self.config.run,
            precision=self.config.train.precision, patterns=patterns, arl=arl, log=log, before_saving=lock.check,
            progress=lambda done, total, numbers: self.around.progress(stage.name, done, total, numbers),
        )  # fmt: skip
        checkpoint.save(model, folder)
        report = outcome["report"]
        # Of the last step, over its labels.
        metrics = {f"train_{k}": metric(v, None, report["labels"]) for k, v in report.items() if "loss" in k}
        metrics["parameters"] = metric(sum(p.numel() for p in model.parameters()), None, 1)
        return metrics, {"train_seconds": outcome["seconds"], "resumed_at_step": outcome["first_step"]}

    def _evaluate(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        from ratplus.evaluation.suites import evaluate_suites

        model = self._load(self.plan.adapt)
        device = training_device(self.config.run.accelerator)
        started = time.monotonic()
        metrics = evaluate_suites(
            model.to(device), self.config.patterns, self._batches(), self.config.eval,
            lambda done, total: self.around.progress(stage.name, done, total, {}),
        )  # fmt: skip
        return metrics, {"evaluate_seconds": time.monotonic() - started}

    def _load(self, parent: Stage):
        from ratplus import checkpoint

        folder = parent.folder(self.around.root)
        try:
            return checkpoint.load(folder, self._model_config())
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"{error}; delete {folder} to train it again") from None


def training_device(accelerator: str) -> str:
    """The torch device of `run.accelerator`."""
    import torch

    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def run_stage(stage: Stage, around: Surroundings, config: Config, work: Callable) -> dict:
    """Do a stage unless it is done; returns its record. Failures are recorded, then raised."""
    folder = stage.folder(around.root)
    record = _finished(folder, say=lambda _line: None)
    if record is not None:
        _tidy(folder)
        return record
    with FolderLock(folder, on_wait=lambda who: around.say(f"{stage.name} {stage.id}: waiting for {who}")) as lock:
        record = _finished(folder, around.say)  # somebody may have done it while we waited
        if record is not None:
            return record
        return _work(stage, folder, around, config, work, lock)


def _finished(folder: Path, say: Callable[[str], None]) -> dict | None:
    try:
        record = read_record(folder)
    except ForeignRecord:
        raise
    except RecordError as error:
        say(f"{error}; doing this stage again")
        return None
    return record if record is not None and record["status"] == "done" else None


def _work(stage: Stage, folder: Path, around: Surroundings, config: Config, work: Callable, lock: FolderLock) -> dict:
    """Do the work and write its record, done or failed; only an interruption leaves none."""
    from ratplus.stage_log import StageLog
    from ratplus.training import Interrupted

    remove_temporaries(folder)
    mirror = around.make_mirror(stage, around.root, config) if around.make_mirror else None
    started = time.monotonic()

    def publish(**outcome) -> dict:
        lock.check()
        timing = {"seconds": time.monotonic() - started, "peak_memory_bytes": _peak_memory_bytes()}
        record = write_record(
            folder, stage=stage.name, config=stage.config, parent=stage.parent,
            provenance=provenance(**_hardware(config)), **(outcome | {"timing": outcome["timing"] | timing}),
        )  # fmt: skip
        if mirror is not None:
            mirror.finish(record)
        return record

    try:
        metrics, timing = work(stage, folder, StageLog(folder, mirror), lock)
    except (Interrupted, KeyboardInterrupt, LockLost):
        if mirror is not None:
            mirror.abandon()
        raise
    except Exception as error:
        publish(status="failed", metrics={}, timing={}, error=_describe(error))
        raise
    record = publish(status="done", metrics=metrics, timing=timing, error=None)
    _tidy(folder)
    return record


def _tidy(folder: Path) -> None:
    """Remove what a finished stage needs no more; only once its record stands, so that no kill costs a finished run."""
    remove_temporaries(folder)
    for path in folder.glob("training-*.pt"):
        path.unlink(missing_ok=True)


def _describe(error: Exception) -> dict:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": traceback.format_exc().splitlines()[-50:],
        "host": socket.gethostname(),
    }


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


def _peak_memory_bytes() -> int:
    """Of this process so far; the unit differs between systems."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
