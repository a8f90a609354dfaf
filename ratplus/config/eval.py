"""`eval=`: what a cell is asked. Each suite's section; what is off enters no id."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ratplus.config.check import check, check_least
from ratplus.records.reading import read_bytes

# Versions of the questions and their scoring: another version gives another result, and so another id.
CLOZE_VERSION = 2
NIAH_VERSION = 2  # 1 had accuracy by depth of the stricter score alone
POSITIONS_VERSION = 1
# Continuations that a cloze question offers, one of them the true one.
CHOICES = 4


@dataclass
class EfficiencySection:
    """`eval.efficiency`: what a cell's pattern costs: exact counts as metrics, measured times beside them."""

    enabled: bool = False
    """Whether the cost of the pattern is measured; only then does the section enter the cell's id. False, since timing
    takes a while and wants a quiet machine."""
    batch: int = 1
    """Sequences at once. One tells the latency for a single user. Allowed: ≥ 1."""
    prompt_tokens: int | None = None
    """Tokens of each prompt. Null takes what train.context leaves beside new_tokens: the longest there is. Allowed: ≥
    1, null."""
    new_tokens: int = 16
    """Decoding steps that are timed together. Enough that the clock's resolution does not matter. Allowed: ≥ 3."""
    repeats: int = 7
    """Timed calls, of which the median counts. An odd number has a middle one. Allowed: ≥ 3."""
    memory_gb: float = 80.0
    """Memory, in GB (1e9 bytes), that max_batch is counted for; and what there is, where the system does not tell how
    much is free (macOS). 80 GB is an H100's. Allowed: > 0."""

    def __post_init__(self):
        check_least(self, "eval.efficiency", batch=1, prompt_tokens=1, new_tokens=3, repeats=3)
        check(self.memory_gb > 0, "eval.efficiency.memory_gb", self.memory_gb, "it must be > 0")

    def prompt(self, context: int) -> int:
        """Prompt tokens in a model of this context."""
        return context - self.new_tokens if self.prompt_tokens is None else self.prompt_tokens


@dataclass
class ClozeSection:
    """`eval.cloze`: which of four continuations is the true one, in held-out text."""

    items: int = 0
    """Questions. 0 leaves the suite out, and then nothing of it enters the cell's id. Allowed: ≥ 0."""
    context_tokens: int | None = None
    """Tokens before the continuation. Null takes 64, or half of train.context if that is less. Allowed: ≥ 1, null."""
    continuation_tokens: int | None = None
    """Tokens of a continuation. Null takes 16, or a quarter of train.context if that is less. Allowed: ≥ 1, null."""

    def __post_init__(self):
        check_least(self, "eval.cloze", items=0, context_tokens=1, continuation_tokens=1)

    def shape(self, context: int) -> tuple[int, int]:
        """(context tokens, continuation tokens) of a model of this context."""
        return (
            self.context_tokens or max(1, min(64, context // 2)),
            self.continuation_tokens or max(1, min(16, context // 4)),
        )


@dataclass
class PositionsSection:
    """`eval.positions`: held-out loss and recall by position, for models used beyond their trained context."""

    width: int = 0
    """Positions that are averaged, in tokens: train.context is cut into bins of so many, 64 at most. 0 leaves the suite
    out, and then nothing of it enters the cell's id. Allowed: ≥ 0."""

    def __post_init__(self):
        check_least(self, "eval.positions", width=0)

    def bins(self, context: int) -> list[tuple[int, int]]:
        """[low, high) of the bins of a context; the last one may be narrower."""
        starts = range(0, context, self.width) if self.width else ()
        return [(low, min(low + self.width, context)) for low in starts]

    def check(self, context: int) -> None:
        """Refuse a width that does not fit train.context, or makes a metric of almost every token."""
        least = -(-context // MOST_BINS)
        allowed = f"with train.context={context} it must be 0 (off) or between {least} ({MOST_BINS} bins) and {context}"
        check(self.width == 0 or least <= self.width <= context, "eval.positions.width", self.width, allowed)


MOST_BINS = 64

NIAH_TASKS = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery",
)  # fmt: skip

# Their words are in ratplus.data.needle_words.
NIAH_TEMPLATES = ("ruler", "short", "letters")


@dataclass
class NiahSection:
    """`eval.niah`: needles in a haystack, RULER's eight tasks, from our own seeded generator."""

    tasks: list[str] = field(default_factory=list)
    """Tasks to ask. None leaves the suite out, and then nothing of it enters the cell's id. Allowed: niah_single_1 to
    3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery."""
    samples: int = 50
    """Questions of each task. A tenth of the paper's, for a first look. Allowed: ≥ 1."""
    length: int | None = None
    """Tokens of a prompt and its answer together. Null takes train.context. Allowed: ≥ 16, null."""
    new_tokens: int | None = None
    """Room for the answer, in tokens. Null takes what the longest answer needs, and a little more. Allowed: ≥ 1, null.
    """
    template: str = "ruler"
    """ruler (RULER's words), short (bare `key: value` lines, for contexts of a few hundred bytes) or letters (a letter
    and its value, for models that learn for minutes). Allowed: ruler, short, letters."""
    haystack: str = "held_out"
    """What needles lie in, where the task leaves a choice: held_out (text of the corpus) or noise (one paragraph
    repeated). Allowed: held_out, noise."""
    digits: int | None = None
    """Digits of a number to be found. Null takes the template's (ruler 7, short 4, letters 2). Allowed: ≥ 1, null."""
    seed: int = 0
    """Seed of the questions; the same for every cell, so that cells answer the same ones. 0 is as good as any. Allowed:
    ≥ 0."""

    def __post_init__(self):
        for name in self.tasks:
            check(name in NIAH_TASKS, "eval.niah.tasks", name, f"allowed: {', '.join(NIAH_TASKS)}")
        check_least(self, "eval.niah", samples=1, length=16, new_tokens=1, digits=1, seed=0)
        templates = ", ".join(NIAH_TEMPLATES)
        check(self.template in NIAH_TEMPLATES, "eval.niah.template", self.template, f"allowed: {templates}")
        allowed = ("held_out", "noise")
        check(self.haystack in allowed, "eval.niah.haystack", self.haystack, f"allowed: {', '.join(allowed)}")


@dataclass
class HarnessSection:
    """`eval.harness`: how the tasks of lm-evaluation-harness in `eval.tasks` are run."""

    limit: int | None = None
    """Documents of each task. Null takes all. Allowed: ≥ 1, null."""
    fewshot: int | None = None
    """Examples before each question. Null takes what the task says. Allowed: ≥ 0, null."""
    max_length: int | None = None
    """Longest input, in tokens. Null takes train.context. Allowed: ≥ 2, null."""
    truncation: str = "left"
    """What stays of longer inputs: their end (left, as lm-eval does), both ends (middle, as LongBench does), or
    nothing: an error (off). Allowed: left, middle, off."""

    def __post_init__(self):
        check_least(self, "eval.harness", limit=1, fewshot=0, max_length=2)
        allowed = ("left", "middle", "off")
        check(self.truncation in allowed, "eval.harness.truncation", self.truncation, f"allowed: {', '.join(allowed)}")


@dataclass
class EvalSection:
    """`eval=`: what a cell is evaluated on."""

    text_rows: int = 128
    """Held-out rows of train.context tokens. 128 rows of 512 tell losses apart to about 1%. 0 leaves the loss out, as
    patterns need that have none (SnapKV, pattern.phase=decode). Allowed: ≥ 0."""
    recall_rows: int = 64
    """Rows of the recall task, where data.recall has one. 64 rows of 128 ask 4096 questions. Allowed: ≥ 0."""
    batch: int = 16
    """Rows at a time; changes no result. 16 rows of 512 tokens fit any CPU. Allowed: ≥ 1."""
    efficiency: EfficiencySection = field(default_factory=EfficiencySection)
    cloze: ClozeSection = field(default_factory=ClozeSection)
    niah: NiahSection = field(default_factory=NiahSection)
    positions: PositionsSection = field(default_factory=PositionsSection)
    tasks: list[Any] = field(default_factory=list)
    """Tasks of lm-evaluation-harness: names, paths of local YAML files, or {task: name, key: value} with other values
    for keys of that task's YAML. Needs the extra `eval`. Allowed: a list of those."""
    harness: HarnessSection = field(default_factory=HarnessSection)

    def __post_init__(self):
        check_least(self, "eval", text_rows=0, recall_rows=0, batch=1)
        for task in self.tasks:
            name = task.get("task") if isinstance(task, dict) else task
            allowed = "give a task's name, a YAML file's path or {task: name, ...}"
            check(isinstance(name, str) and bool(name), "eval.tasks", task, allowed)

    def science(self, context: int) -> dict:
        """What decides an evaluation's result, for its id. What is off is left out, so that adding a suite to ratplus
        changes no id."""
        found: dict = {"text_rows": self.text_rows, "recall_rows": self.recall_rows}
        if self.efficiency.enabled:
            found["efficiency"] = asdict(self.efficiency)
        if self.cloze.items:
            context_tokens, continuation_tokens = self.cloze.shape(context)
            found["cloze"] = {
                "version": CLOZE_VERSION, "items": self.cloze.items, "context": context_tokens,
                "continuation": continuation_tokens,
            }  # fmt: skip
        if self.niah.tasks:
            niah = {k: v for k, v in asdict(self.niah).items() if k != "digits" or v}
            found["niah"] = niah | {"version": NIAH_VERSION, "length": self.niah.length or context}
        if self.positions.width:
            found["positions"] = asdict(self.positions) | {"version": POSITIONS_VERSION}
        if self.tasks:
            harness = asdict(self.harness) | {"max_length": self.harness.max_length or context}
            found["harness"] = harness | {"tasks": [_task_identity(task) for task in self.tasks]}
        return found


def is_task_file(task: str) -> bool:
    """Whether an entry of eval.tasks is a path rather than a name."""
    return task.endswith((".yaml", ".yml"))


def _task_identity(task: str | dict) -> str | dict:
    """A local YAML by its content, not by where it lies."""
    if isinstance(task, dict) or not is_task_file(task):
        return task
    try:
        content = read_bytes(task)
    except OSError as error:
        raise ValueError(f"eval.tasks: {task}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a pipe, or gigabytes
        raise ValueError(f"eval.tasks: {task}: cannot be read ({error})") from None
    return {"file": Path(task).name, "sha256": hashlib.sha256(content).hexdigest()}
