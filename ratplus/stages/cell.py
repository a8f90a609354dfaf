"""The stages: pretrain, adapt, sft (where `train.sft` has steps), evaluate. Each is a function of its config.

A stage is idempotent. Done: the stored record is returned. Interrupted: training continues from its last state.
Failed: tried again. At work in another process: waited for. A stage makes sure of its parent first, so `evaluate` alone
does all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.data.corpus import Corpus, open_corpus
from ratplus.data.sources import prepare
from ratplus.evaluation.checks import check_suites
from ratplus.records.lock import FolderLock
from ratplus.records.record import STAGES, TRAINING
from ratplus.stages.peak_memory import peak_memory
from ratplus.stages.plan import Stage, plan
from ratplus.stages.run_stage import Surroundings, run_stage, training_device
from ratplus.training.errors import Interrupted, PeerFailed
from ratplus.training.ranks import Place, micro_batches, place_of


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
            ratplus.training.errors.Interrupted: on SIGTERM or Ctrl-C, with the training state saved.
            ratplus.training.errors.LayoutError: `trainer` asks for ranks or a compiler that are not there, or ranks
                cannot share a batch.
            ratplus.training.errors.PeerFailed: on other ranks than the one that failed first.
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
        from ratplus.training.team import Team

        with Team(place, self.config.trainer, self.config.run, self._start_rank) as self._team:
            self._team.result = self._run_stages(last)
        return self._team.result

    def _run_stages(self, last: str) -> dict:
        check_suites(self.config, self.corpus)  # now rather than after hours of training, whatever `last` is
        if self.config.trainer.compile:
            from ratplus.training.blocks import check_compiler

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
        from ratplus.training.team import Team

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
        from ratplus.training.run import train_along

        recipe, patterns, arl = self._assignment(stage)
        train_along(
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
        from ratplus.checkpoint.adopt import adopt
        from ratplus.checkpoint.facts import read_start
        from ratplus.evaluation.metrics import metric

        source, weights = Path(self.config.model.init_from), stage.config["weights"]
        trained, _ = read_start(source)
        parameters = adopt(source, folder, self._model_config(), weights, self.around.say)
        return {"parameters": metric(parameters, None, 1), "trained_context": metric(trained.max_len, None, 1)}, {}

    def _adapt(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        return self._train(self._load(self.plan.pretrain), stage, folder, log, lock)

    def _sft(self, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        return self._train(self._load(self.plan.adapt), stage, folder, log, lock)

    def _train(self, model, stage: Stage, folder: Path, log, lock: FolderLock) -> tuple[dict, dict]:
        from ratplus.checkpoint import save
        from ratplus.evaluation.metrics import metric
        from ratplus.training.run import train

        recipe, patterns, arl = self._assignment(stage)
        outcome = train(
            model, recipe, self._rows_of(stage), folder, purpose=stage.name, stage_id=stage.id, run=self.config.run,
            precision=self.config.train.precision, patterns=patterns, arl=arl, log=log, before_saving=lock.check,
            progress=lambda done, total, numbers: self.around.progress(stage.name, done, total, numbers),
            team=self._team, trainer=self.config.trainer, say=self.around.say,
        )  # fmt: skip
        model = outcome["model"]
        save(model, folder)
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
        from ratplus.evaluation.suites import evaluate_suites
        from ratplus.records.samples import write_samples

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

            timing |= peak_memory(device)  # the measurements reset the GPU's peak, and have peaks of their own
            counts, times = measure_efficiency(model, self.config.patterns, self.config.eval.efficiency, device)
            metrics, timing = metrics | counts, timing | times
        return metrics, timing, ({"tasks": found.facts} if found.facts else {})

    def _load(self, parent: Stage):
        from ratplus.checkpoint import load
        from ratplus.checkpoint.facts import CheckpointError

        folder = parent.folder(self.around.root)
        try:
            return load(folder, self._model_config())
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {folder} to train it again") from None


def _rank_process(config: Config, place: Place) -> None:
    """A rank that rank 0 started on its own machine."""
    # torch's sockets would print a stack trace when rank 0 goes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    try:
        Cell(config, Surroundings(Path())).follow(place)
    except Interrupted as error:
        sys.exit(128 + error.number)
    except (PeerFailed, KeyboardInterrupt):
        sys.exit(1)  # rank 0 says what happened
