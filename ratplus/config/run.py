"""`run`, `logger=`, `launcher=`, `trainer=`: where and how work runs. Nothing here changes results, or enters an id."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ratplus.config.check import check


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
        check(self.accelerator in allowed, "run.accelerator", self.accelerator, f"allowed: {', '.join(allowed)}")
        check(self.threads is None or self.threads >= 1, "run.threads", self.threads, "it must be ≥ 1 or null")
        check(self.checkpoint_seconds >= 0, "run.checkpoint_seconds", self.checkpoint_seconds, "it must be ≥ 0")
        check(self.log_every >= 1, "run.log_every", self.log_every, "it must be ≥ 1")


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
        check(self.wandb in allowed, "logger.wandb", self.wandb, f"allowed: {', '.join(allowed)}")
        plain = 1 <= len(self.project) <= 128 and not set(self.project) & set("/\\#?%:")
        check(plain, "logger.project", self.project, "it must have 1 to 128 characters, none of / \\ # ? % :")
        for tag in self.tags:
            check(1 <= len(tag) <= 64, "logger.tags", tag, "a W&B tag has 1 to 64 characters")


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
        check(self.kind in ("local", "slurm", "ray"), "launcher.kind", self.kind, "allowed: local, slurm, ray")
        needed = self.kind == "local"
        check(not needed or self.workers is not None, "launcher.workers", self.workers,
               "launcher=local needs a whole number ≥ 1")  # fmt: skip
        for name, least in (("workers", 1), ("threads", 1), ("gpus", 0), ("cpus", 1), ("minutes", 1), ("requeues", 0),
                            ("grace_seconds", 10), ("memory_gb", 0.1), ("array_size", 1)):  # fmt: skip
            value = getattr(self, name)
            check(value is None or value >= least, f"launcher.{name}", value, f"it must be ≥ {least}")
        check(self.cluster in ("slurm", "local"), "launcher.cluster", self.cluster, "allowed: slurm, local")
        # Ignoring a key would let somebody wait for GPUs that nobody asked for.
        common = {"kind", "workers", "threads", "gpus"}
        own = {"local": common, "ray": common | {"cpus", "address"}}.get(self.kind)
        own = own or {f.name for f in fields(self)} - {"address"}
        for f in fields(self):
            default = f.default if f.default is not MISSING else f.default_factory()
            check(f.name in own or getattr(self, f.name) == default, f"launcher.{f.name}", getattr(self, f.name),
                   f"launcher={self.kind} has no such key; allowed: {', '.join(sorted(own - {'kind'}))}")  # fmt: skip
        if self.kind == "slurm":
            check(self.grace_seconds < self.minutes * 60, "launcher.grace_seconds", self.grace_seconds,
                   f"it must be less than launcher.minutes={self.minutes}")  # fmt: skip


@dataclass
class TrainerSection:
    """`trainer=`: how one training run is spread over devices. Changes no result beyond the order of float sums.

    Args:
        strategy: single, ddp or fsdp.
        devices, nodes: processes of a machine, and machines.
        activation_checkpointing: keep only each block's input for the backward pass and compute the block again there:
            same bits, a third more work, a fraction of the memory of activations.
        compile: torch.compile of each block; sums within a block may be taken in another order.
    """

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self):
        allowed = ("single", "ddp", "fsdp")
        check(self.strategy in allowed, "trainer.strategy", self.strategy, f"allowed: {', '.join(allowed)}")
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            check(value >= 1, f"trainer.{name}", value, "it must be ≥ 1")
            alone = self.strategy != "single" or value == 1
            check(alone, f"trainer.{name}", value, "more than one needs trainer=ddp or trainer=fsdp")
