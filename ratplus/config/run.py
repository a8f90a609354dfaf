"""`run`, `logger=`, `launcher=`, `trainer=`: where and how work runs. Nothing here changes results, or enters an id."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from ratplus.config.check import check, check_least


@dataclass
class RunSection:
    """`run`: where and how work runs. Nothing here changes results, so nothing here enters an id."""

    accelerator: str = "auto"
    """Device of training and evaluation. auto takes CUDA where there is some, so that one command fits every machine.
    Allowed: auto, cpu, cuda."""
    threads: int | None = None
    """CPU threads of a stage. Null leaves torch's own choice, or the launcher's. Allowed: ≥ 1, null."""
    checkpoint_seconds: float = 20.0
    """Seconds between two saved training states: at most so much is lost to a kill. 20 cost a small model nothing;
    large states want 1800 and more. Allowed: ≥ 0."""
    log_every: int = 10
    """Steps between two points of the learning curve. Ten keep files small and curves smooth. Allowed: ≥ 1."""
    nonfinite_steps: int = 3
    """Training steps in a row whose loss or gradient norm is not finite (NaN or infinite) before the stage fails. A
    few, since no such run was ever seen to recover, while a single overflow may pass. Allowed: ≥ 1."""
    save_diff: bool = False
    """Whether the diff of a checkout with uncommitted changes is kept as provenance/<sha256>.diff. False, since a diff
    may hold what nobody meant to share."""
    store: str | None = None
    """Folder in which sweeps share finished stages: those that it has are taken from there instead of trained again.
    Null keeps every sweep to itself. Allowed: a folder, null."""

    def __post_init__(self):
        allowed = ("auto", "cpu", "cuda")
        check(self.accelerator in allowed, "run.accelerator", self.accelerator, f"allowed: {', '.join(allowed)}")
        check(self.threads is None or self.threads >= 1, "run.threads", self.threads, "it must be ≥ 1 or null")
        printable = self.store is None or (bool(self.store) and self.store.isprintable())
        check(
            printable, "run.store", self.store, "it must be the name of a folder, without control characters, or null"
        )
        check_least(self, "run", checkpoint_seconds=0, log_every=1, nonfinite_steps=1)


@dataclass
class LoggerSection:
    """`logger=`: which mirror gets the numbers; a CSV beside the record is always written.

    Keys and tokens are never given here: W&B takes its own from WANDB_API_KEY or `wandb login`.
    """

    wandb: str = "offline"
    """W&B runs: written below the sweep folder (offline), sent as they come (online), or none. Offline needs neither
    account nor network. Allowed: offline, online, none."""
    project: str = "ratplus"
    """W&B project that runs go to; made where there is none. Allowed: 1 to 128 characters, none of / \\ # ? % :."""
    entity: str | None = None
    """W&B user or team. Null takes your own default. Allowed: any text, null."""
    tags: list[str] = field(default_factory=list)
    """Tags of every run, beside the model's name, the stage and the pattern. Allowed: a list of texts of 1 to 64
    characters."""
    checkpoints: bool = False
    """Whether each trained model is also kept as a W&B artifact. False, since models are large."""

    def __post_init__(self):
        allowed = ("offline", "online", "none")
        check(self.wandb in allowed, "logger.wandb", self.wandb, f"allowed: {', '.join(allowed)}")
        plain = 1 <= len(self.project) <= 128 and not set(self.project) & set("/\\#?%:")
        check(plain, "logger.project", self.project, "it must have 1 to 128 characters, none of / \\ # ? % :")
        for tag in self.tags:
            check(1 <= len(tag) <= 64, "logger.tags", tag, "a W&B tag has 1 to 64 characters")


@dataclass
class LauncherSection:
    """`launcher=`: where cells run, each in a process of its own. Keys of another kind of launcher are refused."""

    kind: str = "local"
    """Processes of this machine (local), jobs of a cluster through submitit (slurm), or tasks of Ray (ray). Allowed:
    local, slurm, ray."""
    workers: int | None = 1
    """Cells at once. Null leaves it to the cluster (slurm, ray). Allowed: ≥ 1, null."""
    threads: int | None = 1
    """CPU threads of each cell. Null divides the machine's cores by the workers (local), or takes all cpus (slurm,
    ray). Allowed: ≥ 1, null."""
    gpus: int | None = None
    """GPUs of each cell. Null takes trainer.devices where there are GPUs (local), else none are asked for. Allowed: ≥
    0, null."""
    cpus: int | None = None
    """CPU cores of each cell (slurm, ray). Null takes one. Allowed: ≥ 1, null."""
    address: str | None = None
    """Address of a running Ray cluster: auto or HOST:PORT. Null starts one on this machine. Allowed: any text, null."""
    cluster: str = "slurm"
    """slurm, or local: the same jobs as processes of this machine, as a rehearsal. Allowed: slurm, local."""
    partition: str | None = None
    """SLURM's partition. Null takes the cluster's default. Allowed: any text, null."""
    account: str | None = None
    """SLURM's account. Null takes the cluster's default. Allowed: any text, null."""
    qos: str | None = None
    """SLURM's quality of service. Null takes the cluster's default. Allowed: any text, null."""
    constraint: str | None = None
    """Features (SLURM's --constraint) that SLURM's nodes must have. Null asks for none. Allowed: any text, null."""
    minutes: int = 60
    """Time limit of a job, in minutes. When it nears, training saves its state and the job queues again; so a short
    one, which schedulers start sooner. Allowed: ≥ 1."""
    requeues: int = 10
    """How often a job may queue again after its time limit; preemption does not count. Ten keeps a job that makes no
    progress from going on for ever. Allowed: ≥ 0."""
    grace_seconds: int = 120
    """Seconds between the signal that tells a job to save and its end; as long as saving its state takes. Allowed: ≥
    10."""
    memory_gb: float | None = None
    """Memory of a job, in GB (1e9 bytes). Null leaves it to the cluster. Allowed: ≥ 0.1, null."""
    array_size: int = 1000
    """Most tasks of one job array; longer sweeps become several. SLURM's own default of MaxArraySize allows 1000.
    Allowed: ≥ 1."""
    wait: bool = False
    """Whether `ratplus sweep` stays until the jobs have ended and writes the report. False submits and exits: a login
    node may end long processes."""
    setup: list[str] = field(default_factory=list)
    """Shell lines to run before the job, such as `module load cuda`. They are stored with the sweep, so no keys here.
    Allowed: a list of lines."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Other options of sbatch. Allowed: a mapping {option: value}."""

    def __post_init__(self):
        check(self.kind in ("local", "slurm", "ray"), "launcher.kind", self.kind, "allowed: local, slurm, ray")
        needed = self.kind == "local"
        check(not needed or self.workers is not None, "launcher.workers", self.workers,
               "launcher=local needs a whole number ≥ 1")  # fmt: skip
        check_least(
            self, "launcher", workers=1, threads=1, gpus=0, cpus=1, minutes=1, requeues=0, grace_seconds=10,
            memory_gb=0.1, array_size=1,
        )  # fmt: skip
        check(self.cluster in ("slurm", "local"), "launcher.cluster", self.cluster, "allowed: slurm, local")
        # Ignoring a key would let somebody wait for GPUs that nobody asked for.
        common = {"kind", "workers", "threads", "gpus"}
        own = {"local": common, "ray": common | {"cpus", "address"}}.get(self.kind)
        own = own or {f.name for f in fields(self)} - {"address"}
        for f in fields(self):
            default = f.default_factory() if callable(f.default_factory) else f.default
            check(f.name in own or getattr(self, f.name) == default, f"launcher.{f.name}", getattr(self, f.name),
                   f"launcher={self.kind} has no such key; allowed: {', '.join(sorted(own - {'kind'}))}")  # fmt: skip
        # Each becomes a line of the job script, so one with a line break would become two, and the second a command.
        lines = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint", "address")}
        for key, value in self.sbatch.items():
            check(re.fullmatch(r"[A-Za-z][\w-]*", str(key)) is not None, "launcher.sbatch", key,
                   "an option of sbatch has letters, digits, - and _")  # fmt: skip
            lines[f"sbatch.{key}"] = value
        for key, value in lines.items():
            check(value is None or str(value).isprintable(), f"launcher.{key}", value,
                   "control characters and line breaks are not allowed")  # fmt: skip
        if self.kind == "slurm":
            check(self.grace_seconds < self.minutes * 60, "launcher.grace_seconds", self.grace_seconds,
                   f"it must be less than launcher.minutes={self.minutes}")  # fmt: skip


@dataclass
class TrainerSection:
    """`trainer=`: how one training run is spread over devices. Changes no result beyond the order of float sums."""

    strategy: str = "single"
    """One process (single), a copy of the model in each (ddp), or weights, gradients and optimizer state cut into
    shares (fsdp). Allowed: single, ddp, fsdp."""
    devices: int = 1
    """Processes of each machine, one a GPU. More than one needs ddp or fsdp. Allowed: ≥ 1."""
    nodes: int = 1
    """Machines. More than one needs ddp or fsdp, and torchrun or srun on each. Allowed: ≥ 1."""
    activation_checkpointing: bool = False
    """Whether only each block's input is kept for the backward pass and the block computed again there: the same bits,
    a third more work, a fraction of the memory of activations. False, since small models fit as they are."""
    compile: bool = False
    """Whether each block goes through torch.compile; sums within a block may then be taken in another order. False,
    since compiling takes longer than a small model's training."""

    def __post_init__(self):
        allowed = ("single", "ddp", "fsdp")
        check(self.strategy in allowed, "trainer.strategy", self.strategy, f"allowed: {', '.join(allowed)}")
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            check(value >= 1, f"trainer.{name}", value, "it must be ≥ 1")
            alone = self.strategy != "single" or value == 1
            check(alone, f"trainer.{name}", value, "more than one needs trainer=ddp or trainer=fsdp")
