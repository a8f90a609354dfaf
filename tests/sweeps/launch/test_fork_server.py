"""The process from which a local sweep forks its workers: they are like fresh processes, and end like them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import RATPLUS, TINY, descendants, leftovers, ratplus_here, records, wait_for, warm_server, weights

from ratplus.sweeps.launch import fork_server
from ratplus.sweeps.launch import local as launch_local
from ratplus.sweeps.launch.fork_server import ForkServer, server_for

LOOK = """
import json, os, random, signal, sys, tempfile
print(json.dumps({
    "cwd": os.getcwd(), "variable": os.environ.get("A_VARIABLE"), "variables": len(os.environ),
    "session": os.getsid(0) == os.getpid(), "input": sys.stdin.read(), "torch": "torch" in sys.modules,
    "threads": len(os.listdir("/proc/self/task")), "child signal": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "terminate": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "open": sum(os.path.exists(f"/proc/self/fd/{n}") for n in range(3, 100)),
    "draws": [random.random(), os.path.basename(tempfile.mktemp())], "seen": os.listdir("."),
}), flush=True)
print("complaint", file=sys.stderr, flush=True)
os._exit(7)
"""


def forked(server: ForkServer, place: Path, code: str, environment: dict | None = None):
    """A forked process that runs this code, by timeit, with its output in files of `place`."""
    place.mkdir(exist_ok=True)
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        return server.fork(
            "timeit:main", ["timeit", "-n1", "-r1", code], environment=environment or dict(os.environ),
            cwd=str(place), stdout=out.fileno(), stderr=err.fileno(),
        )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> ForkServer:
    return warm_server()


def test_a_forked_process_is_like_a_fresh_one(server, tmp_path):
    environment = {"PATH": os.environ["PATH"], "A_VARIABLE": "one\ntwo"}
    processes = [forked(server, tmp_path / name, LOOK, environment) for name in ("a", "b")]
    assert [process.wait(60) for process in processes] == [7, 7]
    found = [json.loads((tmp_path / name / "out").read_text()) for name in ("a", "b")]
    draws = [seen.pop("draws") for seen in found]
    assert draws[0][0] != draws[1][0]
    assert draws[0][1] != draws[1][1]
    for name, seen in zip(("a", "b"), found, strict=True):
        assert seen == {
            "cwd": str(tmp_path / name), "variable": "one\ntwo", "variables": 2, "session": True, "input": "",
            "torch": True, "threads": 1, "child signal": True, "terminate": True, "open": 0,
            "seen": ["out", "err"] if seen["seen"][0] == "out" else ["err", "out"],
        }  # fmt: skip
        assert (tmp_path / name / "err").read_text() == "complaint\n"


def test_its_end_is_told(server, tmp_path):
    sleeping = [
        forked(server, tmp_path / str(n), "import time; print(1, flush=True); time.sleep(60)") for n in range(3)
    ]
    for process, number in zip(sleeping, (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV), strict=True):
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
        assert process.returncode == process.poll() == -number
        process.terminate()  # nothing happens to whoever has its pid now
    assert forked(server, tmp_path / "well", "pass").wait(60) == 0
    assert forked(server, tmp_path / "badly", "1 / 0").wait(60) == 1
    assert "ZeroDivisionError" in (tmp_path / "badly" / "err").read_text()


def test_only_what_is_read_on_import_decides_whether_a_server_suits(monkeypatch):
    with socket.socket() as control, subprocess.Popen("true") as process:
        environment = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0"}
        server = ForkServer(environment, process, control)
        monkeypatch.setattr(fork_server, "_server", server)
        assert server_for(environment) is server
        assert server_for(environment | {"CUDA_VISIBLE_DEVICES": "3"}) is server
        assert server_for(environment | {"OMP_NUM_THREADS": "7"}) is None
        assert server_for({k: v for k, v in environment.items() if k != "PATH"}) is None


def test_a_server_that_has_gone_costs_time_only(tmp_path, monkeypatch):
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(["sleep", "60"])
    gone = ForkServer({}, process, ours)
    assert not gone.ready()
    theirs.close()
    process.kill()
    process.wait()
    assert not gone.ready()
    with pytest.raises(ConnectionError):
        forked(gone, tmp_path, "pass")
    monkeypatch.setattr(gone, "ready", lambda: True)  # it ended after it was asked
    started = []
    monkeypatch.setattr(launch_local, "start_process", lambda *words: started.append(words))
    for server in (None, gone):
        monkeypatch.setattr(launch_local, "server_for", lambda _, server=server: server)
        launch_local.start_forked("job", {}, "/", 1)
    assert started == [("job", {}, "/", 1)] * 2
    gone.close()


def test_cells_of_forked_workers_equal_those_of_this_process(tmp_path, monkeypatch, server):
    """Same weights and curves to the last bit, and nothing left over; a failed worker is recorded as always."""
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    words = ["adapt", "-m", *TINY, "train.adapt.lr_min=0"]
    monkeypatch.setattr(launch_local, "start_process", lambda *_: pytest.fail("not forked"))
    # Whatever variables other tests of this process have left behind.
    monkeypatch.setattr(launch_local, "server_for", lambda _: server)
    assert ratplus_here(tmp_path, *words, "train.adapt.lr=1e-3,1e30", "output=forked").returncode == 1
    assert ratplus_here(tmp_path, *words, "train.adapt.lr=1e-3", "output=here").returncode == 0
    found, expected = records(tmp_path / "forked"), records(tmp_path / "here")
    assert len(expected) == 2
    (failed,) = found.keys() - expected.keys()
    assert found.pop(failed)["status"] == "failed"
    assert found == expected
    assert weights(tmp_path / "forked") == weights(tmp_path / "here")
    for stage in ("pretrain", "adapt"):
        curves = [
            {p.parent.name: p.read_bytes() for p in (tmp_path / sweep / stage).glob("*/curve.csv")}
            for sweep in ("forked", "here")
        ]
        assert curves[1].items() <= curves[0].items()
    assert leftovers(tmp_path / "forked") == leftovers(tmp_path / "here") == []


@pytest.mark.slow
def test_forked_workers_stop_when_the_sweep_is_killed(tmp_path):
    """They notice that the server has gone, which goes with the sweep; and they have saved their state."""
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    words = ["pretrain", "-m", *TINY, "seed=0,1,2", "launcher.workers=1", "train.pretrain.steps=100", "output=out"]
    sweep = subprocess.Popen([RATPLUS, *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        # The first pretraining is a process of its own, and a later one is forked.
        wait_for(lambda: list(tmp_path.glob("out/pretrain/*/record.json")), 300)
        server = next(pid for pid in descendants(sweep.pid) if b"fork_server" in command_line(pid))
        wait_for(lambda: descendants(server) and "\n10," in newest_curve(tmp_path), 300)
        workers = descendants(server)
        sweep.kill()
        wait_for(lambda: not any(map(is_running, (server, *workers))))
    finally:
        sweep.kill()
        sweep.wait()
    (state,) = tmp_path.glob("out/pretrain/*/training-*.pt")
    assert ratplus_here(tmp_path, *words).returncode == 0
    resumed = json.loads((state.parent / "record.json").read_text())["timing"]["resumed_at_step"]
    assert resumed == int(state.name.split("-")[1]) > 0


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has waited for does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def newest_curve(place: Path) -> str:
    return max(place.glob("out/pretrain/*/curve.csv"), key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.mark.slow
def test_importing_asks_for_no_gpu():
    """A process that has asked for one cannot fork others that use it."""
    code = (
        "import torch\n"
        "def asked(*_, **__): raise SystemExit('CUDA was asked')\n"
        "for name in ('is_available', 'device_count', 'init', '_lazy_init'): setattr(torch.cuda, name, asked)\n"
        "from ratplus.sweeps.launch.fork_server import preload\n"
        "preload([])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
