"""Which variables a command of SLURM and a job inherit, in each case that decides one."""

import os

import pytest

from ratplus.config.run import LauncherSection
from ratplus.sweeps.batch.environment import clean_environment, submitting_environment

SITE = {"SLURM_CONF": "c", "SLURM_CONF_SERVER": "s", "SLURM_JWT": "t", "SLURM_CLUSTERS": "x", "HOME": "/home/a"}
OF_A_JOB = {"SLURM_NTASKS": "2", "SLURMD_NODENAME": "n", "SALLOC_A": "1", "PMIX_RANK": "0", "PMI_RANK": "0"}
DEVICES = {"CUDA_VISIBLE_DEVICES": "5", "ROCR_VISIBLE_DEVICES": "5", "ZE_AFFINITY_MASK": "5", "GPU_DEVICE_ORDINAL": "5"}
DEFAULTS = {"SBATCH_PARTITION": "p", "SBATCH_ACCOUNT": "a", "SBATCH_QOS": "q", "SBATCH_CONSTRAINT": "k"}


@pytest.mark.parametrize("job", ["SLURM_JOB_ID", "SLURM_JOBID"])
def test_devices_of_an_allocation_are_dropped_and_those_of_a_user_kept(job):
    """Older versions of SLURM know the second name alone."""
    assert clean_environment(SITE | OF_A_JOB | DEVICES | {job: "7"}) == SITE
    assert clean_environment(SITE | OF_A_JOB | DEVICES) == SITE | DEVICES
    assert clean_environment({"SLURMISH": "1", "MY_SLURM_X": "1"}) == {"SLURMISH": "1", "MY_SLURM_X": "1"}


def test_a_users_defaults_count_where_the_launcher_says_nothing():
    assert clean_environment(DEFAULTS | {"SBATCH_TIMELIMIT": "1"}) == {}
    empty = LauncherSection(kind="slurm")
    assert clean_environment(DEFAULTS | {"SBATCH_TIMELIMIT": "1"}, empty) == DEFAULTS
    for name in DEFAULTS:
        given = LauncherSection(kind="slurm", **{name.removeprefix("SBATCH_").lower(): "mine"})
        assert clean_environment(DEFAULTS, given).keys() == DEFAULTS.keys() - {name}


def test_the_commands_own_variables_are_there_again(monkeypatch):
    for name, value in (OF_A_JOB | DEFAULTS).items():
        monkeypatch.setenv(name, value)
    with submitting_environment(LauncherSection(kind="slurm", qos="mine")):
        assert not os.environ.keys() & (OF_A_JOB.keys() | {"SBATCH_QOS"})
        assert os.environ["SBATCH_ACCOUNT"] == "a"
    assert {name: os.environ[name] for name in OF_A_JOB | DEFAULTS} == OF_A_JOB | DEFAULTS
