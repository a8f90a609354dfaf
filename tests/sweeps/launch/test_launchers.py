"""Launchers: what is run, in which order, and what is recorded of it; SLURM by a pretended cluster and by submitit's
local executor, which runs the same jobs as processes of this machine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import TINY, ratplus, ratplus_here, wait_for

from ratplus.records.manifest import read_manifest
from ratplus.records.record import read_record, stage_id, write_record
from ratplus.records.status import cell_state
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.manifest import plan_cells
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch import local as launch_local
from ratplus.sweeps.launch import slurm as launch_slurm
from ratplus.sweeps.launch.cell import run_cell
from ratplus.sweeps.launch.child import Child, record_death
from ratplus.sweeps.launch.pool import Stopped, run_pool
from ratplus.sweeps.launch.work import WorkItem, due_items, threads_per_cell, work_items

SLURM = ["launcher=slurm", "launcher.gpus=0"]
SECRET = "not-to-be-found-0123456789"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


# ---- which items, and in which order ------------------------------------------------------------------------------


def entry(model: str, dilation: int) -> dict:
    pretrain = stage_id("pretrain", {"model": model}, None)
    adapt = stage_id("adapt", {"dilation": dilation}, pretrain)
    evaluate = stage_id("evaluate", {"dilation": dilation}, adapt)
    return {
        "model": model, "label": f"D{dilation}", "seed": 0,
        "stages": {"pretrain": pretrain, "adapt": adapt, "evaluate": evaluate},
        "config": {"train": {"pretrain": {}}, "dilation": dilation},
    }  # fmt: skip


def settle(folder: Path, cell: dict, status: str, stage: str = "evaluate") -> None:
    parents = {"pretrain": None, "adapt": cell["stages"]["pretrain"], "evaluate": cell["stages"]["adapt"]}
    config = {"model": cell["model"]} if stage == "pretrain" else {"dilation": cell["config"]["dilation"]}
    write_record(
        folder / stage / cell["stages"][stage], stage=stage, config=config, parent=parents[stage], status=status,
        metrics={}, timing={}, provenance={}, error=None if status == "done" else {"type": "Bad", "message": "luck"},
    )  # fmt: skip


def test_retry_chooses_cells(tmp_path):
    cells = [entry("a", 1), entry("a", 2), entry("a", 4), entry("b", 1), entry("c", 1)]
    settle(tmp_path, cells[0], "done")
    settle(tmp_path, cells[0], "done", "pretrain")
    settle(tmp_path, cells[1], "failed", "adapt")
    settle(tmp_path, cells[3], "failed", "pretrain")
    (tmp_path / "evaluate" / cells[4]["stages"]["evaluate"]).mkdir(parents=True)
    (tmp_path / "evaluate" / cells[4]["stages"]["evaluate"] / "record.json").write_text("{")  # damaged
    items = work_items(cells, "evaluate")
    assert [t.name for t in items] == [
        "a pretrain", "b pretrain", "c pretrain", "a D1", "a D2", "a D4", "b D1", "c D1",
    ]  # fmt: skip

    def names(retry: str) -> list[str]:
        return [task.name for task in due_items(items, tmp_path, "evaluate", retry)]

    assert names("all") == ["b pretrain", "c pretrain", "a D2", "a D4", "b D1", "c D1"]
    assert names("failed") == ["b pretrain", "c pretrain", "a D2", "b D1", "c D1"]
    assert names("none") == ["a D4"]
    assert [t.name for t in due_items(work_items(cells, "pretrain"), tmp_path, "pretrain", "failed")] == ["b pretrain"]


class Pretended:
    """A running task without a process: ends after a few looks with the code that the test wants."""

    def __init__(self, item: WorkItem, slot: int, codes: dict[str, int], log: list):
        self.item, self.slot, self._codes, self._left, self._log = item, slot, codes, 2, log
        log.append(("start", item.name, slot))

    def poll(self):
        self._left -= 1
        return None if self._left else self._codes.get(self.item.name, 0)

    def ending(self):
        return "" if self.poll() == 0 else "bad luck"

    def progress(self):
        return {}

    def request_stop(self):
        self._log.append(("request", self.item.name, self.slot))

    def stop(self, seconds):
        self._log.append(("stop", self.item.name, self.slot))


def pretend(items, folder, workers, codes=(), **kwargs):
    log, events = [], []
    outcomes = run_pool(
        items, folder, workers, lambda task, slot: Pretended(task, slot, dict(codes), log),
        lambda kind, task, _running, text: events.append((kind, task and task.name, text)), **kwargs,
    )  # fmt: skip
    return outcomes, log, [e for e in events if e[0] != "tick"]


def test_a_pool_waits_for_pretraining_and_spares_its_cells(tmp_path):
    items = work_items([entry("a", 1), entry("b", 1), entry("b", 2)], "evaluate")
    outcomes, log, events = pretend(items, tmp_path, 2, {"a pretrain": 1})
    assert log == [
        ("start", "a pretrain", 0), ("start", "b pretrain", 1), ("start", "b D1", 0), ("start", "b D2", 1),
    ]  # fmt: skip
    assert ("skip", "a D1", "its pretraining failed") in events
    assert {t.name: outcomes[t.id].code for t in items} == {
        "a pretrain": 1, "b pretrain": 0, "a D1": 1, "b D1": 0, "b D2": 0,
    }  # fmt: skip


def test_a_slot_is_taken_by_one_task_at_a_time(tmp_path):
    """A slot stands for GPUs: the next task gets the one that became free, whichever that is."""
    running, log = set(), []

    class Uneven(Pretended):
        def __init__(self, item, slot):
            super().__init__(item, slot, {}, log)
            assert slot not in running
            running.add(slot)
            self._left = {"a D1": 2, "a D2": 5, "a D4": 9, "a D8": 2}[item.name]

        def poll(self):
            code = super().poll()
            if code is not None:
                running.discard(self.slot)
            return code

        def ending(self):
            return ""

    items = work_items([entry("a", d) for d in (1, 2, 4, 8)], "evaluate")[1:]
    run_pool(items, tmp_path, 2, Uneven, lambda *_: None)
    assert [(name, slot) for _, name, slot in log] == [("a D1", 0), ("a D2", 1), ("a D4", 0), ("a D8", 1)]


def test_max_failures_starts_no_more_but_lets_run(tmp_path):
    items = work_items([entry("a", d) for d in (1, 2, 4, 8, 16, 32)], "evaluate")[1:]  # pretraining is done
    codes = {"a D1": 1, "a D4": -9}
    outcomes, log, _ = pretend(items, tmp_path, 2, codes, max_failures=2)
    assert [name for _, name, _ in log] == ["a D1", "a D2", "a D4", "a D8"]
    assert [outcomes[t.id].code for t in items[:4]] == [1, 0, -9, 0]
    assert not any(t.id in outcomes for t in items[4:])
    assert len(pretend(items, tmp_path, 2, codes)[0]) == 6


def test_a_stopped_pool_asks_all_before_it_waits(tmp_path):
    items = work_items([entry("a", 1), entry("a", 2)], "evaluate")[1:]
    log = []

    def event(kind, *_):
        if kind == "tick":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        run_pool(items, tmp_path, 2, lambda task, slot: Pretended(task, slot, {}, log), event)
    assert [kind for kind, *_ in log] == ["start", "start", "request", "request", "stop", "stop"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_gpus_and_threads_are_divided(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [launch_local.gpu_environment(slot, 1)["CUDA_VISIBLE_DEVICES"] for slot in range(5)] == list("45674")
    assert [launch_local.gpu_environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    assert launch_local.gpu_environment(0, 0) == {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch_local.gpu_environment(0, 1) == {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(9)))
    assert threads_per_cell(compose_one(["launcher.workers=2"]).config.launcher) == 4
    assert threads_per_cell(compose_one(["launcher.workers=20"]).config.launcher) == 1
    assert threads_per_cell(compose_one(["launcher=slurm", "launcher.cpus=6"]).config.launcher) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher.partition=gpu"], "launcher.partition: got 'gpu'; launcher=local has no such key"),
        (["launcher=ray", "launcher.minutes=5"], "launcher.minutes: got 5; launcher=ray has no such key"),
        (["launcher=slurm", "launcher.address=auto"], "launcher.address: got 'auto'; launcher=slurm has no such key"),
        (["launcher.workers=0"], "launcher.workers: got 0; it must be ≥ 1"),
        (["launcher.workers=null"], "launcher.workers: got None; launcher=local needs"),
        (["launcher=slurm", "launcher.minutes=1"], "launcher.grace_seconds: got 120; it must be less than"),
        (["launcher=slurm", "launcher.cluster=lsf"], "launcher.cluster: got 'lsf'; allowed: slurm, local"),
        (["launcher=condor"], "launcher=condor: no such choice; available: local, ray, slurm"),
    ],
)
def test_mistakes_in_launchers(words, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        compose_one(words)


# ---- one worker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(place, monkeypatch):
    """The job of one tiny cell, planned and not run."""
    monkeypatch.chdir(place)
    (cell,) = plan_cells(compose_cells([*TINY, "output=out"]))
    return WorkItem(cell, "evaluate", None).job(Path("out"), threads=1)


def test_a_killed_worker_is_recorded_each_time(job):
    target = Path(job["folder"]) / "pretrain"
    for attempt in (1, 2):
        child = Child(job)
        assert child.log.exists()
        child.process.kill()
        child.process.wait()
        assert child.finish() == -signal.SIGKILL
        (folder,) = target.iterdir()
        error = read_record(folder)["error"]
        assert error["type"] == "SIGKILL"
        assert error["message"].startswith("killed by SIGKILL (out of memory?)")
        assert error["attempt"] == attempt
        assert error["host"]
    assert not child.progress.exists()
    assert [p.suffix for p in (Path(job["folder"]) / "logs").iterdir()] == [".log"]


@pytest.mark.parametrize("code", [1, 0, 77])
def test_a_worker_that_ends_before_its_record_is_recorded(job, place, monkeypatch, code):
    """As on a node with a broken library: it ends by itself, before our code could say anything."""
    (place / "node").mkdir()
    (place / "node" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'ratplus.sweeps.launch.worker' in sys.orig_argv:\n"
        f"    print('ImportError: libexample.so.1: cannot open', flush=True)\n    os._exit({code})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(place / "node"))
    for attempt in (1, 2):
        child = Child(job)
        child.process.wait()
        assert child.finish() == (code or 1)
        assert child.ending() == "ImportError: libexample.so.1: cannot open"
        (folder,) = (Path(job["folder"]) / "pretrain").iterdir()
        error = read_record(folder)["error"]
        assert error["type"] == "WorkerEnded"
        assert error["message"].startswith(f"the worker ended with exit code {code}")
        assert "left no record; it printed last: ImportError: libexample.so.1" in error["message"]
        assert (error["attempt"], error["traceback"]) == (attempt, ["ImportError: libexample.so.1: cannot open"])
        assert error["host"]
    assert cell_state(Path(job["folder"]), job["stages"]).status == "failed"


def test_a_worker_s_own_record_is_left_as_it_is(job):
    job["config"]["train"]["pretrain"]["lr"] = 1.0  # another id than was planned, so the worker refuses
    child = Child(job)
    child.process.wait()
    assert child.finish() == 2
    assert not list(Path(job["folder"]).glob("*/*/record.json"))


def test_ray_s_lost_task_is_recorded(job, monkeypatch):
    from ratplus.sweeps.launch.ray import RayRun

    class Lost(Exception):
        pass

    def get(_ref):
        raise Lost("the worker died: out of memory\nmore")

    ray = SimpleNamespace(wait=lambda refs, timeout: (refs, []), get=get, exceptions=SimpleNamespace(RayError=Lost))
    item = SimpleNamespace(id=job["id"], job=lambda folder, threads: job)
    run = RayRun(ray, SimpleNamespace(remote=lambda job: "ref"), item, 0, Path(job["folder"]), 1)
    assert run.poll() == 1
    (folder,) = (Path(job["folder"]) / "pretrain").iterdir()
    assert read_record(folder)["error"]["message"] == "Ray's task was lost: the worker died: out of memory"


def test_worker_and_parent_agree_on_the_ids_and_the_corpus_is_opened_once(job, monkeypatch):
    """The worker opens it to train; the parent that records a death has the ids with the job."""
    from ratplus.stages import cell as stages_cell
    from ratplus.sweeps.define import manifest

    opened, lines, folder = [], [], Path(job["folder"])
    for module in (stages_cell, manifest):
        monkeypatch.setattr(
            module, "corpus_of", lambda data, original=module.corpus_of: opened.append(data) or original(data)
        )

    def run(stages: dict) -> int:
        return run_cell(job["config"], stages, folder, "pretrain", lambda *_: None, print_line=lines.append)

    assert run(job["stages"]) == 0, lines
    assert len(opened) == 1
    record_death(job, "SIGKILL", "killed by SIGKILL", ["last words"])
    assert len(opened) == 1
    found = {path.parts[-3]: read_record(path.parent) for path in folder.glob("*/*/record.json")}
    assert {stage: record["id"] for stage, record in found.items()} == {
        stage: job["stages"][stage] for stage in ("pretrain", "adapt")
    }
    assert (found["pretrain"]["status"], found["adapt"]["status"]) == ("done", "failed")
    assert found["adapt"]["error"]["traceback"] == ["last words"]

    # Planned with another corpus: nothing runs or is recorded under ids that the sweep does not wait for.
    other = job["stages"] | {"pretrain": "0" * 12}
    assert run(other) == 2
    assert f"pretrain: its id is {job['stages']['pretrain']} here, and was {'0' * 12} when the sweep" in lines[-1]
    before = sorted(folder.rglob("*"))
    record_death(job | {"stages": other}, "SIGKILL", "killed by SIGKILL", [])
    assert sorted(folder.rglob("*")) == before


def test_a_worker_that_is_told_to_stop_has_not_failed(job):
    child = Child(job)
    child.stop()
    assert child.finish() in (-signal.SIGTERM, 143)
    assert not list(Path(job["folder"]).glob("*/*/record.json"))


def test_a_worker_is_no_rank_of_the_job_around_it(job, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    child = Child(job)
    environment = Path(f"/proc/{child.process.pid}/environ")
    wait_for(lambda: b"OMP_NUM_THREADS" in environment.read_bytes())
    words = environment.read_bytes().split(b"\0")
    child.stop(0)
    assert [w for w in words if w.startswith(b"SLURM")] == [b"SLURM_JOB_ID=77"]


def test_a_worker_imports_nothing_from_the_working_folder(job, place):
    """Nor do processes that it starts: a script there may be called like a module."""
    (place / "queue.py").write_text('print("the script of the user ran")')
    child = Child(job)
    environment, command = (Path(f"/proc/{child.process.pid}/{name}") for name in ("environ", "cmdline"))
    wait_for(lambda: b"ratplus.sweeps.launch.worker" in command.read_bytes())
    assert command.read_bytes().split(b"\0")[1:3] == [b"-P", b"-m"]
    assert b"PYTHONSAFEPATH=1" in environment.read_bytes().split(b"\0")
    child.process.wait()
    assert child.finish() == 0, child.log.read_text()
    assert "the script of the user ran" not in child.log.read_text()


def test_spawned_ranks_import_nothing_from_the_working_folder(place):
    """`ratplus` sets what multiprocessing hands on; its bootstrap is `python -c`, which searches the working folder."""
    (place / "queue.py").write_text('print("the script of the user ran")')
    script = place / "elsewhere" / "start.py"
    script.parent.mkdir()
    script.write_text(
        "import multiprocessing, sys\n"
        "from ratplus.sweeps import cli\n"
        "def rank():\n    import queue\n    print(queue.__file__, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    try:\n        cli.main(['--version'])\n    except SystemExit:\n        pass\n"
        "    process = multiprocessing.get_context('spawn').Process(target=rank)\n"
        "    process.start(); process.join(); sys.exit(process.exitcode)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, script], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the script of the user ran" not in done.stdout
    assert str(place) not in done.stdout


def test_ray_starts_away_from_the_working_folder(place, monkeypatch):
    """Ray searches the folder in which it is started before all others; this stands in for Ray itself."""
    from ratplus.config.run import LauncherSection
    from ratplus.sweeps.launch.ray import ray_cluster

    monkeypatch.chdir(place)
    seen = []
    pretended = SimpleNamespace(
        init=lambda **_: seen.append(sorted(os.listdir("."))), cluster_resources=lambda: {"CPU": 4.0},
        remote=lambda **_: lambda function: function, shutdown=lambda: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with ray_cluster(LauncherSection(kind="ray", workers=2)) as (at_once, _):
        assert (at_once, Path.cwd()) == (2, place)
    assert seen == [[]]


# ---- SLURM ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(place, monkeypatch):
    """sbatch, squeue, scontrol and srun that only note what they are asked; srun runs its command as array task 0."""
    tools, notes = place / "tools", place / "notes"
    tools.mkdir()
    notes.mkdir()
    (notes / "queue").write_text("")
    scripts = {
        "sbatch": 'n=$((1001 + $(ls "$NOTES" | grep -c sh$)))\ncp "$1" "$NOTES/$n.sh"\necho "Submitted batch job $n"',
        "squeue": '[ -f "$NOTES/down" ] && { echo "slurm_load_jobs error" >&2; exit 1; }\ncat "$NOTES/queue"',
        "scontrol": 'echo "$@" >> "$NOTES/scontrol"',
        "srun": 'while [ "$1" != "${1#-}" ]; do case "$1" in --unbuffered) shift;; *) shift 2;; esac; done\nexec "$@"',
    }
    for name, lines in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return notes


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
    assert "cannot tell which jobs are queued already: squeue: slurm_load_jobs error" in refused.stderr
    assert len(list(cluster.glob("*.sh"))) == 4


def test_a_job_that_ends_without_a_record_is_recorded_by_the_next_status(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    (cluster / "queue").write_text("1001 RUNNING\n1002_0 PENDING\n1002_1 PENDING\n")
    assert json.loads(ratplus_here(place, "status", "out", "--json").stdout)["counts"] == {"queued": 2}
    assert not list((place / "out").glob("*/*/record.json"))
    # The pretraining ends on a broken node, and nothing of ours ran there; a cell is left out on purpose.
    logs = place / "out" / "logs" / "slurm"
    (logs / "1001_0_log.err").write_text("slurmstepd: error: execve(): python: No such file or directory\n")
    (logs / "1002_0_log.out").write_text("not started: its pretraining failed\n")
    (cluster / "queue").write_text("1002_1 PENDING\n")
    done = ratplus_here(place, "status", "out", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["counts"] == {"queued": 1, "failed": 1}
    (error,) = (cell["error"] for cell in told["cells"] if cell["error"])
    assert error.startswith("JobEnded: batch job 1001 ended and left no record; it printed last: slurmstepd: error")
    (record,) = (place / "out").glob("*/*/record.json")
    assert record.parts[-3] == "pretrain"
    before = record.read_bytes()
    ratplus_here(place, "status", "out")
    assert record.read_bytes() == before  # once
    # `retry=failed` finds it, and the next death is told as the next one.
    assert "submitted" in ratplus_here(place, *words, "retry=failed").stdout
    found = json.loads(record.read_text())
    assert (found["error"]["attempt"], found["error"]["traceback"][-1][:10]) == (1, "slurmstepd")


def test_waiting_for_jobs_that_leave_nothing_ends_in_failure(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.wait=true"]
    done = ratplus_here(place, *words)  # the queue is empty at once
    assert done.returncode == 1
    assert "2 of 2 cells failed" in done.stderr
    assert "batch job 1001 ended and left no record; it printed nothing" in done.stderr


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


def test_slurm_says_what_is_missing(place, monkeypatch, guard):
    monkeypatch.setenv("PATH", guard.path_without_stubs())  # also where this is tested on a cluster
    words = ["sweep", *TINY, "output=out", *SLURM]
    done = ratplus_here(place, *words)
    assert done.returncode == 2
    assert "launcher=slurm: this machine has no srun; run it on a login node" in done.stderr
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=re.escape("submitit is not installed; pip install 'ratplus[slurm]'")):
        launch_slurm.submit([], place, "evaluate", compose_one(SLURM).config.launcher, None)


@pytest.mark.parametrize("requeues", [0, 2])
def test_a_job_is_queued_again_as_often_as_it_may_be(place, cluster, monkeypatch, requeues):
    """Each time its limit nears, as SLURM's signal says; then what happened is recorded. The child has no time to
    train: it is told to stop as soon as it is there."""
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import DelayedSubmission, UncompletedJobError

    monkeypatch.chdir(place)
    cells = plan_cells(compose_cells([*TINY, "output=out"]))
    words = [*SLURM, "launcher.minutes=5", f"launcher.requeues={requeues}", "max_failures=1"]
    launcher = compose_one(words).config.launcher
    submission = launch_slurm.submit(work_items(cells, "pretrain"), Path("out"), "pretrain", launcher, 1)
    (handle,) = submission.handles
    queued_again = []
    environment = SimpleNamespace(global_rank=0, _requeue=queued_again.append)

    def start() -> None:
        job = DelayedSubmission.load(handle.paths.submitted_pickle)
        # Of a job of so few minutes every moment counts as near its end.
        handler = SignalHandler(environment, handle.paths, job)
        before = signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
        try:
            threading.Thread(target=signal_when_it_runs).start()
            job.result()
        finally:
            signal.signal(signal.SIGUSR2, before)

    def signal_when_it_runs() -> None:
        wait_for(lambda: list(place.glob("out/logs/*.job.json")))
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR2)

    for _ in range(requeues):
        with pytest.raises(SystemExit):
            start()
    assert len(queued_again) == requeues
    assert not list(place.glob("out/pretrain/*/record.json"))
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        start()
    assert len(queued_again) == requeues
    (record,) = (read_record(path.parent) for path in place.glob("out/pretrain/*/record.json"))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "TimeLimit"
    assert f"reached its limit of 5 minutes more than {requeues} times" in record["error"]["message"]
    (counted,) = place.glob("out/logs/failures-*/*")
    assert counted.name == cells[0]["stages"]["pretrain"]


def test_a_job_that_came_too_late_does_not_start(tmp_path):
    cell = entry("a", 1)
    job = {
        "id": "x",
        "folder": str(tmp_path),
        "needs": cell["stages"]["pretrain"],
        "max_failures": 1,
        "submission": "s",
    }
    assert launch_slurm.why_not(job) == ""
    launch_slurm.count_failure(job | {"id": "y"})
    assert launch_slurm.why_not(job) == "max_failures=1 is reached"
    assert launch_slurm.why_not(job | {"submission": "later"}) == ""
    settle(tmp_path, cell, "failed", "pretrain")
    assert launch_slurm.why_not(job) == "its pretraining failed"


def test_jobs_as_processes_end_to_end(place):
    """submitit's local executor: the same jobs, waited for, with the report at the end."""
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.cluster=local"]
    done = ratplus(place, *words, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    assert "submitted 3 jobs (1 pretrainings, 2 cells)" in done.stdout
    assert "2 done; table: out/report/accuracy_vs_dilation.md" in done.stdout
    again = ratplus_here(place, *words)
    assert again.returncode == 0
    assert "submitted" not in again.stdout  # nothing is left to do


@pytest.mark.slow
def test_a_preempted_job_saves_queues_again_and_continues(place, cluster, request):
    """The submitted script itself, run by a pretended srun: SIGUSR2 mid-training, then a second start of the job."""
    words = [*TINY, "train.pretrain.steps=600", "run.checkpoint_seconds=1000", "output=out", *SLURM]
    assert ratplus_here(place, "pretrain", *words).returncode == 0
    (pickled,) = (place / "out" / "logs" / "slurm").glob("*_submitted.pkl")
    environment = os.environ | {"SLURM_JOB_ID": "1001", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    environment |= {"SUBMITIT_EXECUTOR": "slurm"}  # as the script exports

    started = []
    request.addfinalizer(lambda: [process.kill() for process in started])  # when an assertion fails

    def start():
        # The script's last command in place of the shell, so that there is one process to end.
        command = [str(cluster.parent / "tools" / "srun"), *submitted_command(cluster / "1001.sh")]
        started.append(subprocess.Popen(command, cwd=place, env=environment, start_new_session=True))
        return started[-1]

    # As SLURM does, to every process of the job: the cell's own worker must not die of it.
    job = start()
    wait_for(
        lambda: (
            list(place.glob("out/pretrain/*/curve.csv"))
            and "\n50," in next(place.glob("out/pretrain/*/curve.csv")).read_text()
        )
    )
    for pid in processes("ratplus.sweeps.launch.worker", place) + processes("submitit.core._submit", place):
        os.kill(pid, signal.SIGUSR2)
    job.wait(60)
    assert (cluster / "scontrol").read_text() == "requeue 1001\n"
    assert not list(place.glob("out/pretrain/*/record.json"))
    (state,) = place.glob("out/pretrain/*/training-*.pt")
    saved = int(state.name.split("-")[1])
    assert saved >= 50
    assert pickled.exists()

    job = start()
    job.wait(240)
    (record,) = (json.loads(p.read_text()) for p in place.glob("out/pretrain/*/record.json"))
    assert record["status"] == "done"
    assert record["timing"]["resumed_at_step"] == saved


def submitted_command(script: Path) -> list[str]:
    """What the script hands to srun."""
    (line,) = (line for line in script.read_text().splitlines() if line.startswith("srun "))
    return shlex.split(line)[1:]


def processes(module: str, place: Path) -> list[int]:
    """The one process that runs a module on a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"python" in command and module.encode() in command and str(place).encode() in command:
                found.append(int(process.name))
    assert len(found) == 1, (module, found)
    return found


# ---- Ray -----------------------------------------------------------------------------------------------------------


def test_ray_says_what_is_missing(place):
    try:
        import ray  # noqa: F401
    except ImportError:
        done = ratplus_here(place, "sweep", *TINY, "output=out", "launcher=ray")
        assert done.returncode == 2
        assert "launcher=ray: Ray is not installed; pip install 'ratplus[ray]'" in done.stderr
    else:
        pytest.skip("Ray is installed here")


@pytest.mark.slow
def test_ray_end_to_end(place):
    """A cluster of this machine: two cells, one of which fails, and the failed one again."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ratplus[ray]'")
    words = ["sweep", "-m", *TINY, "train.adapt.lr=1e-3,1e30", "train.adapt.lr_min=0", "output=out", "launcher=ray"]
    done = ratplus(place, *words, timeout=400)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 cells failed" in done.stderr
    assert "1 done, 1 failed" in done.stdout
    cells = read_manifest(place / "out")["cells"]
    states = [cell_state(place / "out", cell["stages"]) for cell in cells]
    assert sorted(state.status for state in states) == ["done", "failed"]
    assert any("training diverged" in state.error for state in states)


@pytest.mark.slow
def test_a_failed_cell_is_tried_again_or_left(place):
    words = ["sweep", "-m", *TINY, "train.adapt.lr=1e-3,1e30", "train.adapt.lr_min=0", "output=out"]
    attempts = []
    for retry in ("all", "none", "failed"):
        done = ratplus(place, *words, f"retry={retry}")
        assert done.returncode == 1
        lines = done.stderr.strip().splitlines()
        assert "1 of 2 cells failed; `ratplus status out` says why" in lines[-1]
        assert "Diverged: training diverged: loss or gradient norm is not finite since step 2" in lines[-2]
        (failed,) = (c for c in json.loads(ratplus(place, "status", "out", "--json").stdout)["cells"] if c["error"])
        attempts.append(failed["attempt"])
    assert attempts == [1, 1, 2]
