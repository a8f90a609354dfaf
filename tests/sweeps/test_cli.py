"""The command line as users meet it: sweeps, resuming, failures, bad input. Each test works in a folder of its own.

Where a signal, another process or the start itself counts, the console script is started; else its entry point is
called.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from cli_runs import RATPLUS, TINY, Started, descendants, leftovers, ratplus_here, records, wait_for


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


def script(place, *words, timeout=60) -> subprocess.CompletedProcess:
    """The console script, as users start it."""
    return subprocess.run([RATPLUS, *words], cwd=place, capture_output=True, text=True, timeout=timeout)


def test_smoke_experiment(place):
    """The shipped smoke sweep with one of its models, two of its patterns and less text: the quick form."""
    less = ["data=text", "data.path=text.txt", "sweep.grid.model=[ratplus_nano]"]
    less.append("sweep.points=[{pattern: dense}, {pattern: dilated}]")
    done = ratplus_here(place, "sweep", "experiment=smoke", *less)
    assert_smoke(place, done, less, models=1, patterns=2)


@pytest.mark.slow
def test_smoke_experiment_whole(place):
    """2 models x 3 patterns, through the console script."""
    assert_smoke(place, script(place, "sweep", "experiment=smoke", timeout=400), [], models=2, patterns=3)


def assert_smoke(place, done, less: list[str], *, models: int, patterns: int) -> None:
    """W&B offline, table and figure; the same command again does nothing; looking at it afterwards."""
    cells = models * patterns
    assert done.returncode == 0, done.stderr
    assert f"{cells} done; table: outputs/smoke/report/accuracy_vs_dilation.md" in done.stdout
    sweep = place / "outputs" / "smoke"
    with (sweep / "report" / "accuracy_vs_dilation.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {
        "model", "pattern", "dilation", "window", "sinks", "seed", "loss", "perplexity", "next_token_accuracy",
        "recall_accuracy", "kv_entries", "attention_flops_ratio", "status",
    }  # fmt: skip
    assert len(rows) == cells
    assert columns <= set(rows[0])
    assert {r["status"] for r in rows} == {"done"}
    runs = list((sweep / "wandb").glob("offline-run-*"))
    assert {run.name.rpartition("-")[2] for run in runs} > set(records(sweep))  # one run a stage, named by its id
    assert len(runs) == models + 2 * cells + 1  # and the report's

    stamps = {p: p.stat().st_mtime_ns for p in sweep.glob("*/*/*") if p.parts[-3] in ("pretrain", "adapt", "evaluate")}
    again = ratplus_here(place, "sweep", "experiment=smoke", *less)
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps

    status = ratplus_here(place, "status", "outputs/smoke")
    assert status.returncode == 0
    assert f"{cells} done" in status.stdout
    report = ratplus_here(place, "report", "outputs/smoke")
    assert report.returncode == 0
    assert "accuracy_vs_dilation.png" in report.stdout
    for suffix in ("md", "tex", "csv", "png", "pdf"):
        assert (sweep / "report" / f"accuracy_vs_dilation.{suffix}").stat().st_size > 100


def test_sigterm_saves_and_says_so(place):
    words = [*TINY, "train.pretrain.steps=100000", "output=out"]
    process = Started(place, "pretrain", *words)
    wait_for(lambda: list(place.glob("out/pretrain/*/curve.csv")) and "\n1," in curve(place))
    (cell,) = json.loads(ratplus_here(place, "status", "out", "--json").stdout)["cells"]
    assert (cell["status"], cell["stage"]) == ("running", "pretrain")
    assert 1 <= cell["progress"]["done"] < cell["progress"]["total"] == 100000
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)  # 100,000 steps would take hours
    assert process.returncode == 143
    assert "interrupted by SIGTERM; run the same command again to continue" in stderr
    assert len(list(place.glob("out/pretrain/*/training-*.pt"))) == 1
    assert list((place / "out" / "logs").iterdir()) == []


def curve(place) -> str:
    return "\n" + next(place.glob("out/pretrain/*/curve.csv")).read_text()


def test_ctrl_c_stops_a_sweep_and_its_workers(place):
    words = [*TINY, "pattern=dense,dilated", "train.pretrain.steps=100000", "output=out"]
    process = Started(place, "sweep", *words)
    wait_for(lambda: list(place.glob("out/pretrain/*/curve.csv")) and "\n1," in curve(place))
    workers = descendants(process.pid)
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT; run the same command again to continue" in stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert len(list(place.glob("out/pretrain/*/training-*.pt"))) == 1


def test_one_failed_cell_does_not_stop_the_rest(place):
    words = ["sweep", "-m", *TINY, "train.adapt.lr=1e-3,1e30", "train.adapt.lr_min=0", "output=out"]
    done = ratplus_here(place, *words)
    assert done.returncode == 1
    assert "1 of 2 cells failed; `ratplus status out` says why" in done.stderr
    assert "1 done, 1 failed" in done.stdout
    status = ratplus_here(place, "status", "out")
    assert status.returncode == 1
    assert "Diverged: training diverged: loss or gradient norm is not finite" in " ".join(status.stdout.split())
    table = (place / "out" / "report" / "accuracy_vs_dilation.md").read_text()
    assert "failed" in table.lower()
    failed = [r for r in records(place / "out").values() if r["status"] == "failed"]
    assert len(failed) == 1


def test_two_processes_on_one_cell(place):
    words = ["evaluate", *TINY, "train.pretrain.steps=200", "output=out"]
    first = Started(place, *words)
    wait_for(lambda: list(place.glob("out/pretrain/*/lock.json")))
    # The first stands still until the second has met its lock: on a busy machine it could be done before.
    stopped = [first.pid, *descendants(first.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    second = Started(place, *words)
    try:
        wait_for(lambda: "waiting for process" in second.stderr_so_far())
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    both = [first, second]
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(records(place / "out")) == 3
    assert leftovers(place / "out") == []
    assert all("1 done; table" in stdout for stdout, _ in outputs)


def test_stages_one_by_one(place):
    for verb, stages in (("pretrain", {"pretrain"}), ("adapt", {"pretrain", "adapt"})):
        assert ratplus_here(place, verb, *TINY, "output=out").returncode == 0
        assert {p.parts[-3] for p in (place / "out").glob("*/*/record.json")} == stages


def test_extending_a_sweep_and_refusing_strangers(place):
    words = ["evaluate", *TINY, "output=out"]
    assert ratplus_here(place, *words).returncode == 0
    assert ratplus_here(place, *words, "pattern=dilated").returncode == 0
    status = ratplus_here(place, "status", "out")
    assert "2 done" in status.stdout
    stranger = ratplus_here(place, *words, "train.pretrain.steps=5")
    assert_one_line(stranger, "holds cells with train.pretrain.steps=4, this call asks for train.pretrain.steps=5")
    # What doesn't change results makes no stranger, and a changed text does.
    assert ratplus_here(place, *words, "eval.batch=3", f"data.path={place / 'text.txt'}").returncode == 0
    text = (place / "text.txt").read_text()
    (place / "text.txt").write_text(text.upper())
    assert_one_line(ratplus_here(place, *words), "the files changed since")
    assert_one_line(ratplus_here(place, *words, "data.root=elsewhere"), "holds cells with corpus.sha256.train=")
    (place / "text.txt").write_text(text)

    # A record that lies under another id than its own.
    pretrain = next((place / "out" / "pretrain").iterdir())
    shutil.copy(next((place / "out" / "adapt").glob("*/record.json")), pretrain / "record.json")
    assert_one_line(ratplus_here(place, *words), "it comes from another config: move it away and run again")


def test_two_models_of_one_name_are_two_lines_of_the_table(place):
    """Cells that differ in more than the seed must never be averaged as seeds."""
    for extra in ([], ["model.layers=1"]):
        assert ratplus_here(place, "evaluate", *TINY, "output=out", *extra).returncode == 0
    with (place / "out" / "report" / "accuracy_vs_dilation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["model.layers"] for row in rows) == ["1", "2"]
    assert [row["loss_delta"] for row in rows] == ["0.0", "0.0"]
    assert "Seeds" not in (place / "out" / "report" / "accuracy_vs_dilation.md").read_text()


def test_records_without_a_manifest(place):
    assert ratplus_here(place, "pretrain", *TINY, "output=out").returncode == 0
    (place / "out" / "sweep.json").unlink()
    assert ratplus_here(place, "pretrain", *TINY, "output=out").returncode == 0  # the same cell: nothing is lost
    (place / "out" / "sweep.json").unlink()
    stranger = ratplus_here(place, "pretrain", *TINY, "output=out", "train.pretrain.steps=5")
    assert_one_line(stranger, "a record of another config, in a folder without sweep.json")


def assert_one_line(done, *fragments):
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ratplus: error: ")
    for fragment in fragments:
        assert fragment in lines[0], lines[0]


def test_mistakes_leave_nothing_behind(place):
    before = sorted(place.rglob("*"))
    for words, message in [
        (["sweep", "pattern.dilation=0"], "pattern.dilation: got 0"),
        (["sweep", "model.layes=3"], "did you mean model.layers?"),
        (["swep"], "swep: no such command; did you mean sweep?"),
        (["status", "nowhere"], "nowhere: no such folder; give the output folder of a sweep"),
        (["report", "."], ".: holds no sweep.json, so it is not the output folder of a sweep"),
        (["evaluate", "pattern.dilation=1,2"], "several values; add -m"),
        (["sweep", *TINY, "data.path=nothing.txt"], "data.path=nothing.txt: no such file or folder"),
        (["bench", "--threads", "0"], "--threads: got 0; it must be ≥ 1"),
        (["import", "nothing.pt", "model"], "nothing.pt: no such file"),
        (["sweep", *TINY, "data.root=/proc/nowhere"], "/proc/nowhere"),
        (["sweep", *TINY, "pattern=glob(zzz*)"], "pattern=glob(zzz*): matches nothing"),
        (["sweep", *TINY, "output=a,b"], "output: cannot have several values"),
        (["sweep", *TINY, "~model"], "~model: a cell needs all of its groups"),
        (["sweep", *TINY, "train.pretrain.lr=inf"], "train.pretrain.lr: got inf"),
        (["import", "text.txt", "model"], "text.txt: cannot be read as a weights-only checkpoint"),
        (["sweep", *TINY, "run.accelerator=cuda"], "run.accelerator=cuda: this machine has no CUDA device"),
    ]:
        if "cuda" in message and Path("/dev/nvidiactl").exists():
            continue
        assert_one_line(ratplus_here(place, *words), message)
    assert sorted(place.rglob("*")) == before


def test_unwritable_output(place):
    (place / "file").write_text("")
    assert_one_line(ratplus_here(place, "evaluate", *TINY, "output=file/out"), "output=file/out: cannot be written")


def test_damaged_files_of_a_sweep(place):
    words = ["evaluate", *TINY, "output=out"]
    assert ratplus_here(place, *words).returncode == 0
    tokens = next((place / "data").glob("*/train.bin"))
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-10])
    assert_one_line(ratplus_here(place, *words), "train.bin: holds", "truncated? delete the folder")
    tokens.write_bytes(whole[:-2] + b"\xff\xff")
    assert_one_line(ratplus_here(place, *words), "SHA-256 differs from the manifest: the file was altered")
    tokens.write_bytes(whole)

    model = next((place / "out" / "pretrain").glob("*/model.safetensors"))
    model.write_bytes(model.read_bytes()[:-10])
    damaged = ratplus_here(place, *words, "pattern=dilated")
    assert damaged.returncode == 2
    *_bars, line = damaged.stderr.splitlines()
    assert line.startswith("ratplus: error: adapt ")
    assert "SHA-256 differs from config.json: truncated or altered; delete out/pretrain/" in line
    assert not any("Error" in line for line in _bars)
    shutil.rmtree(model.parent)  # as it says
    assert ratplus_here(place, *words, "pattern=dilated").returncode == 0

    (place / "out" / "sweep.json").write_text("{")
    assert_one_line(ratplus_here(place, *words), "sweep.json: damaged")


def test_help_and_version(place):
    assert "ratplus <command> --help" in script(place, "--help").stdout
    for verb in ("sweep", "pretrain", "adapt", "evaluate", "status", "report", "sync", "bench", "prepare", "import"):
        done = ratplus_here(place, verb, "--help")
        assert done.returncode == 0
        assert f"ratplus {verb} " in done.stdout.partition("examples:")[2] or verb == "bench"
    assert script(place, "--version").stdout.startswith("ratplus 0.")
    assert script(place).returncode == 2


def test_prepare_and_import(place, golden):
    import torch

    done = ratplus_here(place, "prepare", "data=text", "data.path=text.txt")
    assert done.returncode == 0
    assert "train.bin" in done.stdout
    torch.save({"task": {k: torch.from_numpy(v) for k, v in golden("weights_re1").items()}}, place / "official.pt")
    done = ratplus_here(place, "import", "official.pt", "model", "--d-head", "16")
    assert done.returncode == 0
    assert "recurrence on" in done.stdout
    assert (place / "model" / "model.safetensors").exists()
