"""The environment in which commands of SLURM are called and from which jobs inherit: the caller's, but not its job.

Whoever works inside an allocation (salloc, a notebook's job) has dozens of SLURM_* variables. sbatch hands them on, and
srun takes those of the caller for options of the new job: each job then dies at once ("SLURM_MEM_PER_CPU,
SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive"). Variables that are options also outweigh what stands
in a job script: SBATCH_TIMELIMIT would replace launcher.minutes, and SQUEUE_STATES hide jobs that wait.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from ratplus.config.run import LauncherSection

_OF_A_JOB = re.compile(r"(SLURMD?|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SCONTROL|SINFO|SACCT|SUBMITIT|PMIX?)_")
# Where the cluster is and who one is there.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
# Defaults that users have in their profile, where the launcher's key says nothing.
_DEFAULTS = {
    "SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
}  # fmt: skip
# Devices of the allocation, which are not those of the job.
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")


def clean_environment(environment: Mapping[str, str], launcher: LauncherSection | None = None) -> dict[str, str]:
    """An environment without the job that it belongs to.

    Args:
        launcher: whose keys outweigh the user's SBATCH_* defaults; None keeps no such default.
    """
    dropped = set(_DEVICES) if "SLURM_JOB_ID" in environment or "SLURM_JOBID" in environment else set()
    kept = set(_KEPT)
    if launcher is not None:
        kept |= {name for name, key in _DEFAULTS.items() if getattr(launcher, key) is None}
    return {
        name: value for name, value in environment.items()
        if name in kept or not (_OF_A_JOB.match(name) or name in dropped)
    }  # fmt: skip


@contextmanager
def submitting_environment(launcher: LauncherSection) -> Generator[None]:
    """This process has a clean environment within: submitit hands on that of its caller to sbatch and to processes."""
    before = dict(os.environ)
    clean = clean_environment(before, launcher)
    for name in before.keys() - clean.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)
