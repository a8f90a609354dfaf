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
    """`pattern=`: what the heads see at inference; each value an int, a list, or a nested list [layers][heads]."""

    dilation: Any = 1
    window: Any = 0
    sinks: Any = 0
    over: str = "layers"
    tile: bool = False

    def __post_init__(self):
        check(self.over in ("layers", "heads"), "pattern.over", self.over, "allowed: layers, heads")
        scalars = {k: getattr(self, k) for k in ("dilation", "window", "sinks")}
        if not any(isinstance(v, (list, tuple)) for v in scalars.values()):
            self.build(1, 1)

    def build(self, layers: int, heads: int) -> PatternMap:
        return build_map(self.dilation, self.window, self.sinks, layers, heads, over=self.over, tile=self.tile)


@dataclass
class Config:
    """One cell of a sweep, complete: science (model, data, train, pattern, seed, eval) and how it is run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    pattern: PatternSection = field(default_factory=PatternSection)
    eval: EvalSection = field(default_factory=EvalSection)
    seed: int = 0
    run: RunSection = field(default_factory=RunSection)
    logger: LoggerSection = field(default_factory=LoggerSection)
    launcher: LauncherSection = field(default_factory=LauncherSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    sweep: Any = None
    output: str | None = None
    retry: str = "all"
    max_failures: int | None = None
    dry_run: bool = False

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
        patterns = self.pattern.build(self.model.layers, self.model.d_model // self.model.d_head)
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
        return self.pattern.build(self.model.layers, self.model.d_model // self.model.d_head)
