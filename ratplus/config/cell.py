"""Typed configuration: a cell of a sweep, its pattern and its data.

Plain dataclasses, no torch and no Hydra. The sections mirror the groups of `conf/`; the others are in `data`, `model`,
`train`, `eval` and, for how work runs, `run`. Every `__post_init__` refuses impossible values with
a line that names the key as a user writes it on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ratplus.config.check import check
from ratplus.config.data import DataSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.run import LauncherSection, LoggerSection, RunSection, TrainerSection
from ratplus.config.train import TrainSection
from ratplus.pattern import PatternMap, build_map


@dataclass
class PatternSection:
    """`pattern=`: what the heads see at inference; dense by default. Values may differ by layer and head."""

    dilation: Any = 1
    """D: of the far keys, each query sees the last of every block of D; 1 is dense, null keeps none. Allowed: ≥ 1,
    null, a list, [layers][heads]."""
    window: Any = 0
    """W: how many tokens before a query are visible besides it. None by default, so that a dilation is seen by itself.
    Allowed: ≥ 0, a list, [layers][heads]."""
    sinks: Any = 0
    """I: initial tokens that every query sees. None by default, for the same reason. Allowed: ≥ 0, a list,
    [layers][heads]."""
    over: str = "layers"
    """What a flat list of values runs over. Layers, the more usual hybrid. Allowed: layers, heads."""
    tile: bool = False
    """Whether a flat list shorter than the model is repeated along it. False refuses such a list, which is more often a
    mistake."""

    def __post_init__(self):
        check(self.over in ("layers", "heads"), "pattern.over", self.over, "allowed: layers, heads")
        scalars = {k: getattr(self, k) for k in ("dilation", "window", "sinks")}
        if not any(isinstance(v, (list, tuple)) for v in scalars.values()):
            self.build(1, 1)

    def build(self, layers: int, heads: int) -> PatternMap:
        return build_map(self.dilation, self.window, self.sinks, layers, heads, over=self.over, tile=self.tile)


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

    def __post_init__(self):
        check(self.retry in ("all", "failed", "none"), "retry", self.retry, "allowed: all, failed, none")
        check(self.max_failures is None or self.max_failures >= 1, "max_failures", self.max_failures,
               "it must be ≥ 1, or null for no limit")  # fmt: skip
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
        patterns = self.pattern.build(self.model.layers, self.model.heads)
        patterns.per_kv_head(self.model.kv_heads)
        most_sinks = max(p.sinks for row in patterns for p in row)
        check(
            most_sinks <= self.train.context,
            "pattern.sinks",
            most_sinks,
            f"it must be ≤ train.context={self.train.context}",
        )

    @property
    def patterns(self) -> PatternMap:
        return self.pattern.build(self.model.layers, self.model.heads)
