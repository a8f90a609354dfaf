"""The stages: pretrain, adapt, sft (where `train.sft` has steps), evaluate. Each is a function of its config.

A stage is idempotent. Done: the stored record is returned. Interrupted: training continues from its last state.
Failed: tried again. At work in another process: waited for. A stage makes sure of its parent first, so `evaluate` alone
does all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ratplus.atomic import remove_temporaries
from ratplus.config import Config
from ratplus.data.corpus import Corpus, open_corpus
from ratplus.data.sources import prepare
from ratplus.evaluation.checks import check_suites
from ratplus.failures import failure_of
from ratplus.lock import LOCK_FILE, FolderLock, LockLost, is_locked
from ratplus.plan import Stage, plan
from ratplus.ranks import Place, micro_batches, place_of
from ratplus.record import STAGES, TRAINING, ForeignRecord, RecordError, provenance, read_record, write_record

Progress = Callable[[str, int, int, dict], None]


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


class Cell:
    """One cell of a sweep: `Cell(config, surroundings).run("evaluate")` makes sure of its stages."""

    def __init__(self, config: Config, around: Surroundings):
        self.config, self.around = config, around
        self.corpus: Corpus = open_corpus(prepare(config.data))
        self.plan = plan(config, self.corpus.identity, self.corpus.vocab_size)
        self._team = None  # of several ranks, while rank 0 runs the stages

    def run(self, last: str = "evaluate") -> dict:
        """Run the stages up to `last`; returns its record.

        Under torchrun or srun every rank calls this, and all get the record: rank 0 runs the stages, the others
        train along when it tells them to.

        Raises:
            RecordError, CheckpointError, ...: the stage's own failure, after it has been recorded.
            MissingExtra, TaskError, ...: of `check_suites`, before any stage.
            ratplus.training.Interrupted: on SIGTERM or Ctrl-C, with the training state saved.
            ratplus.ranks.LayoutError: `trainer` asks for ranks or a compiler that are not there, or ranks cannot share
                a batch.
            ratplus.distributed.PeerFailed: on other ranks than the one that failed first.
        """
        place = place_of(self.config.trainer)
        if place.rank > 0:
            return self.follow(place)
        if place.world == 1:
            return self._run_stages(last)
        for name in STAGES[: STAGES.index(last) + 1]:
            given = name == "pretrain" and self.config.model.init_from
            if name in TRAINING and getattr(self.plan, name) is not None and not given:
                micro_batches(getattr(self.config.train, name), place.world, f"train.{name}")
        from ratplus.distributed import Team

        with Team(place, self.config.trainer, self.config.run, self._start_rank) as self._team:
            self._team.result = self._run_stages(last)
        return self._team.result

    def _run_stages(self, last: str) -> dict:
        check_suites(self.config, self.corpus)  # now rather than after hours of training, whatever `last` is
        if self.config.trainer.compile:
            from ratplus.blockwise import check_compiler

            check_compiler(self.config.trainer, training_device(self.config.run.accelerator))
        work = {"pretrain": self._pretrain, "adapt": self._adapt, "sft": self._sft, "evaluate": self._evaluate}
        if last not in {stage.name for stage in self.plan}:
            raise ValueError(f"train.{last}.steps: got 0, so there is no stage `{last}`; set it to the steps to train")
        record = None
        for stage in self.plan:
            record = run_stage(stage, self.around, self.config, work[stage.name])
            if stage.name == last:
                break
        return record

    # ---- ranks other than 0 ----

    def _start_rank(self, place: Place):
        # A fresh interpreter: a fork would share CUDA and thread state with this one.
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=_rank_process, args=(self.config, place), name=f"ratplus-rank-{place.rank}", daemon=True
        )
        process.start()
        return process

    def follow(self, place: Place) -> dict:
        """A rank's part other than 0's: train along as rank 0 orders; returns the record that rank 0 ends with."""
        from ratplus.distributed import Team

        team = Team(place, self.config.trainer, self.config.run)
        for order in team.orders():
            stage = getattr(self.plan, order["stage"])
            with team.together():
                if stage.id != order["id"]:
                    raise ValueError(
                        f"{stage.name}: its id is {stage.id} here and {order['id']} on rank 0, so code, config or data "
                        "differ between the two; start all ranks with the same command, code and corpus"
                    )
                self._train_along(team, stage, order["first"])
        return team.result

    def _train_along(self, team, stage: Stage, first: int) -> None:
        from ratplus import training

        recipe, patterns, arl = self._assignment(stage)
        training.train_along(
            self._model_config(), recipe, self._rows_of(stage), purpose=stage.name, first=first, run=self.config.run,
            team=team, precision=self.config.train.precision, patterns=patterns, arl=arl,
        )  # fmt: skip

    # ---- the work of each stage: (stage, folder, log, lock) -> (metrics, timing[, facts for the provenance]) ----

    def _batches(self):
        from ratplus.data.batches import Batches

        return Batches.of(self.config, self.corpus)

    def _rows_of(self, stage: Stage):
        """What a training stage reads."""
        if stage.name != "sft":
            return self._batches()
        from ratplus.data.sft import SftBatches

        return SftBatches.of(self.config, self.corpus)

    def _model_config(self):
        return self.config.model.build(self.plan.vocab_size, self.config.train.context)

    def _assignment(self, stage: Stage) -> tuple:
        """What a training stage trains with: (recipe, patterns, active recurrence learning's pattern or None)."""
        if stage.name == "adapt":
            return self.config.train.adapt, self.config.patterns, None
        if stage.name == "sft":
            return self.config.train.sft, self.config.patterns, self.config.train.sft.arl_pattern
        r = self.config.train.pretrain
        return r, self.config.patterns if r.sparse else None, r.arl_pattern

    def _pretrain(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        from ratplus.model import empty_model

        if self.config.model.init_from:
            return self._take_weights(stage, folder)
        model = empty_model(self._model_config())
        model.reset_parameters(self.config.seed, self.config.model.init_std)
        return self._train(model, stage, folder, log, lock)

    def _take_weights(self, stage: Stage, folder: Path) -> tuple[dict, dict]:
        """Weights of `model.init_from` instead of pretraining."""
        from ratplus.checkpoint import adopt
        from ratplus.evaluation.metrics import metric
        from ratplus.starting_point import read_start

        source, weights = Path(self.config.model.init_from), stage.config["weights"]
        trained, _ = read_start(source)
        parameters = adopt(source, folder, self._model_config(), weights, self.around.say)
        return {"parameters": metric(parameters, None, 1), "trained_context": metric(trained.max_len, None, 1)}, {}

    def _adapt(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        return self._train(self._load(self.plan.pretrain), stage, folder, log, lock)

    def _sft(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        return self._train(self._load(self.plan.adapt), stage, folder, log, lock)

    def _train(self, model, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        from ratplus import checkpoint, training
        from ratplus.evaluation.metrics import metric

        recipe, patterns, arl = self._assignment(stage)
        outcome = training.train(
            model, recipe, self._rows_of(stage), folder, purpose=stage.name, stage_id=stage.id, run=self.config.run,
            precision=self.config.train.precision, patterns=patterns, arl=arl, log=log, before_saving=lock.check,
            progress=lambda done, total, numbers: self.around.progress(stage.name, done, total, numbers),
            team=self._team, trainer=self.config.trainer, say=self.around.say,
        )  # fmt: skip
        model = outcome["model"]
        checkpoint.save(model, folder)
        report = outcome["report"]
        # Of the last step, over its labels.
        metrics = {f"train_{k}": metric(v, None, report["labels"]) for k, v in report.items() if "loss" in k}
        metrics["parameters"] = metric(sum(p.numel() for p in model.parameters()), None, 1)
        timing = {"train_seconds": outcome["seconds"], "resumed_at_step": outcome["first_step"]}
        one_sum = outcome["layouts"][-1].get("micro_batches", 1) == 1
        if len(outcome["layouts"]) > 1 or self._team is not None or self.config.trainer.compile or not one_sum:
            timing["layouts"] = outcome["layouts"]
        return metrics, timing

    def _evaluate(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict, dict]:
        from ratplus.evaluation.samples import write_samples
        from ratplus.evaluation.suites import evaluate_suites

        model = self._load(self.plan.trained)
        device = training_device(self.config.run.accelerator)
        started = time.monotonic()
        found = evaluate_suites(
            model.to(device), self.config.patterns, self._batches(), self.config.eval,
            lambda done, total: self.around.progress(stage.name, done, total, {}),
        )  # fmt: skip
        metrics, timing = found.metrics, {"evaluate_seconds": time.monotonic() - started}
        write_samples(folder, found.samples)
        if self.config.eval.efficiency.enabled:
            from ratplus.evaluation.efficiency import measure_efficiency

            counts, times = measure_efficiency(model, self.config.patterns, self.config.eval.efficiency, device)
            metrics, timing = metrics | counts, timing | times
        return metrics, timing, ({"tasks": found.facts} if found.facts else {})

    def _load(self, parent: Stage):
        from ratplus import checkpoint

        folder = parent.folder(self.around.root)
        try:
            return checkpoint.load(folder, self._model_config())
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"{error}; delete {folder} to train it again") from None


def _rank_process(config: Config, place: Place) -> None:
    """A rank that rank 0 started on its own machine."""
    # torch's sockets would print a stack trace when rank 0 goes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ratplus.distributed import PeerFailed
    from ratplus.training import Interrupted

    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    try:
        Cell(config, Surroundings(Path())).follow(place)
    except Interrupted as error:
        sys.exit(128 + error.number)
    except (PeerFailed, KeyboardInterrupt):
        sys.exit(1)  # rank 0 says what happened


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

    def publish(facts: dict | None = None, **outcome) -> dict:
        lock.check()
        timing = {"seconds": time.monotonic() - started, "peak_memory_bytes": _peak_memory_bytes()}
        record = write_record(
            folder, stage=stage.name, config=stage.config, parent=stage.parent,
            provenance=provenance(around.root if config.run.save_diff else None, **_hardware(config), **(facts or {})),
            **(outcome | {"timing": outcome["timing"] | timing}),
        )  # fmt: skip
        if mirror is not None:
            mirror.finish(record)
        return record

    try:
        metrics, timing, *facts = work(stage, folder, StageLog(folder, mirror), lock)
    except (Interrupted, KeyboardInterrupt, LockLost):
        if mirror is not None:
            mirror.abandon()
        raise
    except Exception as error:
        publish(status="failed", metrics={}, timing={}, error=failure_of(error, stage.name, config, folder))
        raise
    record = publish(*facts, status="done", metrics=metrics, timing=timing, error=None)
    _tidy(folder)
    return record


def _tidy(folder: Path) -> None:
    """Remove what a finished stage needs no more; only once its record stands, so that no kill costs a finished run."""
    remove_temporaries(folder)
    for path in folder.glob("training-*.pt"):
        path.unlink(missing_ok=True)
    if not is_locked(folder):  # left by a process that was killed between the record and the release
        (folder / LOCK_FILE).unlink(missing_ok=True)


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
