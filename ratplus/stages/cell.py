"""The stages: pretrain, adapt, sft (where `train.sft` has steps), evaluate. Each is a function of its config.

A stage is idempotent. Done: the stored record is returned. Interrupted: training continues from its last state.
Failed: tried again. At work in another process: waited for. A stage makes sure of its parent first, so `evaluate` alone
does all of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.config.cell import Config
from ratplus.data.corpus import Corpus
from ratplus.data.sources import corpus_of
from ratplus.evaluation.checks import check_suites
from ratplus.pattern import PatternMap
from ratplus.records.lock import FolderLock
from ratplus.stages.peak_memory import gpu_peak
from ratplus.stages.run_stage import Result, Surroundings, run_stage, training_device
from ratplus.stages.shared import run_shared
from ratplus.stages.stage_ids import Stage, plan
from ratplus.training.ranks import place_of

if TYPE_CHECKING:
    from ratplus.config.model import ModelConfig
    from ratplus.data.batches import Batches
    from ratplus.model import RATPlus
    from ratplus.records.curve import StageLog
    from ratplus.records.record import Metric, Record
    from ratplus.training.spec import Run
    from ratplus.training.team import Team


class Cell:
    """A cell, one point of a sweep: `Cell(config, surroundings).run("evaluate")` makes sure of its stages."""

    def __init__(self, config: Config, surroundings: Surroundings, corpus: Corpus | None = None):
        """The corpus is prepared unless it is given."""
        self.config, self.surroundings = config, surroundings
        self.corpus: Corpus = corpus_of(config.data) if corpus is None else corpus
        self.plan = plan(config, self.corpus.identity, self.corpus.vocab_size)
        self._team: Team | None = None  # of several ranks, while rank 0 runs the stages

    def run(self, last: str = "evaluate") -> Record:
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
        return self.run_stages(last) if place.world == 1 else run_shared(self, place, last)

    def run_stages(self, last: str, team: Team | None = None) -> Record:
        """`run` in this process; with a team, its other ranks train along."""
        self._team = team
        check_suites(self.config, self.corpus)  # now rather than after hours of training, whatever `last` is
        if self.config.trainer.compile:
            from ratplus.training.blocks import check_compiler

            check_compiler(self.config.trainer, training_device(self.config.run.accelerator), self.config.model.mixer)
        work = {"pretrain": self._pretrain, "adapt": self._adapt, "sft": self._sft, "evaluate": self._evaluate}
        if last not in {stage.name for stage in self.plan}:
            raise ValueError(f"train.{last}.steps: got 0, so there is no stage `{last}`; set it to the steps to train")
        record = None
        for stage in self.plan:
            record = run_stage(stage, self.surroundings, self.config, work[stage.name])
            if stage.name == last:
                break
        assert record is not None  # a plan has stages
        return record

    def train_along(self, stage: Stage, first: int, team: Team) -> None:
        """The part of a rank other than 0 in the training of a stage, which rank 0 begins at the step `first`."""
        from ratplus.training.run import train_along

        train_along(self.model_config(), self._training(stage), first, team)

    # ---- what the stages need -----------------------------------------------------------------------------------

    def batches(self) -> Batches:
        """Text and recall rows: what pretraining and adaptation read, and what is held out."""
        from ratplus.data.batches import Batches

        return Batches.of(self.config, self.corpus)

    def model_config(self) -> ModelConfig:
        """Shape of the cell's model, which depends on the corpus for its vocabulary."""
        return self.config.model.build(self.plan.vocab_size, self.config.train.context)

    @property
    def _tokenizer_facts(self) -> dict:
        return self.corpus.manifest["tokenizer"]

    def _patterns_of(self, stage: Stage) -> PatternMap | None:
        """What the heads see in a stage's training; None: everything."""
        plain, shape = stage.config.get("pattern"), self.config.patterns
        return None if plain is None else PatternMap.from_dict(plain, shape.layers, shape.heads)

    def _training(self, stage: Stage) -> Run:
        """The optimisation run of a training stage."""
        from ratplus.data.sft import SftBatches
        from ratplus.training.mixed import MixedPatterns
        from ratplus.training.spec import Run

        train = self.config.train
        recipe = {"pretrain": train.pretrain, "adapt": train.adapt, "sft": train.sft}[stage.name]
        dense = recipe.dense or (stage.name == "pretrain" and not recipe.sparse)
        patterns = None if dense else self.config.patterns
        if recipe.mixed:
            patterns = MixedPatterns.of(recipe.mixed, recipe.mixed_over, self.model_config(), self.config.seed)
        return Run(
            purpose=stage.name, stage_id=stage.id, recipe=recipe,
            rows=SftBatches.of(self.config, self.corpus) if stage.name == "sft" else self.batches(),
            patterns=patterns,
            arl=recipe.arl_pattern,  # the config allows it where it has a meaning
            precision=train.precision, run=self.config.run, trainer=self.config.trainer,
        )  # fmt: skip

    # ---- the work of each stage (run_stage.Work) ------------------------------------------------------------------

    def _pretrain(self, stage: Stage, folder: Path, log: StageLog, lock: FolderLock) -> Result:
        from ratplus.model import empty_model

        if self.config.model.init_from:
            return self._take_weights(stage, folder)
        model = empty_model(self.model_config())
        model.reset_parameters(self.config.seed, self.config.model.init_std)
        return self._train(model, stage, folder, log, lock)

    def _take_weights(self, stage: Stage, folder: Path) -> Result:
        """Weights of `model.init_from` instead of pretraining."""
        from ratplus.checkpoint.adopt import adopt
        from ratplus.checkpoint.facts import default_of, read_start, tokenizer_facts
        from ratplus.evaluation.metrics import metric

        source, weights = Path(self.config.model.init_from or ""), stage.config["weights"]
        trained, _ = read_start(source)
        # The stage's id knows nothing of data, so its tokenizer is the source's, whatever this cell reads.
        parameters, written = adopt(
            source, folder, self.model_config(), weights, self.surroundings.print_line,
            patterns=default_of(source), tokenizer=tokenizer_facts(source),
        )  # fmt: skip
        found = {"parameters": metric(parameters, None, 1), "trained_context": metric(trained.max_len, None, 1)}
        return Result(found, weights_sha256=written)

    def _adapt(self, stage: Stage, folder: Path, log: StageLog, lock: FolderLock) -> Result:
        if self.config.train.adapt.steps == 0:
            return self._pass_on(self.plan.pretrain, folder)
        return self._train(self.load(self.plan.pretrain), stage, folder, log, lock)

    def _sft(self, stage: Stage, folder: Path, log: StageLog, lock: FolderLock) -> Result:
        return self._train(self.load(self.plan.adapt), stage, folder, log, lock)

    def _pass_on(self, parent: Stage, folder: Path) -> Result:
        """The parent's weights, by a link where the disk allows it: a stage of no steps changes none of them."""
        from ratplus.checkpoint.adopt import adopt
        from ratplus.checkpoint.facts import read_facts
        from ratplus.evaluation.metrics import metric

        source = parent.folder(self.surroundings.root)
        _, weights = read_facts(source)
        parameters, written = adopt(
            source, folder, self.model_config(), weights, self.surroundings.print_line,
            patterns=self._patterns_of(self.plan.adapt), tokenizer=self._tokenizer_facts, more=[self.corpus.folder],
        )  # fmt: skip
        found = {"parameters": metric(parameters, None, 1)}
        return Result(found, {"train_seconds": 0.0, "resumed_at_step": 0}, weights_sha256=written)

    def _train(self, model: RATPlus, stage: Stage, folder: Path, log: StageLog, lock: FolderLock) -> Result:
        from ratplus.checkpoint.facts import family_of
        from ratplus.checkpoint.folder import save_weights
        from ratplus.checkpoint.own_tokenizer import carry
        from ratplus.evaluation.metrics import metric
        from ratplus.training.run import train
        from ratplus.training.spec import Watch

        def progress(done: int, total: int, numbers: dict) -> None:
            self.surroundings.progress(stage.name, done, total, numbers)

        watch = Watch(log=log, progress=progress, before_saving=lock.check, print_line=self.surroundings.print_line)
        outcome = train(model, self._training(stage), folder, watch, self._team)
        before = [p.folder(self.surroundings.root) for p in self.plan if p.id == stage.parent]
        carry([*before, self.corpus.folder], folder, self._tokenizer_facts)
        weights = save_weights(
            outcome.model.config, outcome.model.state_dict(), folder, self._patterns_of(stage),
            family_of(before[0]) if before else None, tokenizer=self._tokenizer_facts,
        )  # fmt: skip
        # The report is that of the last step, and its losses are means over that step's labels.
        report = outcome.report
        metrics = {f"train_{k}": metric(v, None, report["labels"]) for k, v in report.items() if "loss" in k}
        metrics["parameters"] = metric(sum(p.numel() for p in outcome.model.parameters()), None, 1)
        timing = {"train_seconds": outcome.seconds, "resumed_at_step": outcome.first_step}
        one_sum = outcome.layouts[-1].get("micro_batches", 1) == 1
        if len(outcome.layouts) > 1 or self._team is not None or self.config.trainer.compile or not one_sum:
            timing["layouts"] = outcome.layouts
        return Result(metrics, timing, weights_sha256=weights)

    def _evaluate(self, stage: Stage, folder: Path, log: StageLog, lock: FolderLock) -> Result:
        from ratplus.evaluation.suites import evaluate_suites
        from ratplus.records.samples import write_samples

        model = self.load(self.plan.trained)
        device = training_device(self.config.run.accelerator)
        started = time.monotonic()
        found = evaluate_suites(
            model.to(device), self.config.patterns, self.batches(), self.config.eval,
            lambda done, total: self.surroundings.progress(stage.name, done, total, {}),
        )  # fmt: skip
        metrics, timing = found.metrics, {"evaluate_seconds": time.monotonic() - started}
        write_samples(folder, found.samples)
        metrics = metrics | self._measure_selection(model, folder)
        if self.config.eval.efficiency.enabled:
            from ratplus.evaluation.efficiency import measure_efficiency

            timing |= gpu_peak(device)  # the measurements reset the GPU's peak, and have peaks of their own
            counts, times = measure_efficiency(model, self.config.patterns, self.config.eval.efficiency, device)
            metrics, timing = metrics | counts, timing | times
        return Result(metrics, timing, {"tasks": found.facts} if found.facts else {})

    def _measure_selection(self, model: RATPlus, folder: Path) -> dict[str, Metric]:
        """Metrics of what a pattern that depends on data selects, and its file; none of any other pattern."""
        patterns = self.config.patterns
        if not any(pattern.data_dependent for row in patterns for pattern in row):
            return {}
        from ratplus.evaluation.selection import measure_selection, questions_of, write_selection

        found = measure_selection(model, patterns, questions_of(self.batches(), self.config.eval, patterns))
        if found is None:
            return {}
        write_selection(folder, found)
        return found.metrics

    def load(self, parent: Stage) -> RATPlus:
        """The model that a training stage left. Raises CheckpointError: none there, or a damaged one."""
        from ratplus.checkpoint import load
        from ratplus.checkpoint.facts import CheckpointError

        folder = parent.folder(self.surroundings.root)
        try:
            return load(folder, self.model_config())
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {folder} to train it again") from None
