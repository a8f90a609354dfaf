"""Whatever happens to the machine, a sweep that is run again ends as an undisturbed one does, bit for bit."""

import json
import os
import random
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
    shell_line,
    stamps,
    wait_for,
    weights,
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


def kill_at_random(place, words: list[str], kills: int, draw: random.Random, pause: tuple[float, float]) -> None:
    """SIGKILL random processes of a sweep at random moments, starting it anew whenever it has ended."""
    process = None
    done = 0
    try:
        while done < kills:
            if process is None or process.poll() is not None:
                process = Started(place, *words)
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


def assert_same_end(straight, killed) -> None:
    assert records(straight) == records(killed)
    assert {r["status"] for r in records(killed).values()} == {"done"}
    assert weights(straight) == weights(killed)
    assert leftovers(killed) == leftovers(straight) == []


def test_killed_again_and_again(place):
    """The short form: once for sure in the middle of training, then wherever the draw falls."""
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "train.pretrain.steps=100", "run.checkpoint_seconds=0"]
    assert ratplus_here(place, *words, "output=straight").returncode == 0
    process = Started(place, *words, "output=killed")
    wait_for(lambda: list(place.glob("killed/pretrain/*/training-*.pt")))
    victims = [*descendants(process.pid), process.pid]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    kill_at_random(place, [*words, "output=killed"], 3, random.Random(7), (0.3, 2))
    last = ratplus_here(place, *words, "output=killed")
    assert last.returncode == 0, last.stderr
    assert_same_end(place / "straight", place / "killed")
    (pretrain,) = (json.loads(p.read_text()) for p in (place / "killed").glob("pretrain/*/record.json"))
    assert pretrain["timing"]["resumed_at_step"] > 0


# What a small preloaded library answers in place of the C library: as exFAT, SMB, and mounts of cloud storage do.
_REFUSALS = {
    "link": "int link(const char *a, const char *b) { (void)a; (void)b; errno = EPERM; return -1; }",
    "chmod": "int chmod(const char *a, unsigned m) { (void)a; (void)m; errno = EPERM; return -1; }",
    "fsync": "int fsync(int f) { (void)f; errno = EINVAL; return -1; }",
}


@pytest.mark.slow
@pytest.mark.parametrize("refused", _REFUSALS)
def test_kills_on_a_file_system_that_lacks_an_operation(place, monkeypatch, refused):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (place / "no.c").write_text(f"#include <errno.h>\n{_REFUSALS[refused]}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "no.so", "no.c"], cwd=place, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(place / "no.so"))
    test_killed_again_and_again(place)


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
    assert_same_end(place / "straight", place / "killed")
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
    """Runs a shell script in a private mount namespace with a tmpfs of our own at ./disk; nothing else sees it."""
    (place / "disk").mkdir()

    def run(script: str) -> subprocess.CompletedProcess:
        words = ["unshare", "--map-root-user", "--mount", "sh", "-ec", f"mount -t tmpfs none disk\n{script}"]
        return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=600)

    try:
        probe = run("true")
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux) to make a small disk")
    if probe.returncode != 0:
        pytest.skip(f"this machine lets us mount nothing: {probe.stderr.strip()}")
    return run


def test_disk_full(place, small_disk, straight):
    """The stage fails with the file and the reason; with room again, the same command ends as if nothing had been."""
    words = ["evaluate", *TINY, "output=disk/out"]
    done = small_disk(
        f"mount -o remount,size=120k disk\nset +e\n{shell_line(*words)}\necho code $?\nfind disk -type f\n"
        f"mount -o remount,size=50m disk\n{shell_line(*words)}\necho code $?\ncp -r disk/out kept"
    )
    full, _, roomy = done.stdout.partition("code 1\n")
    assert roomy, (full, done.stderr)
    assert "model.safetensors" not in roomy.partition("code 0")[0]
    assert ".tmp" not in roomy
    assert "No space left on device" in done.stderr
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert "code 0" in roomy
    assert_same_end(straight, place / "kept")


def test_read_only_folder(place, small_disk):
    words = ["evaluate", *TINY, "output=disk/out"]
    done = small_disk(
        f"{shell_line('pretrain', *words[1:])} 2>/dev/null\nmount -o remount,ro disk\nset +e\n"
        f"{shell_line(*words)}\necho code $?\n{shell_line('status', 'disk/out')}\necho code $?"
    )
    assert done.stderr.splitlines() == ["ratplus: error: output=disk/out: cannot be written (Read-only file system)"], (
        done.stderr
    )
    assert done.stdout.count("code 2") == 1
    assert "1 missing" in done.stdout  # looking is allowed
    assert done.stdout.endswith("code 0\n")


def test_a_jumping_clock_changes_nothing(place, straight):
    """Wall clocks are set back and forth (NTP, suspended laptops); locks and checkpoints must not care."""
    words = ["evaluate", *TINY, "run.checkpoint_seconds=0"]
    jumping = os.environ | {"JUMPING_CLOCK": "yes"}
    both = [Started(place, *words, "output=jumped", environment=jumping) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert_same_end(straight, place / "jumped")
