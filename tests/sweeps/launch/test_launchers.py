"""Launchers: what is run, in which order, and what is recorded of it; SLURM by a pretended cluster and by submitit's
local executor, which runs the same jobs as processes of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import TINY, ratplus, wait_for
from made_cells import entry, settle

from ratplus.records.lock import FolderLock
from ratplus.records.record import read_record, write_record
from ratplus.records.status import cell_state
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.manifest import plan_cells, planned_stages
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed
from ratplus.sweeps.launch import local as launch_local
from ratplus.sweeps.launch.cell import run_cell
from ratplus.sweeps.launch.child import Child, record_death
from ratplus.sweeps.launch.pool import Stopped, run_pool
from ratplus.sweeps.launch.work import WorkItem, due_items, threads_per_cell, work_items

# ---- which items, and in which order ------------------------------------------------------------------------------


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
    with FolderLock(tmp_path / "evaluate" / cells[2]["stages"]["evaluate"]):  # which is at work elsewhere
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


def test_cells_do_not_wait_for_a_stage_that_another_trains(tmp_path):
    """Two adaptations under two patterns each: both are trained at once, and only then the cells that share them."""
    cells = [entry("a", d) for d in (1, 2, 4, 8)]
    for cell, owner in ((cells[1], cells[0]), (cells[3], cells[2])):
        cell["stages"]["adapt"] = owner["stages"]["adapt"]
    items = work_items(cells, "evaluate")[1:]  # pretraining is done
    assert [name for _, name, _ in pretend(items, tmp_path, 2)[1]][:2] == ["a D1", "a D4"]
    settle(tmp_path, cells[0], "done", "adapt")
    assert [name for _, name, _ in pretend(items, tmp_path, 2)[1]][:2] == ["a D1", "a D2"]
    alone = [items[0], items[1]]  # nothing else is left to start
    assert [name for _, name, _ in pretend(alone, tmp_path, 2)[1]] == ["a D1", "a D2"]


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
    assert [
        threads_per_cell(compose_one(["launcher=slurm", f"launcher.cpus={n}"]).config.launcher) for n in (6, "null")
    ] == [6, 1]


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


def test_a_failure_that_the_worker_recorded_is_not_recorded_again(job):
    config = typed(job["config"])
    first = next(iter(planned_stages(config, job["corpus"], job["vocab_size"])))
    folder = first.folder(Path(job["folder"]))

    class Ended:
        """A worker that has written why it failed, and has gone."""

        pid, returncode = 0, 1

        def __init__(self, *_):
            parts = {"config": first.config, "parent": first.parent, "metrics": {}, "timing": {}, "provenance": {}}
            error = {"type": "Diverged", "message": "its own words"}
            write_record(folder, stage=first.name, status="failed", error=error, **parts)

    child = Child(job, start=Ended)
    assert child.finish() == 1
    assert read_record(folder)["error"]["type"] == "Diverged"


def test_a_worker_s_own_record_is_left_as_it_is(job):
    job["config"]["train"]["pretrain"]["lr"] = 1.0  # another id than was planned, so the worker refuses
    child = Child(job)
    child.process.wait()
    assert child.finish() == 2
    assert not list(Path(job["folder"]).glob("*/*/record.json"))


def test_ray_s_lost_tasks_are_recorded_each_with_its_own_reason(job):
    from ratplus.sweeps.launch.ray import RayRun

    class Lost(Exception):
        pass

    item = SimpleNamespace(id=job["id"], job=lambda folder, threads: job)
    for attempt, reason in enumerate(["the worker died: out of memory", "the node died"], 1):

        def get(_ref, reason=reason):
            raise Lost(f"{reason}\nmore")

        ray = SimpleNamespace(wait=lambda refs, timeout: (refs, []), get=get, exceptions=SimpleNamespace(RayError=Lost))
        run = RayRun(ray, SimpleNamespace(remote=lambda job: "ref"), item, 0, Path(job["folder"]), 1)
        assert run.poll() == 1
        assert run.ending() == f"Lost: {reason}"
        (folder,) = (Path(job["folder"]) / "pretrain").iterdir()
        error = read_record(folder)["error"]
        assert (error["message"], error["attempt"]) == (f"Ray's task was lost: {reason}", attempt)


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
