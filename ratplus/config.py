"""Typed configuration: the model's and the scientific recipe's. Plain dataclasses, no torch and no Hydra.

The sections mirror the groups of `conf/`. Every `__post_init__` refuses impossible values with a line that names
the key as a user writes it on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ratplus.pattern import PatternMap, build_map


def _check(ok: bool, key: str, value, allowed: str) -> None:
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key}: got {value!r}; {allowed}")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a RATPlus model.

    Args:
        vocab_size: number of token ids.
        layers: number of blocks (mixer + FFN).
        d_model: width of the residual stream.
        d_head: channels per head; d_model // d_head heads.
        recurrence: gated recurrence on keys and values; False is the attention-only baseline.
        output_gate: multiply the attention output by sigmoid(W_o x) before the output projection.
        ffn_mult: FFN width as a multiple of d_model.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon of every RMSNorm.
        max_len: longest sequence that the model accepts.

    Raises:
        ValueError: d_model not divisible by d_head, odd d_head, or a value out of range.
    """

    vocab_size: int
    layers: int
    d_model: int
    d_head: int
    recurrence: bool = True
    output_gate: bool = True
    ffn_mult: int = 4
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    max_len: int = 4096

    def __post_init__(self):
        for name in ("vocab_size", "layers", "d_model", "d_head", "ffn_mult", "max_len"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _check(whole and value >= 1, f"model.{name}", value, "it must be a whole number ≥ 1")
        _check(self.d_head % 2 == 0, "model.d_head", self.d_head, "it must be even (RoPE turns pairs of channels)")
        _check(
            self.d_model % self.d_head == 0,
            "model.d_model",
            self.d_model,
            f"it must be a multiple of model.d_head={self.d_head}",
        )
        _check(self.rope_base > 0, "model.rope_base", self.rope_base, "it must be > 0")
        _check(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "it must be > 0")

    @property
    def heads(self) -> int:
        return self.d_model // self.d_head


@dataclass
class ModelSection:
    """`model=`: a ModelConfig without what the data decides (vocabulary and context)."""

    name: str = "unnamed"
    layers: int = 4
    d_model: int = 128
    d_head: int = 32
    recurrence: bool = True
    output_gate: bool = True
    ffn_mult: int = 4
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02

    def __post_init__(self):
        self.build(vocab_size=1, max_len=1)
        _check(self.init_std > 0, "model.init_std", self.init_std, "it must be > 0")

    def build(self, vocab_size: int, max_len: int) -> ModelConfig:
        shape = {k: v for k, v in vars(self).items() if k not in ("name", "init_std")}
        return ModelConfig(vocab_size=vocab_size, max_len=max_len, **shape)


@dataclass
class PatternSection:
    """`pattern=`: what the heads see at inference; each value an int, a list, or a nested list [layers][heads]."""

    dilation: Any = 1
    window: Any = 0
    sinks: Any = 0
    over: str = "layers"
    tile: bool = False

    def __post_init__(self):
        _check(self.over in ("layers", "heads"), "pattern.over", self.over, "allowed: layers, heads")
        scalars = {k: getattr(self, k) for k in ("dilation", "window", "sinks")}
        if not any(isinstance(v, (list, tuple)) for v in scalars.values()):
            self.build(1, 1)

    def build(self, layers: int, heads: int) -> PatternMap:
        return build_map(self.dilation, self.window, self.sinks, layers, heads, over=self.over, tile=self.tile)


@dataclass
class RecallSection:
    """`data.recall`: the stacked-recall task mixed into every batch; `fraction` of its tokens, 0 leaves it out.

    Its rows have `length` tokens of their own, at most train.context.
    """

    fraction: float = 0.5
    length: int = 128
    keys: int = 8
    values: int = 8
    pairs: int = 8

    def __post_init__(self):
        _check(0 <= self.fraction <= 1, "data.recall.fraction", self.fraction, "it must be between 0 and 1")
        for name in ("length", "keys", "values", "pairs"):
            value = getattr(self, name)
            _check(value >= 1, f"data.recall.{name}", value, "it must be ≥ 1")
        _check(
            self.pairs <= self.keys,
            "data.recall.pairs",
            self.pairs,
            f"every pair needs a key of its own: at most data.recall.keys={self.keys}",
        )
        _check(
            self.pairs <= self.length // 2,
            "data.recall.pairs",
            self.pairs,
            f"they must fit in the first half of a row of data.recall.length={self.length} tokens",
        )


@dataclass
class DataSection:
    """`data=`: the corpus. `root` is where prepared token streams live; it does not change results."""

    source: str = "pydocs"
    path: str | None = None
    validation_fraction: float = 0.1
    root: str = "data"
    recall: RecallSection = field(default_factory=RecallSection)

    def __post_init__(self):
        _check(self.source in ("pydocs", "text"), "data.source", self.source, "allowed: pydocs, text")
        _check(
            self.source != "text" or bool(self.path), "data.path", self.path, "data=text needs path=<file or folder>"
        )
        _check(
            0 < self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be between 0 and 1",
        )


@dataclass
class RecipeSection:
    """`train.pretrain`, `train.adapt`: one optimisation run (paper, training settings)."""

    steps: int = 100
    batch: int = 8
    micro_batch: int | None = None
    lr: float = 1e-3
    lr_min: float = 1e-6
    warmup: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    order: str = "ordered"
    arl: bool = False
    arl_dilation: int | None = 64
    arl_window: int = 0
    arl_sinks: int = 0

    def check(self, where: str) -> None:
        """Refuse impossible values; `where` is the key prefix that the message shows. TrainSection calls it."""
        _check(self.steps >= 0, f"{where}.steps", self.steps, "it must be ≥ 0")
        _check(self.batch >= 1, f"{where}.batch", self.batch, "it must be ≥ 1")
        micro = self.micro_batch
        _check(
            micro is None or (micro >= 1 and self.batch % micro == 0),
            f"{where}.micro_batch",
            micro,
            f"it must divide {where}.batch={self.batch}",
        )
        _check(self.lr > 0, f"{where}.lr", self.lr, "it must be > 0")
        _check(0 <= self.lr_min <= self.lr, f"{where}.lr_min", self.lr_min, f"it must be between 0 and lr={self.lr}")
        _check(0 <= self.warmup < 1, f"{where}.warmup", self.warmup, "it is a fraction of the steps: 0 ≤ warmup < 1")
        _check(self.weight_decay >= 0, f"{where}.weight_decay", self.weight_decay, "it must be ≥ 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"{where}.{name}", value, "it must be in [0, 1)")
        _check(self.clip > 0, f"{where}.clip", self.clip, "it must be > 0")
        _check(self.order in ("ordered", "random"), f"{where}.order", self.order, "allowed: ordered, random")
        # The pattern checks its own values; it only names them without the `arl_` prefix.
        try:
            build_map(self.arl_dilation, self.arl_window, self.arl_sinks, 1, 1)
        except ValueError as error:
            raise ValueError(str(error).replace("pattern.", f"{where}.arl_", 1)) from None


@dataclass
class TrainSection:
    """`train=`: context length in tokens, precision, and the two recipes."""

    context: int = 512
    precision: str = "float32"
    pretrain: RecipeSection = field(default_factory=RecipeSection)
    adapt: RecipeSection = field(default_factory=lambda: RecipeSection(order="random", warmup=0.0))

    def __post_init__(self):
        _check(self.context >= 2, "train.context", self.context, "it must be ≥ 2")
        _check(self.precision in ("float32", "bf16"), "train.precision", self.precision, "allowed: float32, bf16")
        self.pretrain.check("train.pretrain")
        self.adapt.check("train.adapt")
        _check(not self.adapt.arl, "train.adapt.arl", True, "adaptation trains one pattern alone; set it to false")


@dataclass
class EvalSection:
    """`eval=`: held-out rows of `train.context` tokens; `batch` (rows at a time) does not change results."""

    text_rows: int = 128
    recall_rows: int = 64
    batch: int = 16

    def __post_init__(self):
        for name, least in (("text_rows", 1), ("recall_rows", 0), ("batch", 1)):
            value = getattr(self, name)
            _check(value >= least, f"eval.{name}", value, f"it must be ≥ {least}")


@dataclass
class RunSection:
    """`run`: where and how work runs. Nothing here changes results, so nothing here enters an id."""

    accelerator: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 20.0
    log_every: int = 10

    def __post_init__(self):
        allowed = ("auto", "cpu", "cuda")
        _check(self.accelerator in allowed, "run.accelerator", self.accelerator, f"allowed: {', '.join(allowed)}")
        _check(self.threads is None or self.threads >= 1, "run.threads", self.threads, "it must be ≥ 1 or null")
        _check(self.checkpoint_seconds >= 0, "run.checkpoint_seconds", self.checkpoint_seconds, "it must be ≥ 0")
        _check(self.log_every >= 1, "run.log_every", self.log_every, "it must be ≥ 1")


@dataclass
class LoggerSection:
    """`logger=`: which mirror gets the numbers; a CSV beside the record is always written."""

    wandb: str = "offline"
    project: str = "ratplus"
    entity: str | None = None

    def __post_init__(self):
        allowed = ("offline", "online", "none")
        _check(self.wandb in allowed, "logger.wandb", self.wandb, f"allowed: {', '.join(allowed)}")


@dataclass
class LauncherSection:
    """`launcher=`: how many cells run at once, each in a process of its own with `threads` threads."""

    workers: int = 1
    threads: int = 1

    def __post_init__(self):
        _check(self.workers >= 1, "launcher.workers", self.workers, "it must be ≥ 1")
        _check(self.threads >= 1, "launcher.threads", self.threads, "it must be ≥ 1")


@dataclass
class TrainerSection:
    """`trainer=`: how one training run is spread over devices. Changes no result beyond the order of float sums."""

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self):
        allowed = ("single", "ddp", "fsdp")
        _check(self.strategy in allowed, "trainer.strategy", self.strategy, f"allowed: {', '.join(allowed)}")
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            _check(value >= 1, f"trainer.{name}", value, "it must be ≥ 1")
            alone = self.strategy != "single" or value == 1
            _check(alone, f"trainer.{name}", value, "more than one needs trainer=ddp or trainer=fsdp")


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
        _check(self.retry in ("all", "failed", "none"), "retry", self.retry, "allowed: all, failed, none")
        _check(self.max_failures is None or self.max_failures >= 1, "max_failures", self.max_failures,
               "it must be ≥ 1, or null for no limit")  # fmt: skip
        _check(0 <= self.seed < 2**31, "seed", self.seed, "it must be between 0 and 2147483647")
        recall = self.data.recall
        _check(
            recall.fraction == 0 or recall.length <= self.train.context,
            "data.recall.length",
            recall.length,
            f"it must be ≤ train.context={self.train.context}",
        )
        patterns = self.pattern.build(self.model.layers, self.model.d_model // self.model.d_head)
        most_sinks = max(p.sinks for row in patterns for p in row)
        _check(
            most_sinks <= self.train.context,
            "pattern.sinks",
            most_sinks,
            f"it must be ≤ train.context={self.train.context}",
        )

    @property
    def patterns(self) -> PatternMap:
        return self.pattern.build(self.model.layers, self.model.d_model // self.model.d_head)
