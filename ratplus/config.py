"""Typed configuration: a cell of a sweep, its pattern and its data.

Plain dataclasses, no torch and no Hydra. The sections mirror the groups of `conf/`; the others are in `config_model`,
`config_train`, `config_eval` and, for how work runs, `config_run`. Every `__post_init__` refuses impossible values with
a line that names the key as a user writes it on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ratplus.config_check import check
from ratplus.config_eval import EvalSection
from ratplus.config_model import ModelSection
from ratplus.config_run import LauncherSection, LoggerSection, RunSection, TrainerSection
from ratplus.config_train import TrainSection
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
        check(0 <= self.fraction <= 1, "data.recall.fraction", self.fraction, "it must be between 0 and 1")
        for name in ("length", "keys", "values", "pairs"):
            value = getattr(self, name)
            check(value >= 1, f"data.recall.{name}", value, "it must be ≥ 1")
        check(
            self.pairs <= self.keys,
            "data.recall.pairs",
            self.pairs,
            f"every pair needs a key of its own: at most data.recall.keys={self.keys}",
        )
        check(
            self.pairs <= self.length // 2,
            "data.recall.pairs",
            self.pairs,
            f"they must fit in the first half of a row of data.recall.length={self.length} tokens",
        )


@dataclass
class DataSection:
    """`data=`: the corpus. `root` (where prepared token streams live) and `workers` do not change results.

    Args:
        source: pydocs | text (small, in memory) | files (parquet, JSONL, text) | hub (a data set of the Hugging Face
            hub) | bin (bare token streams) | prepared (a corpus folder).
        path: file or folder; of hub the data set's name; of bin the training stream.
        validation_fraction: of the documents (split=hash), or of a bare stream's end.
        files: which files of a folder or data set, as a glob; null takes all of a known kind.
        revision: branch, tag or commit of a hub data set.
        column: of parquet and JSONL, the one that holds the text.
        separator: line that stands between the documents of a text file; null takes each file for one document.
        tokenizer: bytes, or the path of a tokenizer.json or of a SentencePiece .model.
        eos: token or id that ends a text, where the tokenizer's file does not say it.
        split: hash (of each document's text) | file (the last `validation_files` files are validation).
        validation_path: of bin, the validation stream.
        vocab_size, eos_id: of bin without a tokenizer.
        workers: processes that tokenize, a file each at a time.
    """

    source: str = "pydocs"
    path: str | None = None
    validation_fraction: float = 0.1
    root: str = "data"
    recall: RecallSection = field(default_factory=RecallSection)
    files: str | None = None
    revision: str = "main"
    column: str = "text"
    separator: str | None = None
    tokenizer: str | None = "bytes"
    eos: Any = None
    split: str = "hash"
    validation_files: int = 1
    validation_path: str | None = None
    vocab_size: int | None = None
    eos_id: int | None = None
    workers: int = 1

    def __post_init__(self):
        sources = ("pydocs", "text", "files", "hub", "bin", "prepared")
        check(self.source in sources, "data.source", self.source, f"allowed: {', '.join(sources)}")
        what = {"hub": "<data set>", "bin": "<token file>", "prepared": "<corpus folder>"}
        check(
            self.source == "pydocs" or bool(self.path),
            "data.path",
            self.path,
            f"data={self.source} needs path={what.get(self.source, '<file or folder>')}",
        )
        check(
            0 < self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be between 0 and 1",
        )
        check(self.split in ("hash", "file"), "data.split", self.split, "allowed: hash, file")
        eos = self.eos
        whole = isinstance(eos, int) and not isinstance(eos, bool)
        check(eos is None or isinstance(eos, str) or whole, "data.eos", eos, "it must be a token or an id")
        for name, least in (("validation_files", 1), ("workers", 1), ("vocab_size", 1), ("eos_id", 0)):
            value = getattr(self, name)
            check(value is None or value >= least, f"data.{name}", value, f"it must be ≥ {least}")


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
