"""What `launcher=ray` asks of Ray and makes of its answers; Ray is a stand-in, which runs no task."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_cells import entry

from ratplus.config.run import LauncherSection
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch import ray as launch_ray
from ratplus.sweeps.launch.ray import ray_cluster, run_job
from ratplus.sweeps.launch.work import WorkItem


class RayError(Exception):
    """As Ray's own."""


class PretendedRay:
    """Notes in `told` what it is asked; `ready` says whether tasks have ended, `ends` how."""

    def __init__(self, **resources: float):
        self.resources, self.told = resources, []
        self.ready, self.ends = False, (0, "")
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.refused: Exception | None = None

    def init(self, **given):
        assert list(Path.cwd().iterdir()) == [], "modules of the current folder are no modules of Ray's workers"
        self.told.append(("init", given))
        if self.refused:
            raise self.refused

    def cluster_resources(self):
        return self.resources

    def remote(self, **given):
        self.told.append(("remote", given))
        return lambda function: SimpleNamespace(remote=lambda job: (function, job))

    def wait(self, refs, timeout):
        self.told.append(("wait", timeout))
        return (refs, []) if self.ready else ([], refs)

    def get(self, ref):
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends

    def cancel(self, ref):
        self.told.append(("cancel", ref[1]["id"]))

    def shutdown(self):
        self.told.append("shutdown")


@pytest.fixture
def ray(monkeypatch):
    made = PretendedRay(CPU=7.0, GPU=3.0)
    monkeypatch.setitem(sys.modules, "ray", made)
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH",
                 "RAY_USAGE_STATS_ENABLED"):  # fmt: skip
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return made


def section(**keys) -> LauncherSection:
    return LauncherSection(**({"kind": "ray", "workers": None, "threads": None} | keys))


QUIET = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}


@pytest.mark.parametrize(
    ("keys", "at_once", "asked"),
    [
        ({}, 7, (1, 0)), ({"cpus": 2}, 3, (2, 0)), ({"cpus": 7}, 1, (7, 0)), ({"gpus": 1}, 3, (1, 1)),
        ({"gpus": 2}, 1, (1, 2)), ({"cpus": 4, "gpus": 1}, 1, (4, 1)), ({"workers": 2}, 2, (1, 0)),
        ({"workers": 9}, 7, (1, 0)), ({"gpus": 0}, 7, (1, 0)),
    ],
)  # fmt: skip
def test_as_many_cells_as_have_room(ray, tmp_path, monkeypatch, keys, at_once, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").touch()
    with ray_cluster(section(**keys)) as (workers, starter):
        assert workers == at_once
        assert callable(starter(tmp_path))
        assert Path.cwd() == tmp_path
    assert ray.told == [
        ("init", {"address": "local", **QUIET}),
        ("remote", {"num_cpus": asked[0], "num_gpus": asked[1], "max_retries": 0}), "shutdown",
    ]  # fmt: skip
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"cpus": 8}, "launcher.cpus=8 launcher.gpus=0: the cluster has 7 CPUs and 3 GPUs"),
        ({"gpus": 4}, "launcher.cpus=1 launcher.gpus=4: the cluster has 7 CPUs and 3 GPUs"),
    ],
)
def test_a_cluster_without_room_for_a_cell(ray, keys, line):
    with pytest.raises(UsageError) as told, ray_cluster(section(**keys)):
        pass
    assert str(told.value) == line
    assert ray.told[-1] == "shutdown"
    ray.resources = {}
    with pytest.raises(UsageError, match="the cluster has 0 CPUs and 0 GPUs"), ray_cluster(section(gpus=1)):
        pass


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_cannot_be_reached(ray, address):
    ray.refused = ConnectionError("no cluster\nmore words")
    with pytest.raises(UsageError) as told, ray_cluster(section(address=address)):
        pass
    assert str(told.value) == f"launcher.address: {address or 'a local cluster'}: no cluster"
    assert ray.told == [("init", {"address": address or "local", **QUIET})]


def test_what_the_users_environment_says_of_tokens_stays(ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "off")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "mine")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with ray_cluster(section()):
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]) == ("off", "1")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with ray_cluster(section()):
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"


@pytest.fixture
def started(ray, tmp_path):
    """A cell that has been handed to Ray."""
    made: dict = {
        **entry("m", 1), "corpus": {}, "run": {"run": {"threads": None}},
        "config": {"model": {"vocab_size": 9}, "seed": 0},
    }  # fmt: skip
    with ray_cluster(section(cpus=3)) as (_, starter):
        run = starter(tmp_path)(WorkItem(made, "evaluate", None), 5)
    ray.told.clear()
    return run


def test_a_task_to_its_end(started, ray, tmp_path):
    assert (started.slot, started.ending(), started.progress()) == (5, "", {})
    assert started._ref[0] is run_job
    assert (started._ref[1]["threads"], started._ref[1]["folder"]) == (3, str(tmp_path))
    assert started.poll() is None
    (tmp_path / "logs").mkdir()
    news = {"stage": "adapt", "done": 3, "total": 10}
    (tmp_path / "logs" / f"{started.item.id}.progress.json").write_text(json.dumps(news))
    assert started.progress() == news
    ray.ready, ray.ends = True, (1, "bad luck")
    assert (started.poll(), started.ending()) == (1, "bad luck")
    started.request_stop()
    started.stop(4.0)
    assert ray.told == [("wait", 0), ("wait", 0), ("cancel", started.item.id), ("wait", 5.0)]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_task_that_ray_lost(started, ray, monkeypatch, recorded):
    deaths = []
    monkeypatch.setattr(launch_ray, "record_death", lambda *words: deaths.append(words))
    monkeypatch.setattr(launch_ray, "tail", lambda path: [path.name])
    monkeypatch.setattr(started._records, "changed", lambda: recorded)
    ray.ready, ray.ends = True, RayError("node gone\nmore")
    assert (started.poll(), started.ending()) == (1, "RayError: node gone")
    told = (started._job, "RayError", "Ray's task was lost: node gone", [f"{started.item.id}.log"])
    assert deaths == ([] if recorded else [told])


class PretendedChild:
    """A worker that ends after two looks, or not before it is stopped."""

    def __init__(self, error: BaseException | None, log: list):
        self.looks, self.error, self.log = 0, error, log
        self.process = SimpleNamespace(poll=self.poll)

    def poll(self):
        self.looks += 1
        if self.error and self.looks == 2:
            raise self.error
        return None if self.looks < 3 else 1

    def stop(self, seconds):
        self.log.append(("stop", seconds))
        raise KeyboardInterrupt

    def finish(self):
        return 1

    def ending(self):
        return "bad luck"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt("stop"), RuntimeError("odd")])
def test_the_work_of_a_task_on_its_node(tmp_path, monkeypatch, error):
    """Ray ends a task by an exception in it."""
    log: list = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(launch_ray, "Child", lambda job: log.append(Path.cwd()) or PretendedChild(error, log))
    monkeypatch.setattr(launch_ray.time, "sleep", log.append)
    job = {"cwd": str(tmp_path / "there")}
    if error is None:
        assert run_job(job) == (1, "bad luck")
        assert log == [tmp_path / "there", 0.2, 0.2]
        return
    with pytest.raises(type(error)) as raised:
        run_job(job)
    assert raised.value is error
    assert log == [tmp_path / "there", 0.2, ("stop", 30.0)]
