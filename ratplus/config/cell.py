"""Typed configuration: a cell of a sweep.

Plain dataclasses, no torch and no Hydra. The sections mirror the groups of `conf/`; the others are in `data`, `model`,
`train`, `pattern`, `eval` and, for how work runs, `run`. Every `__post_init__` refuses impossible values with
a line that names the key as a user writes it on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ratplus.config.check import check
from ratplus.config.data import DataSection
from ratplus.config.eval import EvalSection
from ratplus.config.mixer import ATTENTION, check_dense
from ratplus.config.model import ModelSection
from ratplus.config.pattern import PatternSection
from ratplus.config.run import LauncherSection, LoggerSection, RunSection, TrainerSection
from ratplus.config.train import TrainSection
from ratplus.pattern import PatternMap


@dataclass
class Config:
    """A cell: one point of a sweep, model × training recipe × pattern map × seed × evaluation suite; and how it is run.

    The sections `model`, `data`, `train`, `pattern` and `eval`, and `seed`, decide the result; the others do not.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    pattern: PatternSection = field(default_factory=PatternSection)
    eval: EvalSection = field(default_factory=EvalSection)
    seed: int = 0
    """Seed of initial weights and of the order of training data; cells that differ by it alone are averaged. 0 is as
    good as any. Allowed: ≥ 0, ≤ 2147483647."""
    run: RunSection = field(default_factory=RunSection)
    logger: LoggerSection = field(default_factory=LoggerSection)
    launcher: LauncherSection = field(default_factory=LauncherSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    sweep: Any = None
    output: str | None = None
    """Folder of the sweep. Null puts it at outputs/<sweep.name>. Allowed: a folder, null."""
    retry: str = "all"
    """Which cells of the sweep run: all that are not done; failed and damaged ones only; or none of the failed (missing
    ones run). Allowed: all, failed, none."""
    max_failures: int | None = None
    """Cells that may fail before no other is started. Null never stops, since one bad cell says little of the next.
    Allowed: ≥ 1, null."""
    dry_run: bool = False
    """True lists the cells, their ids, what exists and what they cost, and runs nothing."""
    objective: Any = None
    """What `ratplus-hydra` returns to a sweeper of Hydra's: a result, count of costs or measured time of the cell, or a
    list of them; `ratplus` takes it from no word, and no notice of it in a file. Null returns nothing. Allowed: a name
    (`loss`), a list of names, null."""

    def __post_init__(self):
        check(self.retry in ("all", "failed", "none"), "retry", self.retry, "allowed: all, failed, none")
        check(self.max_failures is None or self.max_failures >= 1, "max_failures", self.max_failures,
               "it must be ≥ 1, or null for no limit")  # fmt: skip
        names = self.objective if isinstance(self.objective, list) else [self.objective]
        texts = bool(names) and all(isinstance(name, str) and name for name in names)
        check(self.objective is None or (texts and len(set(names)) == len(names)), "objective", self.objective,
               "it must be the name of a result such as loss, a list of different names, or null")  # fmt: skip
        check(0 <= self.seed < 2**31, "seed", self.seed, "it must be between 0 and 2147483647")
        recall = self.data.recall
        check(
            recall.fraction == 0 or recall.length <= self.train.context,
            "data.recall.length",
            recall.length,
            f"it must be ≤ train.context={self.train.context}",
        )
        efficiency, context = self.eval.efficiency, self.train.context
        check(
            not efficiency.enabled or 1 <= efficiency.prompt(context) <= context - efficiency.new_tokens,
            "eval.efficiency.prompt_tokens",
            efficiency.prompt_tokens,
            f"with eval.efficiency.new_tokens={efficiency.new_tokens} it must fit train.context={self.train.context}",
        )
        cloze = self.eval.cloze
        check(cloze.items == 0 or sum(cloze.shape(context)) <= context, "eval.cloze.context_tokens",
               cloze.context_tokens, f"with {cloze.shape(context)[1]} tokens of continuation it must fit "
               f"train.context={context}")  # fmt: skip
        lengths = {"niah.length": self.eval.niah.length, "harness.max_length": self.eval.harness.max_length}
        for key, value in lengths.items():
            check(value is None or value <= context, f"eval.{key}", value, f"it must be ≤ train.context={context}")
        self.eval.positions.check(context)
        patterns = self.patterns
        check_dense(self.model.mixer, patterns, "pattern")
        if self.model.mixer != ATTENTION:
            self._check_trains_dense()
        patterns.per_kv_head(self.model.kv_heads)
        self.pattern.check_fits(patterns, self.train.context)
        if needs := patterns.needs_prompt:
            self._check_prompts_alone(needs.label)

    def _check_trains_dense(self) -> None:
        """Refuse recipes that train with patterns, of which a mixer with a state has none."""
        train, mixer = self.train, self.model.mixer
        for name, recipe in (("pretrain", train.pretrain), ("adapt", train.adapt), ("sft", train.sft)):
            check(not recipe.arl, f"train.{name}.arl", True, "active recurrence learning trains with a sparse "
                  f"pattern, and model.mixer={mixer} has none; use false")  # fmt: skip
            check(not recipe.mixed, f"train.{name}.mixed", recipe.mixed, "mixed adaptation trains with several "
                  f"patterns, and model.mixer={mixer} has none; use []")  # fmt: skip

    def _check_prompts_alone(self, label: str) -> None:
        """Refuse what reads whole texts under a pattern that is defined by where a prompt ends, such as SnapKV."""
        train, asked = self.train, self.eval
        recall = asked.recall_rows if self.data.recall.fraction > 0 else 0
        whole = {"eval.text_rows": asked.text_rows, "eval.recall_rows": recall, "eval.cloze.items": asked.cloze.items,
                 "eval.positions.width": asked.positions.width}  # fmt: skip
        set_to_0 = " ".join(f"{key}=0" for key, value in whole.items() if value)
        check(not set_to_0, "pattern", label, "what it shows depends on where a prompt ends, and a loss over whole "
              f"texts has no prompt; set {set_to_0}, and evaluate by generation: eval.niah.tasks, or eval.tasks that "
              "generate. Or use a pattern of phase both")  # fmt: skip
        trains = ["train.pretrain.sparse=false"] if train.pretrain.sparse else []
        for name, recipe in (("adapt", train.adapt), ("sft", train.sft)):
            if recipe.steps and not recipe.dense and not recipe.mixed:
                trains.append(f"train.{name}.dense=true (it then trains dense) or train.{name}.steps=0")
        check(not trains, "pattern", label, "what it shows depends on where a prompt ends, so nothing trains with it; "
              f"set {', '.join(trains)}")  # fmt: skip

    @property
    def patterns(self) -> PatternMap:
        return self.pattern.build(self.model.layers, self.model.heads, self.model.kv_heads)
