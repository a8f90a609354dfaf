"""`launcher=ray`: what it needs, that a Ray of this machine is private, and a sweep on one."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cli_runs import TINY, descendants, ratplus, ratplus_here

from ratplus.records.manifest import read_manifest
from ratplus.records.status import cell_state


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


def test_ray_says_what_is_missing(place):
    try:
        import ray  # noqa: F401
    except ImportError:
        done = ratplus_here(place, "sweep", *TINY, "output=out", "launcher=ray")
        assert done.returncode == 2
        assert "launcher=ray: Ray is not installed; pip install 'ratplus[ray]'" in done.stderr
    else:
        pytest.skip("Ray is installed here")


def test_a_ray_of_this_machine_is_on_loopback_and_has_a_token(monkeypatch):
    from ratplus.config.run import LauncherSection
    from ratplus.sweeps.launch.ray import _set_environment

    names = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    _set_environment(LauncherSection(kind="ray", workers=None, address="auto"))
    assert not any(name in os.environ for name in names)
    _set_environment(LauncherSection(kind="ray", workers=None))
    assert [os.environ[name] for name in names[:2]] == ["0", "token"]
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.slow
def test_no_process_of_a_local_ray_listens_beyond_loopback(place):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ratplus[ray]'")
    script = (
        "from ratplus.config.run import LauncherSection\n"
        "from ratplus.sweeps.launch.ray import ray_cluster\n"
        "with ray_cluster(LauncherSection(kind='ray', workers=None)):\n"
        "    import ray\n"
        "    assert ray.get(ray.remote(lambda: 7).remote()) == 7\n"
        "    print('ready', flush=True)\n"
        "    input()\n"
    )
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=place, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert any(line == "ready\n" for line in process.stdout)
            found = listeners([process.pid, *descendants(process.pid)])
        finally:
            process.communicate("\n")
    assert len(found) >= 3
    assert {address for address, _ in found} <= {"0100007F", "0000000000000000FFFF00000100007F"}, found
    assert not (Path.home() / ".ray").exists()


def listeners(pids: list[int]) -> set[tuple[str, str]]:
    """The addresses on which processes listen, with their ports; both in hexadecimal digits, as the kernel has them."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(os.readlink(handle))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {tuple(row[1].split(":")) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


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
