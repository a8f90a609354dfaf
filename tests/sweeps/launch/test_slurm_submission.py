"""`launcher=slurm` against stand-ins for SLURM's commands: what is submitted, what is refused, what is taken back."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from cli_runs import TINY, ratplus_here
from made_cells import entry
from pretended_slurm import SECRET, SLURM, refuse, submitted_command

from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch import slurm as launch_slurm
from ratplus.sweeps.launch.work import WorkItem, work_items


def test_slurm_submits_two_arrays_and_leaves(place, cluster):
    words = [
        "sweep", "-m", *TINY, "model=attention_nano,ratplus_nano", "pattern=dense,dilated", "output=out",
        "launcher=slurm", "launcher.partition=gpu", "launcher.account=lab", "launcher.qos=long",
        "launcher.constraint=h100", "launcher.gpus=2", "launcher.cpus=8", "launcher.memory_gb=40",
        "launcher.minutes=90", "launcher.grace_seconds=200", "launcher.workers=3",
        "launcher.setup=[module load cuda]", "launcher.sbatch={exclude: node7}", "max_failures=2",
    ]  # fmt: skip
    done = ratplus_here(place, *words)
    assert done.returncode == 0, done.stderr
    assert "submitted 6 jobs (2 pretrainings, 4 cells): 1001 1002" in done.stdout
    assert "squeue -j 1001,1002" in done.stdout
    assert "ratplus status out --watch" in done.stdout
    assert "accuracy_vs_dilation" not in done.stdout
    assert not list((place / "out").glob("*/*/record.json"))  # nothing ran
    first, cells = ((cluster / f"{n}.sh").read_text() for n in (1001, 1002))
    for script in (first, cells):
        for line in (
            "--partition=gpu", "--account=lab", "--qos=long", "--constraint=h100", "--gpus-per-node=2",
            "--cpus-per-task=8", "--mem=40GB", "--time=90", "--signal=USR2@200", "--requeue", "--nodes=1",
            "--ntasks-per-node=1", "--exclude=node7", "--open-mode=append", "--job-name=ratplus-out",
        ):  # fmt: skip
            assert f"#SBATCH {line}\n" in script, line
        assert "\nmodule load cuda\n" in script
        assert "srun --unbuffered" in script
        assert f" {shlex.quote(sys.executable)} -P -u -m submitit.core._submit " in script
        assert "--cpus-per-task 8" in script
    assert "#SBATCH --array=0-1%2\n" in first
    assert "dependency" not in first
    assert "#SBATCH --array=0-3%3\n" in cells
    assert "#SBATCH --dependency=afterany:1001\n" in cells

    files = [p for p in (place / "out").rglob("*") if p.is_file()]
    assert len([p for p in files if p.suffix == ".pkl"]) == 6
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]

    # All of them wait in the queue: nothing is submitted twice, and status says so.
    (cluster / "queue").write_text(
        "1001_0 RUNNING\n1001_1 PENDING\n" + "".join(f"1002_{i} PENDING\n" for i in range(4))
    )
    again = ratplus_here(place, *words)
    assert again.returncode == 0, again.stderr
    assert "submitted 0 jobs (0 pretrainings, 0 cells): none; 6 are queued or running already" in again.stdout
    status = json.loads(ratplus_here(place, "status", "out", "--json").stdout)
    assert status["counts"] == {"queued": 4}
    assert [cell["job"] for cell in status["cells"]] == ["1002_0", "1002_1", "1002_2", "1002_3"]

    # Two cells are gone from the queue, one pretraining is still in it: they wait for that.
    (cluster / "queue").write_text("1001_0 PENDING\n1002_2 PENDING\n1002_3 RUNNING\n")
    third = ratplus_here(place, *words)
    assert "submitted 3 jobs (1 pretrainings, 2 cells): 1003 1004; 3 are queued or running already" in third.stdout
    assert "--array" not in (cluster / "1003.sh").read_text()  # a single job
    assert "#SBATCH --dependency=afterany:1001_0:1003\n" in (cluster / "1004.sh").read_text()

    # Not knowing is no reason to submit twice.
    (cluster / "down").touch()
    refused = ratplus_here(place, *words)
    assert refused.returncode == 2
    assert "cannot tell which jobs are queued already: out/jobs.json names jobs of SLURM: squeue: sl" in refused.stderr
    assert len(list(cluster.glob("*.sh"))) == 4


def test_arrays_are_no_longer_than_the_cluster_allows(place, cluster, monkeypatch):
    monkeypatch.chdir(place)
    items = work_items([entry("a", d) for d in (1, 2, 4, 8, 16)], "evaluate")
    monkeypatch.setattr(WorkItem, "job", lambda item, folder, threads: {"id": item.id})
    monkeypatch.setenv("NOTES", str(cluster))
    launcher = compose_one(["launcher=slurm", "launcher.array_size=2", "launcher.workers=2"]).config.launcher
    submission = launch_slurm.submit(items, Path("out"), "evaluate", launcher, None)
    assert submission.arrays == ["1001", "1002", "1003", "1004"]
    texts = [(cluster / f"{n}.sh").read_text() for n in (1002, 1003, 1004)]
    # With a limit of cells at once, one array runs after the other.
    assert [re.search("--dependency=(.*)", text)[1] for text in texts] == [
        "afterany:1001", "afterany:1001:1002", "afterany:1001:1003",
    ]  # fmt: skip
    assert len(submission.jobs) == 6


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("MaxArraySize            = 2\n", 2),
        ("MaxArraySize            = 1001\nSchedulerParameters = bf_interval=2,max_array_tasks=3\n", 3),
        ("MaxArraySize            = 0\n", 1),
        ("nothing of it\n", None),
    ],
)
def test_arrays_are_split_where_the_cluster_says(place, cluster, config, most):
    (cluster / "config").write_text(config)
    done = ratplus_here(place, "sweep", "-m", *TINY, "pattern.dilation=1,2,4,8", "output=out", *SLURM)
    assert done.returncode == 0, done.stderr
    assert (f"the cluster allows {most} tasks an array" in done.stdout) == (most is not None)
    sizes = {None: ["3"], 3: ["2"], 2: ["1", "1"], 1: []}[most]
    texts = [path.read_text() for path in sorted(cluster.glob("*.sh"))[1:]]
    assert [size for text in texts for size in re.findall(r"--array=0-(\d)", text)] == sizes
    assert len(json.loads((place / "out" / "jobs.json").read_text())["submissions"][0]["jobs"]) == 5


@pytest.mark.parametrize("stays", [False, True])
def test_what_a_refused_call_had_submitted_is_cancelled(place, cluster, stays):
    refuse(cluster, "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (x)\n", after=1)
    if stays:
        (cluster / "uncancelled").touch()
    done = ratplus_here(place, "sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sbatch refused the jobs: Job violates accounting/QOS policy (x) (see launcher.qos=null " in line
    assert (cluster / "scancel").read_text() == "1001\n"
    rows = json.loads((place / "out" / "jobs.json").read_text())["submissions"]
    if stays:
        assert line.endswith("what this call had submitted before (jobs 1001) could not be cancelled (scancel: no): `sc"
                             "ancel 1001`")  # fmt: skip
        assert len(rows) == 1
    else:
        assert line.endswith("what this call had submitted before (jobs 1001) is cancelled")
        assert rows == []
        told = json.loads(ratplus_here(place, "status", "out", "--json").stdout)
        assert told["counts"] == {"missing": 2}  # nobody takes the cancelled job for one that failed


def test_an_interrupted_submission_is_taken_back(place, cluster, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    noted = launch_slurm.add_jobs
    monkeypatch.setattr(launch_slurm, "add_jobs", lambda *words: (noted(*words), interrupted()))
    done = ratplus_here(place, "sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM)
    assert done.returncode == 130
    assert "what this call had submitted before (jobs 1001) is cancelled" in done.stderr
    assert (cluster / "scancel").read_text() == "1001\n"


def test_no_job_is_submitted_while_the_controller_is_away(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    (cluster / "unreachable").write_text("Slurmctld(primary) at c is DOWN\n*****\n")
    done = ratplus_here(place, *words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("SLURM's controller cannot be reached: Slurmctld(primary) at c is DOWN")
    assert not (cluster / "1003.sh").exists()


def test_jobs_know_nothing_of_the_job_around_the_command(place, cluster, monkeypatch):
    around = {
        "SLURM_JOB_ID": "77", "SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "3", "SLURMD_NODENAME": "n1",
        "SRUN_DEBUG": "3", "PMI_RANK": "1", "CUDA_VISIBLE_DEVICES": "5", "SQUEUE_STATES": "RUNNING",
        "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "short", "SUBMITIT_EXECUTOR": "slurm",
    }  # fmt: skip
    kept = {"SLURM_CONF": "/etc/s.conf", "SBATCH_ACCOUNT": "lab", "HF_HOME": "/data/hf"}
    for name, value in (around | kept).items():
        monkeypatch.setenv(name, value)
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.partition=gpu"]
    assert ratplus_here(place, *words).returncode == 0
    found = dict(line.partition("=")[::2] for line in (cluster / "1001.env").read_text().splitlines())
    assert not found.keys() & around.keys()
    assert {name: found.get(name) for name in kept} == kept
    assert {name: os.environ[name] for name in around} == around  # it is the command's own again
    assert ratplus_here(place, "status", "out").returncode == 1  # asks squeue, and finds the jobs gone
    assert "SQUEUE_STATES" not in (cluster / "squeue.env").read_text()


def test_the_files_of_jobs_lie_where_nobody_can_have_put_some(place, cluster):
    """A node unpickles `<folder>/<job number>_submitted.pkl`, whoever wrote it first."""
    planted = place / "out" / "logs" / "slurm" / "1001_submitted.pkl"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"planted")
    words = ["sweep", *TINY, "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    (identity,) = (row["id"] for row in json.loads((place / "out" / "jobs.json").read_text())["submissions"])
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert submitted_command(cluster / "1001.sh")[-1] == str(planted.parent / identity)
    assert planted.read_bytes() == b"planted"


def test_links_in_logs_are_refused(place, cluster):
    (place / "out" / "logs").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    (place / "out" / "logs" / "slurm").symlink_to(place / "elsewhere")
    done = ratplus_here(place, "sweep", *TINY, "output=out", *SLURM)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list((place / "elsewhere").iterdir())
    assert not list(cluster.glob("*.sh"))


def test_a_folder_whose_name_is_a_pattern_of_slurm_is_refused(place, cluster):
    done = ratplus_here(place, "sweep", *TINY, "output=50%j", *SLURM)
    assert done.returncode == 2
    assert (
        "SLURM takes % and \\ in the names of files for placeholders; choose another folder with output=" in done.stderr
    )


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["launcher.gpus=0"], []),
        (["launcher.gpus=3"], ["--gpus-per-node=3"]),
        (["launcher.gpus=3", "launcher.sbatch={gres: 'gpu:a100:2'}"], ["--gres=gpu:a100:2"]),
        (["launcher.gpus=3", "launcher.sbatch={gpus-per-node: 'a100:2'}"], ["--gpus-per-node=a100:2"]),
        (["launcher.gpus=2", "launcher.sbatch={gres: 'lscratch:9'}"], ["--gpus-per-node=2", "--gres=lscratch:9"]),
    ],
)
def test_each_gpu_is_asked_for_once(place, cluster, words, lines):
    assert ratplus_here(place, "pretrain", *TINY, "output=out", "launcher=slurm", *words).returncode == 0
    script = (cluster / "1001.sh").read_text()
    assert sorted(re.findall("#SBATCH (--g.*)", script)) == lines
    assert "#SBATCH --nodes=1\n" in script
    assert "#SBATCH --ntasks-per-node=1\n" in script


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer=ddp", "trainer.devices=4"], "launcher.gpus=1: each cell's training has trainer.devices=4 processes, "
         "one a GPU; give launcher.gpus=4"),
        (["trainer=ddp", "trainer.nodes=2"], "trainer.nodes=2: launcher=slurm gives each cell one machine"),
        (["launcher.sbatch={time: 5}"], "launcher.sbatch: time=5: that is launcher.minutes"),
        (["launcher.sbatch={ntasks-per-node: 5}"], "launcher.sbatch: ntasks-per-node=5: the launcher itself decides"),
    ],
)  # fmt: skip
def test_mistakes_that_only_a_node_would_find(place, cluster, words, told):
    done = ratplus_here(place, "pretrain", *TINY, "output=out", "launcher=slurm", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(cluster.glob("*.sh"))


def test_slurm_says_what_is_missing(place, monkeypatch, guard):
    monkeypatch.setenv("PATH", guard.path_without_stubs())  # also where this is tested on a cluster
    words = ["sweep", *TINY, "output=out", *SLURM]
    done = ratplus_here(place, *words)
    assert done.returncode == 2
    assert "launcher=slurm: this machine has no srun; run it on a login node" in done.stderr
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=re.escape("submitit is not installed; pip install 'ratplus[slurm]'")):
        launch_slurm.submit([], place, "evaluate", compose_one(SLURM).config.launcher, None)
