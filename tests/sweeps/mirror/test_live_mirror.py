"""What a mirror hands to W&B while a stage runs, and what it says when W&B fails; W&B is a stand-in here."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus import Pattern, PatternMap
from ratplus.config.cell import Config
from ratplus.config.run import LoggerSection
from ratplus.records.record import read_record, write_record
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror import ledger, live, server, write
from ratplus.sweeps.mirror.live import LiveMirror, OfflineMirror, make_mirror, mirror_report, warn_without_key
from ratplus.sweeps.mirror.runs import RunSpec

LOGGER = LoggerSection(wandb="online", project="p", entity="e", tags=["mine"], checkpoints=True)
REST = "; records and curves are not affected"


class Run:
    """W&B's run, which keeps what it is told in order."""

    def __init__(self, starting_step: int = 0):
        self.starting_step, self.told = starting_step, []

    def log(self, row, step):
        if row.get("loss") == "bad":
            raise RuntimeError("no such server")
        self.told.append(("log", row, step))

    def finish(self, exit_code=None):
        self.told.append(("finish", exit_code))

    def mark_preempting(self):
        self.told.append("preempting")


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """No stage has failed in this process yet, and the environment says nothing."""
    monkeypatch.setattr(live, "_failed", False)
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for what talks to W&B: the run that starts, and what else is called, in order."""
    calls: list = []
    run = Run()

    def start_run(*given, **named):
        calls.append(("start", given, named))
        return run

    monkeypatch.setattr(server, "find_server", lambda: server.Server(None, "https://wandb.example"))
    monkeypatch.setattr(write, "start_run", start_run)
    monkeypatch.setattr(write, "write_run", lambda *given: calls.append(("write", *given)))
    monkeypatch.setattr(write, "add_outcome", lambda *given: calls.append(("outcome", *given)))
    monkeypatch.setattr(ledger, "remember", lambda *given: calls.append(("remember", *given)))
    return SimpleNamespace(calls=calls, run=run)


def stage(tmp_path: Path, name="adapt"):
    """A stage as `make_mirror` gets one, and the record that it leaves."""
    config = {"pattern": PatternMap.uniform(Pattern(4), 4, 3).to_dict(), "context": 64}
    from ratplus.records.record import stage_id

    identity = stage_id(name, config, "p" * 12)
    place = tmp_path / "sweep" / name / identity
    write_record(place, stage=name, config=config, parent="p" * 12, status="done", metrics={}, timing={}, provenance={})
    (place / "curve.csv").write_text("step,tokens,loss\n1,10,3.5\n")
    for file in ("model.safetensors", "config.json"):
        (place / file).write_text("{}")
    found = SimpleNamespace(
        name=name, id=identity, config=config, parent="p" * 12, folder=lambda sweep: sweep / name / identity
    )
    return found, read_record(place)


def made(tmp_path, **logger):
    found, record = stage(tmp_path)
    return make_mirror(found, tmp_path / "sweep", replace(Config(), logger=replace(LOGGER, **logger))), record


def test_an_offline_run_is_written_whole_at_the_end(tmp_path, wandb):
    mirror, record = made(tmp_path, wandb="offline")
    assert type(mirror) is OfflineMirror
    mirror.log(1, {"loss": 3.5})
    mirror.abandon()
    assert wandb.calls == []
    mirror.finish(record)
    ((kind, run, mode, folder, project, entity),) = wandb.calls
    assert (kind, mode, folder, project, entity) == ("write", "offline", tmp_path / "sweep", "p", "e")
    assert (run.id, run.group, run.job_type, run.exit_code) == (record["id"], "sweep", "adapt", 0)
    assert run.tags == [Config().model.name, "adapt", "D4", "mine"]
    assert (run.config["parent"], run.config["recurrence"]) == ("p" * 12, Config().model.recurrence)
    assert [row["adapt_loss"] for row in run.rows] == [3.5]
    assert [path.name for path in run.files] == ["model.safetensors", "config.json"]
    made(tmp_path, wandb="offline", checkpoints=False)[0].finish(record)
    assert wandb.calls[1][1].files == []


def test_an_offline_run_that_cannot_be_written_is_told_once(tmp_path, wandb, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(write, "write_run", fail)
    mirror, record = made(tmp_path, wandb="offline")
    other, _ = made(tmp_path, wandb="offline")
    mirror.finish(record)
    other.finish(record)
    assert capsys.readouterr().err == (
        f"W&B mirror is off from here on (disk full){REST}, and `ratplus sync {tmp_path / 'sweep'}` can send them "
        "later\n"
    )
    assert made(tmp_path)[0] is None, "other stages of this process do not try again"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_a_live_run_is_sent_as_it_grows(tmp_path, wandb, at, checkpoints):
    wandb.run.starting_step = at
    mirror, record = made(tmp_path, checkpoints=checkpoints)
    assert type(mirror) is LiveMirror
    ((kind, (head, *place), named),) = wandb.calls
    assert (kind, place) == ("start", ["online", tmp_path / "sweep", "p", "e"])
    assert named == {"resume": "allow", "models": checkpoints}
    assert head.id == record["id"]
    mirror.log(7, {"loss": 2.0, "lr": 0.5})
    assert wandb.run.told == [("log", {"step": 7, "loss": 2.0, "lr": 0.5, "adapt_loss": 2.0}, 7)]
    mirror.finish(record)
    assert wandb.run.told[1:] == [("finish", 0)]
    outcome, *remembered = wandb.calls[1:]
    assert outcome[0] == "outcome"
    assert (outcome[1], outcome[3]) == (wandb.run, tmp_path / "sweep")
    assert len(outcome[2].files) == (2 if checkpoints else 0)
    # What a resumed run lacks, only the server knows.
    known = [("remember", tmp_path / "sweep", "https://wandb.example/e/p", outcome[2])]
    assert remembered == (known if at == 0 else [])


def test_a_live_run_of_a_failed_stage_ends_as_failed(tmp_path, wandb):
    mirror, record = made(tmp_path)
    mirror.finish({**record, "status": "failed", "error": {"type": "E", "message": "m", "traceback": []}})
    assert wandb.run.told == [("finish", 1)]
    assert wandb.calls[1][2].files == []


def test_a_stage_that_goes_on_elsewhere_is_marked_as_preempted(tmp_path, wandb):
    mirror, _ = made(tmp_path)
    mirror.abandon()
    assert wandb.run.told == ["preempting", ("finish", 255)]
    assert len(wandb.calls) == 1


def test_a_live_run_that_broke_is_told_once_and_left(tmp_path, wandb, capsys):
    mirror, record = made(tmp_path)
    mirror.log(1, {"loss": "bad"})
    assert "off from here on (no such server)" in capsys.readouterr().err
    mirror.log(2, {"loss": 1.0})
    mirror.finish(record)
    mirror.abandon()
    assert wandb.run.told == []
    assert len(wandb.calls) == 1
    assert capsys.readouterr().err == ""


def test_a_server_that_is_not_there_leaves_a_stage_without_a_mirror(tmp_path, monkeypatch, wandb, capsys):
    def away():
        raise UsageError("https://wandb.example: cannot be reached")

    monkeypatch.setattr(server, "find_server", away)
    assert made(tmp_path)[0] is None
    assert capsys.readouterr().err == (
        f"W&B mirror is off from here on (https://wandb.example: cannot be reached){REST}, and `ratplus sync "
        f"{tmp_path / 'sweep'}` can send them later\n"
    )
    assert wandb.calls == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(" first  line \nsecond"), "first line"), (RuntimeError("\n \n"), "RuntimeError"),
        (ValueError("1 validation error for Settings\nproject\n  odd name"),
         "1 validation error for Settings project odd name"),
        (RuntimeError("x" * 499), "x" * 499), (RuntimeError("x" * 501), "x" * 500),
        (RuntimeError("y" * 480 + " WANDB_API_KEY=" + "k3y" * 14), "y" * 480 + " WANDB_API_KEY=***"),
    ],
)  # fmt: skip
def test_the_reason_is_one_masked_line(monkeypatch, capsys, error, reason):
    def fail():
        raise UsageError("") if error is None else error

    monkeypatch.setenv("WANDB_API_KEY", "k3y" * 14)
    monkeypatch.setattr(server, "find_server", fail)
    config = replace(Config(), logger=LOGGER)
    head = SimpleNamespace(name="pretrain", id="i" * 12, config={}, parent=None, folder=lambda sweep: sweep / "x")
    assert make_mirror(head, Path("a sweep"), config) is None
    assert capsys.readouterr().err == (
        f"W&B mirror is off from here on ({reason}){REST}, and `ratplus sync 'a sweep'` can send them later\n"
    )


@pytest.mark.parametrize("said", ["true", "1", "yes", "on", "T", " Y "])
def test_words_that_switch_it_off(monkeypatch, capsys, said):
    monkeypatch.setenv("WANDB_DISABLED", said)
    warn_without_key(Path("x"))
    warn_without_key(Path("x"))
    assert capsys.readouterr().err == f"W&B mirror is off (WANDB_DISABLED={said}){REST}\n"


@pytest.mark.parametrize(("mode", "disabled"), [("", ""), ("online", "false"), ("offline", "0"), ("x", "no")])
def test_words_that_switch_nothing_off(monkeypatch, capsys, mode, disabled):
    """A key is looked for then."""
    asked = []
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_DISABLED", disabled)
    monkeypatch.setattr(server, "check_key", lambda: asked.append(1))
    warn_without_key(Path("x"))
    assert (asked, capsys.readouterr().err) == ([1], "")


def test_a_missing_key_is_told_before_a_sweep_starts(monkeypatch, capsys):
    def none():
        raise UsageError("no W&B API key")

    monkeypatch.setattr(server, "check_key", none)
    warn_without_key(Path("x"))
    said = f"W&B mirror is off from here on (no W&B API key){REST}, and `ratplus sync x` can send them later\n"
    assert capsys.readouterr().err == said


REPORT = RunSpec("r" * 12, "x report", "x", "report", [], {})


@pytest.fixture
def reported(monkeypatch, wandb):
    """The calls that sending a report makes; the run of the report is of these `runs`."""
    asked = []

    def report_run(folder, runs):
        asked.append((folder, runs))
        return wandb.report

    monkeypatch.setattr(live, "report_run", report_run)
    monkeypatch.setattr(live, "sweep_runs", lambda folder: (["runs of", folder], ["a problem"]))
    monkeypatch.setattr(write, "offline_checksums", lambda folder: wandb.offline)
    wandb.report, wandb.offline, wandb.asked = REPORT, {}, asked
    return wandb


def test_a_report_is_sent_and_remembered(reported):
    folder = Path("x")
    mirror_report(folder, LOGGER)
    assert reported.asked == [(folder, ["runs of", folder])]
    assert reported.calls == [
        ("write", REPORT, "online", folder, "p", "e"), ("remember", folder, "https://wandb.example/e/p", REPORT),
    ]  # fmt: skip


def test_a_report_offline_asks_no_server_and_is_written_where_it_differs(reported, monkeypatch):
    monkeypatch.setattr(server, "find_server", lambda: pytest.fail("a server was asked"))
    offline = replace(LOGGER, wandb="offline")
    for known, written in (({}, True), ({REPORT.id: REPORT.checksum()}, False), ({REPORT.id: "another"}, True),
                           ({"other": REPORT.checksum()}, True)):  # fmt: skip
        reported.calls.clear()
        reported.offline = known
        mirror_report(Path("x"), offline)
        assert reported.calls == [("write", REPORT, "offline", Path("x"), "p", "e")] * written
    reported.report, reported.offline = None, {}
    reported.calls.clear()
    mirror_report(Path("x"), offline)
    assert reported.calls == []


def test_a_report_that_cannot_be_sent_breaks_nothing(reported, monkeypatch, capsys):
    monkeypatch.setattr(live, "sweep_runs", lambda folder: 1 / 0)
    mirror_report(Path("x"), LOGGER)
    assert capsys.readouterr().err.startswith("W&B mirror is off from here on (division by zero)")
    assert reported.calls == []
