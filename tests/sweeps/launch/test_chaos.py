"""Whatever happens to the machine, a sweep that is run again ends as an undisturbed one does, bit for bit."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from cli_runs import (
    TINY,
    Started,
    descendants,
    leftovers,
    ratplus,
    ratplus_here,
    records,
    server_of_commands,
    stamps,
    wait_for,
    weights,
    working_in,
)


def with_text(folder):
    (folder / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return folder


@pytest.fixture
def place(tmp_path):
    return with_text(tmp_path)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The sweep folder of one undisturbed cell."""
    place = with_text(tmp_path_factory.mktemp("straight"))
    assert ratplus_here(place, "evaluate", *TINY, "output=straight").returncode == 0
    return place / "straight"


def kill_at_random(
    place, words: list[str], kills: int, draw: random.Random, pause: tuple[float, float], server=None
) -> None:
    """SIGKILL random processes of a sweep at random moments, starting it anew whenever it has ended."""
    process = None
    done = 0
    try:
        while done < kills:
            if process is None or process.poll() is not None:
                process = Started(place, *words, server=server)
            time.sleep(draw.uniform(*pause))
            victims = [process.pid, *descendants(process.pid)]
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(victims), signal.SIGKILL)
                    done += 1
                time.sleep(0.2)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        if process is not None:
            process.wait()


def kill_in_training(place, words: list[str], killed, server=None) -> None:
    """SIGKILL all of a sweep while it trains; on a busy machine training may have ended by then, and another begins."""
    for _ in range(20):
        process = Started(place, *words, server=server)
        wait_for(lambda p=process: p.poll() is not None or list(killed.glob("pretrain/*/training-*.pt")))
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not working_in(place))  # workers that were started meanwhile see that their parent has gone
        if list(killed.glob("pretrain/*/training-*.pt")) and not list(killed.glob("pretrain/*/record.json")):
            return
        shutil.rmtree(killed, ignore_errors=True)
    pytest.fail("no kill met the training")


def assert_same_end(place, straight, killed) -> None:
    """Once the workers of killed commands have ended too: one that waited for a lock holds it for a moment."""
    wait_for(lambda: not working_in(place))
    assert records(straight) == records(killed)
    assert {r["status"] for r in records(killed).values()} == {"done"}
    assert weights(straight) == weights(killed)
    assert leftovers(killed) == leftovers(straight) == []


def kill_again_and_again(place, server=None) -> str:
    """Once in the middle of training, then where the draw falls; returns what the commands that ended complained of."""
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "train.pretrain.steps=50", "run.checkpoint_seconds=0"]
    first = ratplus(place, *words, "output=straight", server=server)
    assert first.returncode == 0, first.stderr
    kill_in_training(place, [*words, "output=killed"], place / "killed", server)
    kill_at_random(place, [*words, "output=killed"], 1, random.Random(7), (0.3, 2), server)
    last = ratplus(place, *words, "output=killed", server=server)
    assert last.returncode == 0, last.stderr
    assert_same_end(place, place / "straight", place / "killed")
    (pretrain,) = (json.loads(p.read_text()) for p in (place / "killed").glob("pretrain/*/record.json"))
    assert pretrain["timing"]["resumed_at_step"] > 0
    return first.stderr + last.stderr


def test_killed_again_and_again(place):
    """The short form of what the slow tests do."""
    assert "this file system has no" not in kill_again_and_again(place)


# What a small preloaded library answers in place of the C library: as exFAT, SMB, and mounts of cloud storage do.
_REFUSALS = {
    "link": "int link(const char *a, const char *b) { (void)a; (void)b; errno = EPERM; return -1; }",
    "chmod": "int chmod(const char *a, unsigned m) { (void)a; (void)m; errno = EPERM; return -1; }",
    "fsync": "int fsync(int f) { (void)f; errno = EINVAL; return -1; }",
}


@pytest.mark.slow
@pytest.mark.parametrize("refused", _REFUSALS)
def test_kills_on_a_file_system_that_lacks_an_operation(place, refused):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (place / "no.c").write_text(f"#include <errno.h>\n{_REFUSALS[refused]}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "no.so", "no.c"], cwd=place, check=True)
    # A server of its own, since a library is loaded where a process begins, not where it is forked.
    server = server_of_commands(LD_PRELOAD=str(place / "no.so"))
    try:
        said = kill_again_and_again(place, server)
    finally:
        server.close()
    assert f"this file system has no {'hard links' if refused == 'link' else refused}; " in said


@pytest.mark.slow
def test_twenty_kills_of_the_smoke_sweep(place):
    words = ["sweep", "experiment=smoke", "run.checkpoint_seconds=0", "train.pretrain.steps=60"]
    assert ratplus(place, *words, "output=straight", timeout=900).returncode == 0
    kill_at_random(place, [*words, "output=killed"], 20, random.Random(1), (0.5, 9))
    for _ in range(10):
        last = ratplus(place, *words, "output=killed", timeout=900)
        if last.returncode == 0:
            break
    assert last.returncode == 0, last.stderr
    assert_same_end(place, place / "straight", place / "killed")
    # Done once and for all: another run writes nothing.
    before = stamps(place / "killed")
    assert ratplus(place, *words, "output=killed").returncode == 0
    assert stamps(place / "killed") == before


def test_two_sweeps_at_once_on_one_folder(place):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated"]
    both = [Started(place, *words, "output=both") for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {r["status"] for r in records(place / "both").values()} == {"done"}
    assert len(records(place / "both")) == 5
    assert leftovers(place / "both") == []


def test_a_truncated_record_is_told_and_done_again(place, straight):
    words = ["evaluate", *TINY, "output=out"]
    shutil.copytree(straight, place / "out")
    before = records(place / "out")
    for stage in ("adapt", "evaluate"):
        path = next((place / "out" / stage).glob("*/record.json"))
        path.write_text(path.read_text()[:-40])
    status = ratplus_here(place, "status", "out")
    assert status.returncode == 1
    assert "1 damaged" in status.stdout
    again = ratplus_here(place, *words)
    assert again.returncode == 0
    assert "not a whole record (truncated or edited)" in again.stderr
    assert again.stderr.count("doing this stage again") == 2
    assert records(place / "out") == before


@pytest.fixture
def small_disk(place):
    """Runs lines of a shell script in a private mount namespace with a tmpfs of our own at ./disk (small_disk.py)."""
    (place / "disk").mkdir()
    try:
        probe = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "disk"], cwd=place, text=True,
            capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux) to make a small disk")
    if probe.returncode != 0:
        pytest.skip(f"this machine lets us mount nothing: {probe.stderr.strip()}")

    def run(*lines: str) -> tuple[str, str]:
        process = Started(place, *lines, run="small_disk:main")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (out, err)
        return out, err

    return run


def test_disk_full(place, small_disk, straight):
    """The stage fails with the file and the reason; with room again, the same command ends as if nothing had been."""
    command = shlex.join(["ratplus", "evaluate", *TINY, "output=disk/out"])
    out, err = small_disk(
        "mount -o remount,size=120k disk", command, "find disk -type f", "mount -o remount,size=50m disk", command,
        "cp -r disk/out kept",
    )  # fmt: skip
    full, _, roomy = out.partition("code 1\n")
    assert roomy, (full, err)
    assert "model.safetensors" not in roomy.partition("code 0")[0]
    assert ".tmp" not in roomy
    assert "No space left on device" in err
    assert "model.safetensors" in err
    assert "Traceback" not in err
    assert "code 0" in roomy
    assert_same_end(place, straight, place / "kept")


def test_read_only_folder(place, small_disk):
    command = shlex.join(["ratplus", "evaluate", *TINY, "output=disk/out"])
    assert ratplus_here(place, "pretrain", *TINY, "output=out").returncode == 0
    out, err = small_disk("cp -r out disk/out", "mount -o remount,ro disk", command, "ratplus status disk/out")
    line = "ratplus: error: output=disk/out: cannot be written (Read-only file system)"
    assert err.splitlines() == [line], err
    assert out.startswith("code 2\n")
    assert "1 missing" in out  # looking is allowed
    assert out.endswith("code 0\n")


def test_a_jumping_clock_changes_nothing(place, straight):
    """Wall clocks are set back and forth (NTP, suspended laptops); locks and checkpoints must not care."""
    words = ["evaluate", *TINY, "run.checkpoint_seconds=0"]
    jumping = os.environ | {"JUMPING_CLOCK": "yes"}
    both = [Started(place, *words, "output=jumped", environment=jumping) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert_same_end(place, straight, place / "jumped")
