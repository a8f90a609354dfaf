"""Typed configuration: the model's and the scientific recipe's. Plain dataclasses, no torch and no Hydra.

The sections mirror the groups of `conf/`. Every `__post_init__` refuses impossible values with a line that names
the key as a user writes it on the command line.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
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
    init_from: str | None = None  # model folder whose weights take the place of pretraining

    def __post_init__(self):
        self.build(vocab_size=1, max_len=1)
        _check(self.init_std > 0, "model.init_std", self.init_std, "it must be > 0")

    def build(self, vocab_size: int, max_len: int) -> ModelConfig:
        shape = {k: v for k, v in vars(self).items() if k not in ("name", "init_std", "init_from")}
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
        _check(self.source in sources, "data.source", self.source, f"allowed: {', '.join(sources)}")
        what = {"hub": "<data set>", "bin": "<token file>", "prepared": "<corpus folder>"}
        _check(
            self.source == "pydocs" or bool(self.path),
            "data.path",
            self.path,
            f"data={self.source} needs path={what.get(self.source, '<file or folder>')}",
        )
        _check(
            0 < self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be between 0 and 1",
        )
        _check(self.split in ("hash", "file"), "data.split", self.split, "allowed: hash, file")
        eos = self.eos
        whole = isinstance(eos, int) and not isinstance(eos, bool)
        _check(eos is None or isinstance(eos, str) or whole, "data.eos", eos, "it must be a token or an id")
        for name, least in (("validation_files", 1), ("workers", 1), ("vocab_size", 1), ("eos_id", 0)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"data.{name}", value, f"it must be ≥ {least}")


@dataclass
class RecipeSection:
    """`train.pretrain`, `train.adapt`: one optimisation run (paper, training settings).

    `sparse` pretrains with the cell's own pattern from scratch, one pretraining a pattern; otherwise it is dense, and
    shared by all patterns.
    """

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
    sparse: bool = False
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
        _check(
            not self.adapt.sparse, "train.adapt.sparse", True, "adaptation trains the cell's pattern anyway; use false"
        )
        _check(not self.adapt.arl, "train.adapt.arl", True, "adaptation trains one pattern alone; set it to false")


@dataclass
class EfficiencySection:
    """`eval.efficiency`: what a cell's pattern costs: exact counts as metrics, measured times beside them.

    Args:
        enabled: whether it is measured; only then does the section enter the cell's id.
        batch: sequences at once.
        prompt_tokens: of each sequence; null: what train.context leaves beside new_tokens.
        new_tokens: decoding steps timed together.
        repeats: timed calls.
        memory_gb: memory (1e9 bytes) that max_batch is counted for.
    """

    enabled: bool = False
    batch: int = 1
    prompt_tokens: int | None = None
    new_tokens: int = 16
    repeats: int = 7
    memory_gb: float = 80.0

    def __post_init__(self):
        for name, least in (("batch", 1), ("prompt_tokens", 1), ("new_tokens", 3), ("repeats", 3)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"eval.efficiency.{name}", value, f"it must be ≥ {least}")
        _check(self.memory_gb > 0, "eval.efficiency.memory_gb", self.memory_gb, "it must be > 0")

    def prompt(self, context: int) -> int:
        """Prompt tokens in a model of this context."""
        return context - self.new_tokens if self.prompt_tokens is None else self.prompt_tokens


@dataclass
class ClozeSection:
    """`eval.cloze`: which of four continuations is the true one, in held-out text.

    Args:
        items: questions; 0 leaves the suite out, and then nothing of it enters the cell's id.
        context_tokens: before the continuation; null: 64, or half of train.context if that is less.
        continuation_tokens: null: 16, or a quarter of train.context if that is less.
    """

    items: int = 0
    context_tokens: int | None = None
    continuation_tokens: int | None = None

    def __post_init__(self):
        for name, least in (("items", 0), ("context_tokens", 1), ("continuation_tokens", 1)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"eval.cloze.{name}", value, f"it must be ≥ {least}")

    def shape(self, context: int) -> tuple[int, int]:
        """(context tokens, continuation tokens) of a model of this context."""
        return (
            self.context_tokens or max(1, min(64, context // 2)),
            self.continuation_tokens or max(1, min(16, context // 4)),
        )


NIAH_TASKS = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery",
)  # fmt: skip


@dataclass
class NiahSection:
    """`eval.niah`: needles in a haystack, RULER's eight tasks, from our own seeded generator.

    Args:
        tasks: names among NIAH_TASKS; none leaves the suite out, and then nothing of it enters the cell's id.
        samples: of each task.
        length: tokens of a prompt and its answer together; null takes train.context.
        new_tokens: room for the answer; null takes what the longest answer needs, and a little more.
        template: ruler (its words) or short (bare `key: value` lines, for contexts of a few hundred bytes).
        haystack: held_out (text of the corpus) or noise (one paragraph repeated), where the task leaves a choice.
        seed: of the generator; the same for every cell, so that cells answer the same questions.
    """

    tasks: list[str] = field(default_factory=list)
    samples: int = 50
    length: int | None = None
    new_tokens: int | None = None
    template: str = "ruler"
    haystack: str = "held_out"
    seed: int = 0

    def __post_init__(self):
        for name in self.tasks:
            _check(name in NIAH_TASKS, "eval.niah.tasks", name, f"allowed: {', '.join(NIAH_TASKS)}")
        for name, least in (("samples", 1), ("length", 16), ("new_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"eval.niah.{name}", value, f"it must be ≥ {least}")
        _check(self.template in ("ruler", "short"), "eval.niah.template", self.template, "allowed: ruler, short")
        allowed = ("held_out", "noise")
        _check(self.haystack in allowed, "eval.niah.haystack", self.haystack, f"allowed: {', '.join(allowed)}")


@dataclass
class HarnessSection:
    """`eval.harness`: how the tasks of lm-evaluation-harness in `eval.tasks` are run.

    Args:
        limit: documents of each task; null takes all.
        fewshot: examples before each question; null takes what the task says.
        max_length: longest input in tokens; null takes train.context.
        truncation: of inputs that are longer: left (their end stays), middle (both ends stay) or off (an error).
    """

    limit: int | None = None
    fewshot: int | None = None
    max_length: int | None = None
    truncation: str = "left"

    def __post_init__(self):
        for name, least in (("limit", 1), ("fewshot", 0), ("max_length", 2)):
            value = getattr(self, name)
            _check(value is None or value >= least, f"eval.harness.{name}", value, f"it must be ≥ {least}")
        allowed = ("left", "middle", "off")
        _check(self.truncation in allowed, "eval.harness.truncation", self.truncation, f"allowed: {', '.join(allowed)}")


@dataclass
class EvalSection:
    """`eval=`: what a cell is evaluated on.

    Args:
        text_rows: held-out rows of train.context tokens.
        recall_rows: rows of the recall task, where data.recall has one.
        batch: rows at a time; does not change results.
        tasks: of lm-evaluation-harness: names, paths of local YAML files, or {task: name, key: value} with other
            values for keys of that task's YAML. Needs the extra `eval`.
    """

    text_rows: int = 128
    recall_rows: int = 64
    batch: int = 16
    efficiency: EfficiencySection = field(default_factory=EfficiencySection)
    cloze: ClozeSection = field(default_factory=ClozeSection)
    niah: NiahSection = field(default_factory=NiahSection)
    tasks: list[Any] = field(default_factory=list)
    harness: HarnessSection = field(default_factory=HarnessSection)

    def __post_init__(self):
        for name, least in (("text_rows", 1), ("recall_rows", 0), ("batch", 1)):
            value = getattr(self, name)
            _check(value >= least, f"eval.{name}", value, f"it must be ≥ {least}")
        for task in self.tasks:
            name = task.get("task") if isinstance(task, dict) else task
            allowed = "give a task's name, a YAML file's path or {task: name, ...}"
            _check(isinstance(name, str) and bool(name), "eval.tasks", task, allowed)

    def science(self, context: int) -> dict:
        """What decides an evaluation's result, for its id. What is off is left out, so that adding a suite to ratplus
        changes no id."""
        found: dict = {"text_rows": self.text_rows, "recall_rows": self.recall_rows}
        if self.efficiency.enabled:
            found["efficiency"] = asdict(self.efficiency)
        if self.cloze.items:
            context_tokens, continuation_tokens = self.cloze.shape(context)
            found["cloze"] = {
                "items": self.cloze.items, "context": context_tokens, "continuation": continuation_tokens,
            }  # fmt: skip
        if self.niah.tasks:
            found["niah"] = asdict(self.niah) | {"length": self.niah.length or context}
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
        content = Path(task).read_bytes()
    except OSError as error:
        raise ValueError(f"eval.tasks: {task}: cannot be read ({error.strerror})") from None
    return {"file": Path(task).name, "sha256": hashlib.sha256(content).hexdigest()}


@dataclass
class RunSection:
    """`run`: where and how work runs. Nothing here changes results, so nothing here enters an id."""

    accelerator: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 20.0
    log_every: int = 10
    save_diff: bool = False

    def __post_init__(self):
        allowed = ("auto", "cpu", "cuda")
        _check(self.accelerator in allowed, "run.accelerator", self.accelerator, f"allowed: {', '.join(allowed)}")
        _check(self.threads is None or self.threads >= 1, "run.threads", self.threads, "it must be ≥ 1 or null")
        _check(self.checkpoint_seconds >= 0, "run.checkpoint_seconds", self.checkpoint_seconds, "it must be ≥ 0")
        _check(self.log_every >= 1, "run.log_every", self.log_every, "it must be ≥ 1")


@dataclass
class LoggerSection:
    """`logger=`: which mirror gets the numbers; a CSV beside the record is always written.

    Keys and tokens are never given here: W&B takes its own from WANDB_API_KEY or `wandb login`.
    """

    wandb: str = "offline"
    project: str = "ratplus"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoints: bool = False

    def __post_init__(self):
        allowed = ("offline", "online", "none")
        _check(self.wandb in allowed, "logger.wandb", self.wandb, f"allowed: {', '.join(allowed)}")
        plain = 1 <= len(self.project) <= 128 and not set(self.project) & set("/\\#?%:")
        _check(plain, "logger.project", self.project, "it must have 1 to 128 characters, none of / \\ # ? % :")
        for tag in self.tags:
            _check(1 <= len(tag) <= 64, "logger.tags", tag, "a W&B tag has 1 to 64 characters")


@dataclass
class LauncherSection:
    """`launcher=`: where cells run, each in a process of its own. Keys of another kind of launcher are refused.

    Args:
        kind: local (processes of this machine), slurm (jobs of a cluster, through submitit) or ray (tasks of Ray).
        workers: cells at once; null leaves it to the cluster (slurm, ray).
        threads: CPU threads of each cell; null divides the cores (local) or takes all `cpus` (slurm, ray).
        gpus: GPUs of each cell; null takes trainer.devices where there are some (local), else none are asked for.
        cpus: CPU cores of each cell (slurm, ray).
        address: of a running Ray cluster; null starts a local one.
        cluster: slurm, or local for a rehearsal of the jobs on this machine.
        minutes: time limit of a job; when it nears, training saves its state and the job queues again.
        requeues: how often a job may queue again after its time limit; preemption does not count.
        grace_seconds: between the signal that tells a job to save and its end.
        memory_gb: memory of a job, GB; null leaves it to the cluster.
        array_size: most tasks of one job array, as the cluster allows.
        wait: stay until the jobs have ended and write the report, rather than submit and exit.
        setup: shell lines to run before the job (modules to load); they are stored, so no keys here.
        sbatch: other options of sbatch, {name: value}.
    """

    kind: str = "local"
    workers: int | None = 1
    threads: int | None = 1
    gpus: int | None = None
    cpus: int | None = None
    address: str | None = None
    cluster: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = 60
    requeues: int = 10
    grace_seconds: int = 120
    memory_gb: float | None = None
    array_size: int = 1000
    wait: bool = False
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        _check(self.kind in ("local", "slurm", "ray"), "launcher.kind", self.kind, "allowed: local, slurm, ray")
        needed = self.kind == "local"
        _check(not needed or self.workers is not None, "launcher.workers", self.workers,
               "launcher=local needs a whole number ≥ 1")  # fmt: skip
        for name, least in (("workers", 1), ("threads", 1), ("gpus", 0), ("cpus", 1), ("minutes", 1), ("requeues", 0),
                            ("grace_seconds", 10), ("memory_gb", 0.1), ("array_size", 1)):  # fmt: skip
            value = getattr(self, name)
            _check(value is None or value >= least, f"launcher.{name}", value, f"it must be ≥ {least}")
        _check(self.cluster in ("slurm", "local"), "launcher.cluster", self.cluster, "allowed: slurm, local")
        # Ignoring a key would let somebody wait for GPUs that nobody asked for.
        common = {"kind", "workers", "threads", "gpus"}
        own = {"local": common, "ray": common | {"cpus", "address"}}.get(self.kind)
        own = own or {f.name for f in fields(self)} - {"address"}
        for f in fields(self):
            default = f.default if f.default is not MISSING else f.default_factory()
            _check(f.name in own or getattr(self, f.name) == default, f"launcher.{f.name}", getattr(self, f.name),
                   f"launcher={self.kind} has no such key; allowed: {', '.join(sorted(own - {'kind'}))}")  # fmt: skip
        if self.kind == "slurm":
            _check(self.grace_seconds < self.minutes * 60, "launcher.grace_seconds", self.grace_seconds,
                   f"it must be less than launcher.minutes={self.minutes}")  # fmt: skip


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
        efficiency, context = self.eval.efficiency, self.train.context
        _check(
            not efficiency.enabled or 1 <= efficiency.prompt(context) <= context - efficiency.new_tokens,
            "eval.efficiency.prompt_tokens",
            efficiency.prompt_tokens,
            f"with eval.efficiency.new_tokens={efficiency.new_tokens} it must fit train.context={self.train.context}",
        )
        cloze = self.eval.cloze
        _check(cloze.items == 0 or sum(cloze.shape(context)) <= context, "eval.cloze.context_tokens",
               cloze.context_tokens, f"with {cloze.shape(context)[1]} tokens of continuation it must fit "
               f"train.context={context}")  # fmt: skip
        lengths = {"niah.length": self.eval.niah.length, "harness.max_length": self.eval.harness.max_length}
        for key, value in lengths.items():
            _check(value is None or value <= context, f"eval.{key}", value, f"it must be ≤ train.context={context}")
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
