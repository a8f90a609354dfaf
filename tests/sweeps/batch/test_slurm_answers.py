"""What SLURM answers, and what is made of it: states, reasons, refusals, ends; and that nobody waits for long."""

import time

import pytest
from pretended_slurm import pretend_slurm

from ratplus.sweeps.batch import slurm
from ratplus.sweeps.batch.reasons import LiveJob, changed_keys_lines, held, hopeless, queue_lines, stuck
from ratplus.sweeps.batch.refusals import refusal


@pytest.fixture
def notes(tmp_path, monkeypatch):
    return pretend_slurm(tmp_path, monkeypatch)


def test_states_of_jobs(notes):
    (notes / "queue").write_text(
        "1 PENDING Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions\n"
        "2_0 RUNNING None\n2_1 SUSPENDED None\n2_2 COMPLETED None\n3 REQUEUE_HOLD launch failed requeued held\n"
        "4 CANCELLED None\n5 PREEMPTED None\n6 OUT_OF_MEMORY OutOfMemory\n7 PENDING (null)\nCLUSTER:\n"
    )
    assert slurm.queue() == {
        "1": ("queued", "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"),
        "2_0": ("running", ""), "2_1": ("running", ""), "3": ("queued", "launch failed requeued held"),
        "7": ("queued", ""),
    }  # fmt: skip


def test_one_controller_of_two_is_enough(notes):
    (notes / "unreachable").write_text("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP\n")
    assert slurm.queue() == {}
    (notes / "unreachable").write_text("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is DOWN\n")
    with pytest.raises(slurm.SlurmError, match="SLURM's controller cannot be reached: Slurmctld.primary. at a is DOWN"):
        slurm.queue()


def test_a_controller_that_answers_in_other_words_is_there(notes):
    """Its exit code says that it is; words differ between versions."""
    (notes.parent / "tools" / "scontrol").write_text("#!/bin/sh\necho ok\n")
    assert slurm.queue() == {}


def test_a_silent_controller_is_not_waited_for(notes, monkeypatch):
    monkeypatch.setattr(slurm, "SECONDS", 0.3)
    (notes.parent / "tools" / "scontrol").write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    with pytest.raises(slurm.SlurmError, match="scontrol: no answer within 0.3 s"):
        slurm.queue()
    assert time.monotonic() - began < 10


def test_how_jobs_ended(notes):
    (notes / "ended-1").write_text("JobId=1 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15 BatchHost=n1\n")
    (notes / "ended-2").write_text("JobId=9 ArrayJobId=2 JobState=COMPLETED ExitCode=0:0\n"
                                   "JobId=2 ArrayJobId=2 JobState=CANCELLED ExitCode=0:0\n")  # fmt: skip
    (notes / "ended-3").write_text("JobId=3 JobState=RUNNING ExitCode=0:0 BatchHost=n1\n")
    (notes / "accounts").write_text("4_1|CANCELLED by 1000|0:0|None assigned\n5|NODE_FAIL|1:0|n3\n6|RUNNING|0:0|n4\n")
    found = slurm.ends(["1", "2_7", "3", "4_1", "5", "6", "8"])
    assert {job: str(end) for job, end in found.items()} == {
        "1": "TIMEOUT, signal 15, on n1", "2_7": "CANCELLED", "4_1": "CANCELLED", "5": "NODE_FAIL, exit code 1, on n3",
    }  # fmt: skip
    (notes / "accounts").unlink()
    assert slurm.ends(["5"]) == {}


def test_reasons_that_do_not_pass():
    for reason in ("PartitionTimeLimit", "QOSMaxCpuPerJobLimit", "AssocMaxWallDurationPerJobLimit", "InvalidQOS"):
        assert hopeless(reason), reason
    for reason in ("Priority", "Resources", "Dependency", "QOSGrpCpuLimit", "AssocGrpNodeLimit", "BeginTime", "",
                   "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail, UnavailableNodes:n1", "JobHeldUser"):  # fmt: skip
        assert not hopeless(reason), reason
    assert held("JobHeldAdmin")
    assert held("launch failed requeued held")
    assert not held("Priority")


def test_lines_on_the_queue():
    keys = {"minutes": 240, "qos": None}
    jobs = [LiveJob(f"7_{i}", "queued", "Priority", keys) for i in range(3)] + [LiveJob("8", "running", "", keys)]
    late = [LiveJob(f"9_{i}", "queued", "PartitionTimeLimit", keys) for i in range(2)]
    kept = [LiveJob("10", "queued", "JobHeldUser", {})]
    assert queue_lines(jobs + late + kept) == [
        "queued, with SLURM's reason: 3 Priority",
        "2 jobs (9) can never start, SLURM says PartitionTimeLimit (more time than is allowed); change "
        "launcher.minutes=240: `scancel 9`, then the same command again",
        "1 job (10) is held, SLURM says JobHeldUser; `scontrol release 10` lets it start",
    ]
    assert queue_lines([LiveJob("1", "queued", "Odd\x1b[2J", {})]) == ["queued, with SLURM's reason: 1 Odd\\x1b[2J"]
    waits = LiveJob("11", "queued", "Dependency", keys)
    assert stuck([*late, waits])
    assert not stuck([waits])
    assert not stuck([*late, *jobs])
    assert not stuck([*late, *kept])
    assert not stuck([])


def test_lines_on_changed_keys():
    before = {"minutes": 60, "partition": None, "gone": 1}
    jobs = [LiveJob("7_0", "queued", "", before), LiveJob("7_1", "running", "", before), LiveJob("8", "queued")]
    assert changed_keys_lines(jobs, {"minutes": 60, "partition": None, "new": 3}) == []
    (line,) = changed_keys_lines(jobs, {"minutes": 60, "partition": "gpu"})
    assert line == (
        "2 jobs are queued or running with launcher.partition=null and stay so (given now: launcher.partition=gpu); to "
        "change that: `scancel 7`, then the same command again"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition",
         "invalid partition specified: x; Invalid partition (see launcher.partition=x)"),
        ("/opt/slurm/bin/sbatch: unrecognized option '--frob'\nTry \"sbatch --help\" for more information",
         "unrecognized option '--frob' (see launcher.sbatch={})"),
        ("sbatch: fatal: --mem and --mem-per-cpu are mutually exclusive.",
         "--mem and --mem-per-cpu are mutually exclusive. (see launcher.memory_gb=4)"),
        ("sbatch: error: \x1b[31mask help@example.org\nsbatch: error: Batch job submission failed: Unspecified error",
         "\\x1b[31mask help@example.org; Unspecified error"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_words_of_sbatch(said, told):
    keys = {"partition": "x", "memory_gb": 4, "sbatch": {}}
    assert refusal(RuntimeError(said), keys) == f"sbatch refused the jobs: {told}"


def test_a_refusal_without_words():
    assert refusal(RuntimeError(" \n"), {}) == "sbatch refused the jobs and said nothing (RuntimeError)"


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("MaxArraySize            = 1001\n", 1001),
        ("MaxArraySize = 1001\nSchedulerParameters = bf_max,max_array_tasks=50,x\n", 50),
        ("MaxArraySize = 20\nSchedulerParameters = max_array_tasks=50\n", 20),
        ("MaxArraySize = 0\n", 1),  # which forbids arrays
        ("ClusterName = x\n", None),
    ],
)
def test_the_smallest_limit_of_arrays_counts(monkeypatch, config, most):
    monkeypatch.setattr(slurm, "ask", lambda *words: config)
    assert slurm.most_in_array() == most
