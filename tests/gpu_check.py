"""Everything marked `gpu`, in a few minutes, told so that the last 12,000 characters of a terminal say what failed.

`python tests/gpu_check.py FOLDER [TEST_FILE...]` (`make gpu-check`). Every test file runs in processes of its own, all
at the same time, since most of the time goes into compiling: an error that makes one process's CUDA context unusable
fails no other file. Tests that failed run once more, each alone and with launches that wait, so that the line that a
message names is the one at fault. FOLDER gets the whole log and the results as XML.

Order of the output: versions; one line a file; the recorded errors of each test (ours, then plain bf16), on passes too;
what the failed tests said; their ids and the count last.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (
    "tests/kernels/test_gpu.py",
    "tests/kernels/test_gpu_large.py",
    "tests/ratplus/model/test_decode_graph_gpu.py",
    "tests/ratplus/training/test_training_gpu.py",
    "tests/ratplus/stages/test_peak_memory.py",
    "tests/kernels/test_gpu_blocks.py",
    "tests/kernels/test_gpu_linear_attention.py",
    "tests/ratplus/model/test_selection_gpu.py",
)
SECONDS = 170  # for all files together
AGAIN_SECONDS = 40  # for one failed test, alone
STOP_SECONDS = 15  # in which processes that ran out of time write down what has failed until then
MOST_AGAIN = 3
LAST_CHARACTERS = 1200  # of what a failed test said


@dataclass
class Outcome:
    """Of one test: its id, "passed", "failed" or "skipped", recorded properties, seconds, and what it said."""

    test: str
    verdict: str
    seconds: float
    properties: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""


def main(words: list[str]) -> int:
    """Run the files, print the report; 0 where at least one test passed and none failed."""
    if not words:
        print("usage: python tests/gpu_check.py FOLDER [TEST_FILE...]", file=sys.stderr)
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    files = words[1:] or list(FILES)
    _versions()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background so, and pytest, which inherits it, could not be interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    running = [(name, _start(name, folder)) for name in files]
    try:
        outcomes = _outcomes(running, started)
    finally:
        for _, (process, _, _) in running:  # they are in sessions of their own: what ends us does not reach them
            if process.poll() is None:
                _kill(process)
    for outcome in outcomes:
        # What each test took of the processor is of interest to `pytest --cpu-times` alone.
        noted = "; ".join(f"{key}: {value}" for key, value in outcome.properties if key != "cpu_seconds")
        print(f"{outcome.verdict} {outcome.seconds:5.1f} s {_short(outcome.test)[:64]} {noted}".rstrip(), flush=True)
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    for outcome in failed[:MOST_AGAIN]:
        print(f"---- {outcome.test}\n{outcome.text[-LAST_CHARACTERS:]}", flush=True)
        if "::" in outcome.test:
            print(f"---- alone, with launches that wait: {_alone(outcome.test)}", flush=True)
    for outcome in failed:
        print(f"FAILED {outcome.test}: {_last_line(outcome.text)}")
    count = {kind: sum(o.verdict == kind for o in outcomes) for kind in ("passed", "failed", "skipped")}
    print(", ".join(f"{n} {kind}" for kind, n in count.items()) + f" in {time.monotonic() - started:.0f} s")
    return 0 if count["passed"] and not failed else 1


def _outcomes(running: list[tuple[str, tuple]], started: float) -> list[Outcome]:
    """Those of all files, once each has ended or its time is over."""
    outcomes: list[Outcome] = []
    late: set[subprocess.Popen] = set()
    for name, (process, log, xml) in running:
        left = max(1.0, SECONDS - (time.monotonic() - started))
        try:
            code: int | None = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            if not late:
                late = _interrupted([process for _, (process, _, _) in running])
        if process in late:
            _end(process, started + SECONDS + STOP_SECONDS)
            code = None
        log.close()
        outcomes += _finished(name, code, Path(log.name), xml)
        print(f"{name}: {_ended(code)} after {time.monotonic() - started:.0f} s", flush=True)
    return outcomes


def _versions() -> None:
    code = (
        "import sys, torch, triton; print('python', sys.version.split()[0], 'torch', torch.__version__, 'triton', "
        "triton.__version__, 'cuDNN', torch.backends.cudnn.version(), 'CUDA', torch.version.cuda)"
    )
    for command in ([sys.executable, "-c", code], ["nvidia-smi", "-L"]):
        try:
            print(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip(), flush=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{command[0]}: {error}", flush=True)


def _environment() -> dict[str, str]:
    # The tests replace the home folder, where Triton keeps what it has compiled; all processes should share that.
    cache = os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
    # Options that the caller's pytest has of us, such as --cpu-times, are unknown to files elsewhere.
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return {**own, "TRITON_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}


def _workers() -> list[str]:
    """Test processes a file: several where pytest-xdist is installed and the machine has the cores."""
    try:
        import xdist  # noqa: F401
    except ImportError:
        return []
    count = min(6, (os.cpu_count() or 1) // 3)
    return ["-n", str(count)] if count > 1 else []


def _start(name: str, folder: Path):
    """(process, its log, its XML file) of pytest on one file."""
    stem = Path(name).stem
    xml = folder / f"{stem}.xml"
    log = (folder / f"{stem}.log").open("w")
    workers = [] if "large" in stem else _workers()
    command = [
        sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "--maxfail=5", "--durations=5", "-rp",
        *workers, f"--junitxml={xml}", name,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )  # fmt: skip
    return process, log, xml


def _interrupted(processes: list[subprocess.Popen]) -> set[subprocess.Popen]:
    """Those that still run. Each is interrupted: pytest then tells what the tests said that failed before.

    So are its worker processes, as by Ctrl-C in a terminal: pytest would wait ten seconds for one that is busy.
    """
    late = {process for process in processes if process.poll() is None}
    for process in late:
        os.killpg(process.pid, signal.SIGINT)
    return late


def _end(process: subprocess.Popen, moment: float) -> None:
    """Wait for it until then, and kill it where it has not ended."""
    try:
        process.wait(timeout=max(1.0, moment - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _finished(name: str, code: int | None, log: Path, xml: Path) -> list[Outcome]:
    """The outcomes of a file; a process that died, or left nothing, is a failure that shows the end of its log."""
    outcomes = _read(xml, name) if xml.is_file() else []
    if code in (0, 1) and outcomes:
        return outcomes
    if code == 5:  # no test of that mark
        return [Outcome(name, "failed", 0.0, text="no test was collected")]
    said = log.read_text(errors="replace")
    if code is None:
        # The file has a test that was interrupted like one that passed. The log names those that passed to the end.
        passed = {line.partition("::")[2] for line in said.splitlines() if line.startswith("PASSED ")}
        outcomes = [o for o in outcomes if o.verdict != "passed" or o.test.rpartition(".py::")[2] in passed]
    telling = [line.strip() for line in said.splitlines() if re.search(rf"Fatal|CUDA error|{Path(name).stem}", line)]
    text = "\n".join([said[-LAST_CHARACTERS // 2 :], *telling[-8:], f"pytest {_ended(code)}"])
    return [*outcomes, Outcome(name, "failed", 0.0, text=text)]


def _ended(code: int | None) -> str:
    return "ran out of time" if code is None else f"ended with code {code}"


def _read(xml: Path, name: str) -> list[Outcome]:
    outcomes = []
    for case in ET.parse(xml).iter("testcase"):
        said = case.find("failure")
        said = case.find("error") if said is None else said
        verdict = "failed" if said is not None else "skipped" if case.find("skipped") is not None else "passed"
        properties = [(item.get("name", ""), item.get("value", "")) for item in case.iter("property")]
        text = "" if said is None else f"{said.text or ''}\n{said.get('message', '')}"
        test = f"{name}::{case.get('name')}"
        outcomes.append(Outcome(test, verdict, float(case.get("time", 0)), properties, text.strip()))
    return outcomes


def _alone(test: str) -> str:
    """The last line of pytest on one test, in a process of its own that waits for every launch."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=line", test]
    environment = {**_environment(), "CUDA_LAUNCH_BLOCKING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=AGAIN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "ran out of time"
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return " | ".join(lines[-3:])


def _short(test: str) -> str:
    return test.rpartition("/")[2].replace("::", " ").removeprefix("test_")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
