"""W&B: what is told of a sweep equals its records, however it was told; and no key or token lands in any file.

One small sweep is run for all tests here, offline, with keys planted in the environment and a cell that fails with one
of them in its message. The server is one of our own (fake_wandb).
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cli_runs
import pytest
from fake_wandb import FakeWandb
from wandb_files import offline_runs, read_run

from ratplus.records.curve import curve_rows
from ratplus.records.record import read_record
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror import sync as mirror_sync
from ratplus.sweeps.mirror.runs import sweep_runs

RATPLUS = str(Path(sys.executable).with_name("ratplus"))
TINY = [
    "data=text", "data.path=text.txt", "model=ratplus_nano", "train.context=64", "data.recall.length=32",
    "data.recall.keys=4", "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8", "train.pretrain.steps=4",
    "train.adapt.steps=2", "train.pretrain.batch=4", "train.adapt.batch=4", "run.threads=1", "run.log_every=1",
    "eval.cloze.items=8",
]  # fmt: skip
# Made up here; nobody's.
PLANTED = {
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLzXcVbNm12345678",
    "MY_SECRET": "correct horse/battery:staple",
}


def environment(place, extra=None) -> dict:
    """Without any key of this machine's user, and without what W&B in this process tells its children."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return plain | {"NETRC": str(place / "no-netrc"), "HOME": str(place), **(extra or {})}


def ratplus(place, *words, extra=None, timeout=600, **how):
    return cli_runs.ratplus(place, *words, environment=environment(place, extra), timeout=timeout, **how)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of a dense cell that is done, and a dilated one whose adaptation fails and tells a secret."""
    place = tmp_path_factory.mktemp("wandb")
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    words = ["sweep", "-m", *TINY, "output=out", "logger.tags=[mine]", "logger.checkpoints=true"]
    done = ratplus(place, *words, "pattern=dense", extra=PLANTED)
    assert done.returncode == 0, done.stderr
    # A mistake whose error line quotes what was given.
    leaky = PLANTED | {"RATPLUS_KERNELS": PLANTED["MY_SECRET"]}
    done = ratplus(place, *words, "pattern=dense,dilated", extra=leaky, run="forked_command:whole")
    assert done.returncode == 1, done.stderr
    for secret in PLANTED.values():
        assert secret not in done.stdout + done.stderr
    return place


@pytest.fixture
def place(swept, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(swept, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


def sync(capsys, *words) -> str:
    """What `ratplus sync` prints; in this process, so only for what asks no server."""
    from ratplus.sweeps.cli import main

    with pytest.raises(SystemExit) as ended, mock.patch.dict(os.environ):
        main(["sync", *words])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def records(sweep: Path) -> list[dict]:
    return [read_record(path.parent) for path in sweep.glob("*/*/record.json")]


def assert_told(run: dict, record: dict, sweep: Path) -> None:
    """A W&B run says what a record and its curve say."""
    assert run["id"] == record["id"]
    assert (run["group"], run["job_type"]) == (sweep.name, record["stage"])
    assert {"ratplus_nano", record["stage"], "mine"} <= set(run["tags"])
    for key, value in record["config"].items():
        assert run["config"][key] == value, key
    assert run["config"]["parent"] == record["parent"]
    assert run["config"]["provenance"] == record["provenance"]
    for name, metric in record["metrics"].items():
        assert run["summary"][name] == metric["value"], name
    assert run["summary"]["status"] == record["status"]
    assert run["exit_code"] == (0 if record["status"] == "done" else 1)
    rows = curve_rows(sweep / record["stage"] / record["id"] / "curve.csv")
    assert len(run["history"]) == len(rows) == (0 if record["stage"] == "evaluate" or record["error"] else
                                                record["config"]["recipe"]["steps"])  # fmt: skip
    for told, row in zip(run["history"], rows):
        assert {k: told[k] for k in row} == row
        assert told["_step"] == row["step"]


def test_offline_runs_say_what_records_say(swept):
    sweep = swept / "out"
    runs = offline_runs(sweep)
    found = records(sweep)
    assert sorted(r["stage"] + " " + r["status"] for r in found) == [
        "adapt done", "adapt failed", "evaluate done", "pretrain done",
    ]  # fmt: skip
    for record in found:
        assert_told(runs.pop(record["id"]), record, sweep)
    (report,) = runs.values()
    assert report["job_type"] == "report"


def test_flat_facts_to_plot_against(swept):
    runs = offline_runs(swept / "out")
    (dense,) = (run for run in runs.values() if run["job_type"] == "evaluate")
    expected = {"dilation": 1, "window": 0, "sinks": 0, "kv_entries": 64, "attention_flops_ratio": 1.0, "kv_ratio": 1.0}
    for where in (dense["config"], dense["summary"]):
        assert {k: where[k] for k in expected} == expected
    assert dense["config"]["model_name"] == "ratplus_nano"
    assert dense["config"]["pattern_label"] == "D1"
    assert dense["config"]["train"]["pretrain"]["steps"] == 4
    (dilated,) = (run for run in runs.values() if run["exit_code"] == 1)
    assert dilated["config"]["dilation"] == 16
    assert dilated["config"]["kv_ratio"] < 0.1


def test_report_run_holds_table_figure_and_lines(swept):
    (folder,) = (f for f in (swept / "out").glob("wandb/offline-run-*") if read_run(f)["job_type"] == "report")
    report = read_run(folder)
    tables, figures = list(folder.glob("files/media/table/**/*.json")), list(folder.glob("files/media/images/**/*.png"))
    made = swept / "out" / "report"
    assert (len(tables), len(figures)) == (len(list(made.glob("*.csv"))), len(list(made.glob("*.png"))))
    (table,) = (path for path in tables if path.name.startswith("accuracy_vs_dilation"))
    rows = json.loads(table.read_text())
    assert "loss" in rows["columns"]
    assert sorted(row[rows["columns"].index("status")] for row in rows["data"]) == ["done", "failed"]
    (figure,) = (path for path in figures if path.name.startswith("accuracy_vs_dilation"))
    assert figure.read_bytes() == (made / "accuracy_vs_dilation.png").read_bytes()
    (evaluated,) = (r for r in records(swept / "out") if r["stage"] == "evaluate")
    (row,) = report["history"]
    assert row["by_dilation/dilation"] == 1
    assert row["by_dilation/loss/ratplus_nano"] == evaluated["metrics"]["loss"]["value"]


def test_checkpoints_are_artifacts_on_request(swept):
    for run in offline_runs(swept / "out").values():
        models = [a for a in run["artifacts"] if a["type"] == "model"]
        trained = run["job_type"] in ("pretrain", "adapt") and run["exit_code"] == 0
        assert [a["name"] for a in models] == ([f"{run['job_type']}-{run['id']}"] if trained else [])
        for artifact in models:
            assert {f["path"] for f in artifact["manifest"]["contents"]} == {"model.safetensors", "config.json"}


def test_no_secret_in_any_file(swept):
    """Records, curves, manifest, logs, report, and W&B's binary files and logs."""
    files = [path for path in swept.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".log" and path.parent.name == "logs" for path in files)
    for path in files:
        content = path.read_bytes()
        for name, secret in PLANTED.items():
            assert secret.encode() not in content, (path, name)
    (failed,) = (r for r in records(swept / "out") if r["status"] == "failed")
    assert "RATPLUS_KERNELS='***' is unknown" in failed["error"]["message"]
    assert any("***" in line for line in failed["error"]["traceback"])
    (log,) = (swept / "out" / "logs").glob("*.log")
    assert "RATPLUS_KERNELS='***' is unknown" in log.read_text()


def test_rebuilding_offline_runs_from_records_alone(place, monkeypatch, capsys):
    sweep = place / "out"
    before = offline_runs(sweep)
    monkeypatch.chdir(place)
    assert sync(capsys, "out", "--offline") == f"0 runs written to out/wandb; {len(before)} up to date\n"
    shutil.rmtree(sweep / "wandb")
    assert sync(capsys, "out", "--offline") == f"{len(before)} runs written to out/wandb\n"
    after = offline_runs(sweep)
    assert after.keys() == before.keys()
    for record in records(sweep):
        assert_told(after[record["id"]], record, sweep)
    for name, run in after.items():
        same = ("group", "job_type", "name", "tags", "config", "exit_code")
        assert {k: run[k] for k in same} == {k: before[name][k] for k in same}


def test_what_the_library_refuses_is_one_line(place):
    """As any mistake is told, and no fault of ours."""
    shutil.rmtree(place / "out" / "wandb")
    with pytest.raises(UsageError, match=r"run \w+ could not be written \(.*Invalid project name 'mine/other'"):
        mirror_sync.sync(place / "out", project="mine/other", offline=True)


def test_interrupted_stages_are_told_from_their_curves(place):
    """A killed stage has a curve and no record; its torn last row is left out; a stage at work is left alone."""
    sweep = place / "out"
    (pretrain,) = (r for r in records(sweep) if r["stage"] == "pretrain")
    folder = sweep / "pretrain" / pretrain["id"]
    (folder / "record.json").unlink()
    curve = folder / "curve.csv"
    curve.write_text(curve.read_text() + "5,1")
    (run,) = (r for r in sweep_runs(sweep)[0] if r.id == pretrain["id"])
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4]
    assert run.exit_code == 255
    assert run.config["recipe"] == pretrain["config"]["recipe"]
    assert run.config["model"]["vocab_size"] == pretrain["config"]["model"]["vocab_size"]

    from ratplus.records.lock import FolderLock

    with FolderLock(folder):
        (run,) = (r for r in sweep_runs(sweep)[0] if r.id == pretrain["id"])
        assert run.exit_code is None
    (folder / "record.json").write_text("{")
    runs, problems = sweep_runs(sweep)
    assert pretrain["id"] not in {r.id for r in runs}
    assert len(problems) == 1


def test_sync_sends_what_is_missing_and_no_more(place):
    sweep = place / "out"
    fake = FakeWandb(PLANTED["WANDB_API_KEY"])
    with fake.serving() as server:
        listed = ratplus(place, "sync", "out", "--dry-run", extra=server)
        assert "5 runs would be sent to" in listed.stdout
        assert not fake.runs
        first = ratplus(place, "sync", "out", "--workspace", extra=server)
        assert first.returncode == 0, first.stderr
        assert "5 runs sent to" in first.stdout
        for record in records(sweep):
            told = fake.runs[record["id"]]
            (created,) = told["upserts"][:1]
            assert (created["groupName"], created["jobType"]) == ("out", record["stage"])
            steps = [row["_step"] for _, row in sorted(told["history"].items())]
            assert steps == [row["step"] for row in curve_rows(sweep / record["stage"] / record["id"] / "curve.csv")]
            assert told["exitcode"] == (0 if record["status"] == "done" else 1)
            for name, metric in record["metrics"].items():
                assert math.isclose(told["summary"][name], metric["value"]), name
        sent = {name: run["streams"] for name, run in fake.runs.items()}
        assert set(sent.values()) == {1}

        again = ratplus(place, "sync", "out", "--workspace", extra=server)
        assert "0 runs sent to" in again.stdout
        assert "5 up to date" in again.stdout
        assert {name: run["streams"] for name, run in fake.runs.items()} == sent

        made, updated = fake.views
        assert (made["entityName"], made["displayName"]) == ("me", "ratplus out")
        assert updated["id"] == "W"
        assert updated["name"] == made["name"]
        assert updated["spec"].count('"chartTitle"') == made["spec"].count('"chartTitle"') > 5

        # A run that the server lost, and one whose stage has another outcome now.
        (evaluate,) = (r for r in records(sweep) if r["stage"] == "evaluate")
        del fake.runs[evaluate["id"]]
        (failed,) = (r for r in records(sweep) if r["status"] == "failed")
        shutil.rmtree(sweep / "adapt" / failed["id"])
        (pretrain,) = (r for r in records(sweep) if r["stage"] == "pretrain")
        (sweep / "pretrain" / pretrain["id"] / "record.json").unlink()
        third = ratplus(place, "sync", "out", extra=server)
        assert third.returncode == 0, third.stderr
        now = {name: run["streams"] for name, run in fake.runs.items()}
        assert now[evaluate["id"]] == 1
        assert now[pretrain["id"]] == 2
        assert fake.runs[pretrain["id"]]["exitcode"] == 255
        assert now[failed["id"]] == 1
    assert [a["artifactTypeName"] for a in fake.artifacts].count("model") >= 2
    assert PLANTED["WANDB_API_KEY"] not in "".join(p.read_text() for p in sweep.glob("*.json"))


def test_sync_without_key_or_network_says_what_to_do(swept):
    started = time.monotonic()
    for words, extra, message in [
        (["sync", "out"], {}, "no W&B API key for"),
        (["sync", "out"], {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}, "cannot be reached"),
        (["sync", "nowhere", "--dry-run"], {}, "nowhere: no such folder; give the output folder of a sweep"),
    ]:
        done = ratplus(swept, *words, extra=extra)
        assert done.returncode == 2, done.stdout
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("ratplus: error: ")
        assert message in line
    assert time.monotonic() - started < 150  # an answer that never comes is not waited for


def test_a_stale_page_alone_is_made_again_with_its_commands(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page, old = place / "out" / "report" / "index.html", place / "out" / "report" / "compare_other.csv"
    old.write_text("a\n1\n")
    os.utime(old, (1, 1))  # left by a comparison; no report writes it again
    before = page.stat().st_mtime_ns
    sync(capsys, "out", "--offline")
    assert page.stat().st_mtime_ns == before
    os.utime(page, (1, 1))
    sync(capsys, "out", "--offline")
    assert page.stat().st_mtime_ns >= before
    assert "output=outputs/again-" in page.read_text()


def test_the_workspace_is_published_under_the_lock_of_the_ledger(place, monkeypatch, capsys):
    from ratplus.records.lock import is_locked

    def publish(folder, *_):
        return f"locked: {is_locked(folder / 'wandb')}"

    monkeypatch.chdir(place)
    monkeypatch.setattr("ratplus.sweeps.mirror.workspace.publish", publish)
    assert "locked: True" in sync(capsys, "out", "--offline", "--workspace")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces.*")
def test_workspace_is_defined_without_an_account(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert "workspace: out/report/wandb_workspace.json" in sync(capsys, "out", "--offline", "--workspace")
    plain = json.loads((place / "out" / "report" / "wandb_workspace.json").read_text())
    assert plain["runset_settings"]["filters"] == 'Group == "out"'
    panels = {panel["title"]: panel for section in plain["sections"] for panel in section["panels"]}
    assert panels["Pretraining: loss"]["y"] == ["pretrain_loss"]
    assert panels["Pretraining: loss"]["x"] == "tokens"
    assert panels["Held-out loss (nats) by dilation"]["y"] == ["by_dilation/loss/ratplus_nano"]
    assert panels["Held-out loss against KV cache bytes"]["x"] == {"name": "kv_bytes"}
    assert '"_' not in json.dumps(plain)  # nothing that the library keeps for itself
    # Every panel's keys are keys that runs have.
    known = {key for run in sweep_runs(place / "out")[0] for row in [*run.rows, run.summary] for key in row}
    assert {"pretrain_loss", "adapt_loss", "arl_loss", "tokens", "kv_bytes", "recall_accuracy", "dilation"} <= known


@pytest.mark.slow
def test_live_run_of_a_killed_stage_has_each_step_once(swept, tmp_path):
    """Online: rows after the last checkpoint are logged again by whoever continues, and stand once on the server."""
    fake, steps = FakeWandb(PLANTED["WANDB_API_KEY"]), 600
    shutil.copy(swept / "text.txt", tmp_path)
    words = ["pretrain", *TINY, "logger=wandb_online", "output=out", "run.checkpoint_seconds=1"]
    words += [f"train.pretrain.steps={steps}"]
    with fake.serving() as server:
        own = environment(tmp_path, server | {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"})
        process = subprocess.Popen(
            [RATPLUS, *words], cwd=tmp_path, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (
            list(tmp_path.glob("out/pretrain/*/training-*.pt")) and any(r["history"] for r in fake.runs.values())
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)
        (name,) = fake.runs
        before = len(fake.runs[name]["history"])
        assert before < steps
        done = ratplus(tmp_path, *words, extra=server)
        assert done.returncode == 0, done.stderr
        assert "W&B mirror is off" not in done.stderr
    (record,) = records(tmp_path / "out")
    assert record["timing"]["resumed_at_step"] > 0
    history = [row for _, row in sorted(fake.runs[name]["history"].items())]
    assert [row["step"] for row in history] == list(range(1, steps + 1))
    rows = curve_rows(tmp_path / "out" / "pretrain" / name / "curve.csv")
    assert [row["loss"] for row in history] == [row["loss"] for row in rows]
    assert fake.runs[name]["exitcode"] == 0


def test_unreachable_server_breaks_nothing(swept, tmp_path):
    shutil.copy(swept / "text.txt", tmp_path)
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = ratplus(tmp_path, "evaluate", *TINY, "logger=wandb_online", "output=out", extra=nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B mirror is off") == 1
    assert len(records(tmp_path / "out")) == 3


def test_without_logger_wandb_is_never_imported(swept, tmp_path):
    shutil.copy(swept / "text.txt", tmp_path)
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "wandb.py").write_text("raise SystemExit('wandb was imported')")
    done = ratplus(
        tmp_path, "evaluate", *TINY, "logger=none", "output=out", extra={"PYTHONPATH": str(tmp_path / "poison")}
    )
    assert done.returncode == 0, done.stderr
    assert "wandb was imported" not in done.stderr
    assert not (tmp_path / "out" / "wandb").exists()


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_a_mirror_that_the_environment_switches_off_says_so_once(tmp_path, monkeypatch, capsys, name, value):
    from ratplus.config.cell import Config
    from ratplus.sweeps.mirror import live

    monkeypatch.setattr(live, "_failed", False)
    monkeypatch.setenv(name, value)
    assert live.make_mirror(None, tmp_path, Config()) is None
    live.mirror_report(tmp_path, Config().logger)
    assert capsys.readouterr().err == f"W&B mirror is off ({name}={value}); records and curves are not affected\n"
    assert list(tmp_path.iterdir()) == []
