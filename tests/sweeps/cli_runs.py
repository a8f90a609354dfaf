"""Running the console script as users do, and looking at what it left."""

import io
import json
import shlex
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

RATPLUS = str(Path(sys.executable).with_name("ratplus"))
# One small text file instead of the standard library, and next to no work.
TINY = [
    "data=text", "data.path=text.txt", "model=ratplus_nano", "logger=none", "train.context=64",
    "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8",
    "train.pretrain.steps=4", "train.adapt.steps=2", "train.pretrain.batch=4", "train.adapt.batch=4",
    "run.threads=1",  # the other core belongs to somebody else
]  # fmt: skip


def ratplus(place, *words, timeout=240, **kwargs):
    return subprocess.run([RATPLUS, *words], cwd=place, capture_output=True, text=True, timeout=timeout, **kwargs)


def run_here(*words) -> int:
    """Exit code of a command run in this process, which saves the seconds that importing torch takes."""
    from ratplus.sweeps import cli

    try:
        cli.main(list(words))
    except SystemExit as ended:
        return ended.code or 0
    raise AssertionError("cli.main always exits")


def ratplus_here(place, *words) -> subprocess.CompletedProcess:
    """`ratplus`, in this process: for what a command says and leaves, where its being a process is not the point."""
    from ratplus.sweeps import cli

    said, complained = io.StringIO(), io.StringIO()
    with chdir(place), redirect_stdout(said), redirect_stderr(complained):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
        else:
            raise AssertionError("cli.main always exits")
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


def shell_line(*words) -> str:
    return shlex.join([RATPLUS, *words])


def records(sweep: Path) -> dict:
    found = {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/*/record.json")}
    return {k: {"status": r["status"], "metrics": r["metrics"], "config": r["config"]} for k, r in found.items()}


def weights(sweep: Path) -> dict:
    return {p.parent.name: p.read_bytes() for p in sweep.glob("*/*/model.safetensors")}


def leftovers(sweep: Path) -> list:
    """Files that a finished sweep has no use for."""
    wanted = ("record.json", "curve.csv", "samples.jsonl", "model.safetensors", "config.json", "sweep.json")
    inside = ("logs", "report", "wandb")
    return [
        p for p in sweep.rglob("*")
        if p.is_file() and p.name not in wanted and p.relative_to(sweep).parts[0] not in inside
    ]  # fmt: skip


def stamps(sweep: Path) -> dict:
    """When each file of a stage was last written."""
    stages = ("pretrain", "adapt", "evaluate")
    return {p: p.stat().st_mtime_ns for stage in stages for p in sweep.glob(f"{stage}/*/*")}


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    try:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
