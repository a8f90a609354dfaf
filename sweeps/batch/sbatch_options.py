"""What a job asks the cluster for: CPUs, memory and GPUs of its one node, and the options of `launcher.sbatch`."""

from __future__ import annotations

from typing import Any

from ratplus.config.run import LauncherSection
from ratplus.sweeps.define.mistakes import UsageError

# Options that have a key of their own, which other parts of the launcher read too.
_OWN_KEYS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "time": "minutes",
    "cpus_per_task": "cpus", "mem": "memory_gb", "signal": "grace_seconds",
}  # fmt: skip
# Options by which the launcher finds its jobs, their logs and their order again.
_OURS = (
    "array", "dependency", "error", "input", "no_requeue", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output",
    "parsable", "requeue", "test_only", "wait", "wrap",
)  # fmt: skip
_GPU_OPTIONS = ("gpus", "gpus_per_node", "gpus_per_socket", "gpus_per_task")
_MEMORY_OPTIONS = ("mem_per_cpu", "mem_per_gpu")


def sbatch_options(launcher: LauncherSection) -> dict[str, Any]:
    """The options of `launcher.sbatch`, named with `_`; true is an option without a value, false and null are none.

    Raises:
        UsageError: an option that has a key of its own, or that only the launcher can decide.
    """
    found = {}
    for name, value in launcher.sbatch.items():
        option = str(name).replace("-", "_")
        if option in _OWN_KEYS:
            raise UsageError(
                f"launcher.sbatch: {name}={value}: that is launcher.{_OWN_KEYS[option]}, which the launcher also reads "
                "elsewhere; set it there"
            )
        if option in _OURS:
            raise UsageError(f"launcher.sbatch: {name}={value}: the launcher itself decides this option; leave it out")
        if value is not None and value is not False:
            found[option] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return found


def resources(launcher: LauncherSection) -> dict[str, Any]:
    """CPUs, memory and GPUs of a job as submitit's parameters.

    What `launcher.sbatch` asks for in another way is not asked for twice, as SLURM refuses both --mem and
    --mem-per-cpu. A job without GPUs says nothing of them, since clusters without GPUs refuse the option.
    """
    options = sbatch_options(launcher)
    asked: dict[str, Any] = {"cpus_per_task": launcher.cpus or 1}
    if launcher.memory_gb is not None and not any(name in options for name in _MEMORY_OPTIONS):
        asked["mem_gb"] = launcher.memory_gb
    other = any(name in options for name in _GPU_OPTIONS) or "gpu" in str(options.get("gres", ""))
    if launcher.gpus and not other:
        asked["gpus_per_node"] = launcher.gpus
    return asked


def check_gpus(launcher: LauncherSection, devices: int, accelerator: str) -> None:
    """Refuse jobs that have fewer GPUs than their training has processes.

    Args:
        devices: `trainer.devices`.
        accelerator: `run.accelerator`.

    Raises:
        UsageError: there are too few.
    """
    if launcher.gpus and devices > launcher.gpus and accelerator != "cpu":
        raise UsageError(
            f"launcher.gpus={launcher.gpus}: each cell's training has trainer.devices={devices} processes, one a GPU; "
            f"give launcher.gpus={devices}"
        )
