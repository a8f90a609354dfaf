"""`launcher=slurm` on a real cluster of one node (cluster.py): submission, failure, waiting and queueing again.

`make test-slurm`; no part of `make test`. A job runs the tiniest training there is, on one CPU.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cli_runs import RATPLUS, TINY, ratplus_here, wait_for
from cluster import NoCluster, RealCluster

from ratplus.sweeps.launch import slurm as launch_slurm

pytestmark = pytest.mark.slurm

MOST_IN_ARRAY = 5
SLURM = [
    "launcher=slurm", "launcher.gpus=0", "launcher.cpus=1", "launcher.memory_gb=2", "launcher.minutes=10",
    "launcher.grace_seconds=60",
]  # fmt: skip
PATTERNS = "pattern=dense,dilated"
HOLD = "launcher.sbatch={hold: true}"


@pytest.fixture(scope="module")
def running():
    try:
        with RealCluster(cpus=4, most_in_array=MOST_IN_ARRAY) as cluster:
            yield cluster
    except NoCluster as error:
        pytest.skip(f"no real SLURM here: {error}")


@pytest.fixture
def cluster(running, monkeypatch):
    monkeypatch.setenv("PATH", f"{running.tools}:{os.environ['PATH']}")
    yield running
    running.cancel_all()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


def sweep(place: Path, *words: str) -> subprocess.CompletedProcess:
    return ratplus_here(place, "sweep", "-m", *TINY, "output=out", *SLURM, *words)


def status(place: Path) -> dict:
    return json.loads(ratplus_here(place, "status", "out", "--json").stdout)


def test_inside_an_allocation_jobs_run_to_their_end(cluster, place):
    """salloc's own limits stand in SLURM_* variables that are no business of the jobs."""
    allocation = ["salloc", "--quiet", "--ntasks=1", "--mem-per-cpu=100", "--time=20"]
    command = [RATPLUS, "sweep", "-m", *TINY, "output=out", *SLURM, PATTERNS, "launcher.wait=true"]
    done = subprocess.run([*allocation, *command], cwd=place, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted 3 jobs (1 pretrainings, 2 cells)" in done.stdout
    assert "2 done; table: out/report/accuracy_vs_dilation.md" in done.stdout
    (logs,) = (place / "out" / "logs" / "slurm").iterdir()
    assert re.fullmatch("[0-9a-f]{32}", logs.name)
    # Everything that a job left is in the submission's own folder.
    assert len(list(logs.glob("*_submitted.pkl"))) == 3
    assert len(list(logs.glob("*_log.out"))) == 3


@pytest.mark.parametrize("lines", ["[exit 7]", "['kill -9 $$']"])
def test_a_job_that_ends_before_our_code_is_a_recorded_failure(cluster, place, lines):
    done = sweep(place, PATTERNS, f"launcher.setup={lines}", "launcher.wait=true")
    assert done.returncode == 1, done.stdout
    how = "FAILED, exit code 7" if "exit" in lines else "FAILED, signal 9"
    assert re.search(rf"batch job \d+ ended \({how}, on localhost\) and left no record", done.stderr), done.stderr
    assert "2 of 2 cells failed" in done.stderr
    (record,) = (place / "out").glob("pretrain/*/record.json")
    error = json.loads(record.read_text())["error"]
    assert (error["host"], error["attempt"]) == ("localhost", 1)
    assert "_" not in error["message"].split()[2]  # it is the job of the pretraining that is told
    assert status(place)["counts"] == {"failed": 2}


def test_a_cancelled_job_is_told_as_that(cluster, place):
    assert sweep(place, PATTERNS, HOLD).returncode == 0
    cluster.cancel_all()
    found = status(place)
    assert found["counts"] == {"failed": 2}
    assert "(CANCELLED" in found["cells"][0]["error"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("launcher.partition=nope", "invalid partition specified: nope; Invalid partition name specified (see launcher"
         ".partition=nope)"),
        ("launcher.constraint=h100", "Invalid feature specification (see launcher.constraint=h100)"),
        ("launcher.gpus=9", "Requested node configuration is not available (see launcher.cpus=1 "),
        ("launcher.memory_gb=9000", "Memory specification can not be satisfied"),
        ("launcher.sbatch={frob: 1}", "unrecognized option '--frob=1' (see launcher.sbatch={'frob': 1})"),
    ],
)  # fmt: skip
def test_a_refusal_has_the_words_of_sbatch_and_the_key(cluster, place, word, told):
    done = sweep(place, PATTERNS, word)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "launcher=slurm: sbatch refused the jobs: " in line
    assert told in line
    assert cluster.run("squeue", "-h") == ""


def test_arrays_are_split_at_what_the_cluster_allows(cluster, place):
    dilations = "pattern.dilation=1,2,4,8,16,32"
    done = sweep(place, dilations, HOLD)
    assert done.returncode == 0, done.stderr
    assert "submitted 7 jobs (1 pretrainings, 6 cells)" in done.stdout
    assert f"the cluster allows {MOST_IN_ARRAY} tasks an array, which is less than" in done.stdout
    tasks = cluster.run("squeue", "-h", "--array", "-o", "%i").split()
    assert len(tasks) == 7
    assert sum("_" in task for task in tasks) == MOST_IN_ARRAY


def test_a_partly_refused_submission_leaves_nothing_in_the_queue(cluster, place, monkeypatch):
    """As on a cluster that does not tell its limits: the pretraining is accepted, the cells' array is not."""
    monkeypatch.setattr(launch_slurm, "most_in_array", lambda: None)
    done = sweep(place, "pattern.dilation=1,2,4,8,16,32")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Invalid job array specification" in line
    assert "launcher.array_size=1000" in line
    assert re.search(r"what this call had submitted before \(jobs \d+\) is cancelled", line)
    wait_for(lambda: cluster.run("squeue", "-h") == "")
    assert status(place)["counts"] == {"missing": 6}
    assert not list((place / "out").glob("*/*/record.json"))


def test_a_job_of_a_pretraining_is_not_that_of_its_cells(cluster, place):
    assert ratplus_here(place, "pretrain", *TINY, "output=out", *SLURM, HOLD).returncode == 0
    found = status(place)
    assert found["counts"] == {"missing": 1}
    assert any("pretrainings that are queued: 1 (" in note for note in found["notes"])


def test_queued_jobs_say_why(cluster, place):
    assert sweep(place, PATTERNS, HOLD).returncode == 0
    found = status(place)
    assert found["counts"] == {"queued": 2}
    assert {cell["reason"] for cell in found["cells"]} == {"JobHeldUser"}
    assert any(
        re.fullmatch(
            r"3 jobs \(\d+ \d+\) are held, SLURM says JobHeldUser; `scontrol release \d+ \d+` lets them start", note
        )
        for note in found["notes"]
    ), found["notes"]


def test_jobs_that_can_never_start_end_the_waiting(cluster, place):
    done = sweep(place, PATTERNS, "launcher.partition=short", "launcher.minutes=240", "launcher.wait=true")
    assert done.returncode == 1
    # PartitionConfig at first, and some seconds later PartitionTimeLimit.
    assert re.search(r"can never start, SLURM says Partition\w+ \(more .*change .*launcher.minutes=240.*`scancel \d+",
                     done.stderr), done.stderr  # fmt: skip
    assert status(place)["counts"] == {"queued": 2}


def test_more_cpus_than_a_node_has_are_told(cluster, place):
    done = sweep(place, PATTERNS, "launcher.cpus=64", "launcher.wait=true")
    if done.returncode == 2:  # refused at once, as newer versions do
        assert "launcher.cpus=64" in done.stderr
    else:
        assert done.returncode == 1
        assert re.search(r"can never start, SLURM says \w+ \(.*change launcher.cpus=64 or", done.stderr), done.stderr


def test_changed_keys_are_told_and_how_to_apply_them(cluster, place):
    assert sweep(place, PATTERNS, HOLD).returncode == 0
    again = sweep(place, PATTERNS, HOLD, "launcher.minutes=20")
    assert again.returncode == 0
    assert "submitted 0 jobs" in again.stdout
    (line,) = (line for line in again.stdout.splitlines() if "given now" in line)
    assert line.startswith("3 jobs are queued or running with launcher.minutes=10 and stay so (given now: launcher.min")
    cancel = re.search("`(scancel [0-9 ]+)`", line)[1].split()
    cluster.run(*cancel)
    wait_for(lambda: cluster.run("squeue", "-h") == "")
    assert "submitted 3 jobs" in sweep(place, PATTERNS, HOLD, "launcher.minutes=20").stdout
    assert set(cluster.run("squeue", "-h", "-o", "%l").split()) == {"20:00"}


def test_an_unreachable_controller_costs_little_and_one_line(cluster, place):
    assert sweep(place, PATTERNS, HOLD).returncode == 0
    cluster.stop_controller()
    try:
        began = time.monotonic()
        found = status(place)
        assert [note for note in found["notes"] if "SLURM's controller cannot be reached" in note] == found["notes"]
        done = sweep(place, PATTERNS, HOLD)
        assert time.monotonic() - began < 8  # one question of SLURM's own commands alone takes 9
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "cannot tell which jobs are queued already" in line
        assert "DOWN" in line
    finally:
        cluster.start_controller()


def test_settings_of_squeue_and_sbatch_in_the_profile_hide_nothing(cluster, place, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "short")
    assert sweep(place, PATTERNS, HOLD, "launcher.partition=long").returncode == 0
    assert set(cluster.run("squeue", "-h", "-o", "%P %l").splitlines()) == {"long 10:00"}
    assert status(place)["counts"] == {"queued": 2}


def test_gpus_are_asked_for(cluster, place):
    assert sweep(place, PATTERNS, HOLD, "launcher.gpus=2").returncode == 0
    assert set(cluster.run("squeue", "-h", "-o", "%b %D").splitlines()) == {"gres:gpu:2 1"}
    cluster.cancel_all()
    shutil.rmtree(place / "out")
    assert sweep(place, PATTERNS, "launcher.sbatch={hold: true, gres: 'gpu:1'}").returncode == 0
    assert set(cluster.run("squeue", "-h", "-o", "%b").splitlines()) == {"gres:gpu:1"}


def test_a_job_that_is_warned_saves_queues_again_and_continues(cluster, place):
    """By the signal that SLURM sends before the time limit, which it looks at too rarely for a test."""
    words = [*TINY, "train.pretrain.steps=300", "run.checkpoint_seconds=1000", "output=out", *SLURM]
    assert ratplus_here(place, "pretrain", *words).returncode == 0
    (job,) = cluster.run("squeue", "-h", "-o", "%i").split()

    def trained() -> bool:
        curves = list(place.glob("out/pretrain/*/curve.csv"))
        return bool(curves) and "\n50," in curves[0].read_text()

    wait_for(trained, 200)
    cluster.run("scancel", "--signal=USR2", job)
    wait_for(lambda: cluster.run("squeue", "-h", "-o", "%T") == "PENDING\n")
    assert not list(place.glob("out/pretrain/*/record.json"))
    assert ratplus_here(place, "status", "out").returncode == 0  # it has not ended, so nothing is recorded for it
    wait_for(lambda: not cluster.run("squeue", "-h"), 400)
    (record,) = (json.loads(path.read_text()) for path in place.glob("out/pretrain/*/record.json"))
    assert record["status"] == "done"
    assert record["timing"]["resumed_at_step"] >= 50
