"""`ratplus sync` to a server, offline and as a list: what is asked, sent and printed; W&B is a stand-in here."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus.records.lock import is_locked
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror import ledger, server, sync, workspace, write
from ratplus.sweeps.mirror.runs import RunSpec

URL = "https://wandb.example"


def spec(name: str, code: int | None = 0, rows: int = 0, stage: str = "adapt") -> RunSpec:
    return RunSpec(name, f"m D4 {stage}", "x", stage, [], {"of": name}, [{"step": i} for i in range(rows)],
                   exit_code=code)  # fmt: skip


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of four runs, one at work, and a report; `calls` has what is asked and written, in order."""
    folder = tmp_path / "x y"
    folder.mkdir()
    one, two, three = spec("a" * 12), spec("b" * 12, 1, rows=3), spec("c" * 12, 255, rows=1, stage="pretrain")
    runs, report = [one, two, three, spec("d" * 12, None)], spec("e" * 12, stage="report")
    made = SimpleNamespace(folder=folder, calls=[], report=report, runs=runs, refused=None, existing=None)
    cells = [{"run": {"logger": {}}}]
    monkeypatch.setattr(sync, "read_manifest", lambda _folder: {"cells": cells})
    monkeypatch.setattr(sync, "_fresh_report", lambda place: made.calls.append(("report", place)))

    def sweep_runs(place, checkpoints):
        made.calls.append(("runs", place, checkpoints))
        return list(runs), ["adapt/x: odd"]

    def report_run(place, found):
        assert found == runs
        return made.report

    def write_run(run, mode, place, project, entity):
        if run.id == made.refused:
            raise made.error
        if mode == "online":
            assert place.is_dir()
            assert place.name.startswith("ratplus-wandb-")
            assert is_locked(folder / "wandb")
        made.calls.append(("write", run.id[0], mode, place if mode == "offline" else None, project, entity))

    class Asked(server.Server):
        def existing(self, entity, project, ids):
            made.calls.append(("existing", entity, project, ids))
            return set(ids) if made.existing is None else made.existing

    monkeypatch.setattr(sync, "sweep_runs", sweep_runs)
    monkeypatch.setattr(sync, "report_run", report_run)
    monkeypatch.setattr(sync, "find_server", lambda: Asked(None, URL))
    monkeypatch.setattr(sync, "server_url", lambda: URL)
    monkeypatch.setattr(write, "write_run", write_run)
    monkeypatch.setattr(write, "offline_checksums", lambda place: {one.id: one.checksum(), two.id: "another"})
    return made


def of(sweep, kind: str) -> list:
    return [call[1:] for call in sweep.calls if call[0] == kind]


def test_all_is_sent_to_a_server_that_has_nothing_and_noted(sweep, capsys):
    sync.sync(sweep.folder)
    assert sweep.calls[:2] == [("report", sweep.folder), ("runs", sweep.folder, None)]
    assert of(sweep, "existing") == [], "it is asked of no run"
    assert of(sweep, "write") == [(name, "online", None, "ratplus", None) for name in "abce"]
    said = capsys.readouterr()
    assert said.out == f"4 runs sent to {URL}/-/ratplus; 1 still running, left for later\n"
    assert said.err == "left out: adapt/x: odd\n"
    sent = {run.id: run.checksum() for run in [*sweep.runs[:3], sweep.report]}
    assert ledger.read_ledger(sweep.folder)["targets"] == {f"{URL}/-/ratplus": sent}
    sweep.calls.clear()
    sync.sync(sweep.folder)
    assert of(sweep, "existing") == [(None, "ratplus", list(sent))]
    assert of(sweep, "write") == []
    assert capsys.readouterr().out.endswith("; 4 up to date; 1 still running, left for later\n")


def test_what_the_server_lost_is_sent_again_and_another_project_is_another(sweep, capsys):
    sync.sync(sweep.folder, "me", "p", checkpoints=True)
    assert of(sweep, "runs") == [(sweep.folder, True)]
    sweep.calls.clear()
    sweep.existing = {"a" * 12, "e" * 12}
    sync.sync(sweep.folder, "me", "p")
    assert of(sweep, "write") == [(name, "online", None, "p", "me") for name in "bc"]
    sweep.calls.clear()
    sync.sync(sweep.folder, "me", "q")
    assert [call[0] for call in of(sweep, "write")] == [*"abce"]


def test_what_was_sent_until_a_server_refuses_is_kept(sweep, capsys):
    sweep.refused, sweep.error = "b" * 12, RuntimeError("no\nroom")
    with pytest.raises(UsageError) as told:
        sync.sync(sweep.folder)
    assert str(told.value) == (
        f"{URL}/-/ratplus: run {'b' * 12} could not be sent (no room); 1 of 4 were, run the same command again for the "
        "rest"
    )
    assert [*ledger.read_ledger(sweep.folder)["targets"][f"{URL}/-/ratplus"]] == ["a" * 12]
    assert not is_locked(sweep.folder / "wandb")
    assert capsys.readouterr().out == ""


def test_offline_asks_no_server_and_writes_what_differs(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sync, "find_server", lambda: pytest.fail("a server was asked"))
    monkeypatch.setattr(sync, "_tell_other_place", lambda *_: pytest.fail("nothing goes anywhere"))
    sync.sync(sweep.folder, "me", "p", offline=True)
    assert of(sweep, "write") == [(name, "offline", sweep.folder, "p", "me") for name in "bce"]
    assert capsys.readouterr().out == (
        f"3 runs written to {sweep.folder / 'wandb'}; 1 up to date; 1 still running, left for later\n"
    )


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("odd"), RuntimeError("a\nb")])
def test_what_fails_offline(sweep, error):
    """Mistakes that are told everywhere stay what they are."""
    sweep.refused, sweep.error = "c" * 12, error
    with pytest.raises(Exception) as told:
        sync.sync(sweep.folder, offline=True)
    if isinstance(error, RuntimeError):
        assert type(told.value) is UsageError
        assert str(told.value) == f"run {'c' * 12} could not be written (a b)"
    else:
        assert told.value is error


@pytest.mark.parametrize("offline", [True, False])
def test_a_list_writes_nothing(sweep, monkeypatch, capsys, offline):
    monkeypatch.setattr(sync, "find_server", lambda: pytest.fail("a server was asked"))
    ledger.write_ledger(sweep.folder, {
        "format": 1, "workspaces": {},
        "targets": {f"{URL}/-/ratplus": {"b" * 12: "another"}, f"{URL}/me/p": {"a" * 12: "x"}},
    })  # fmt: skip
    before = sorted(sweep.folder.rglob("*"))
    sync.sync(sweep.folder, dry_run=True, offline=offline, workspace=True)
    assert sorted(sweep.folder.rglob("*")) == before
    assert [call[0] for call in sweep.calls] == ["runs"]
    first = [] if offline else [f"new      adapt     {'a' * 12}  m D4 adapt  (0 rows, done)"]
    where = f"written to {sweep.folder / 'wandb'}; 1 up to date" if offline else f"sent to {URL}/-/ratplus"
    assert capsys.readouterr().out.splitlines() == [
        *first, f"changed  adapt     {'b' * 12}  m D4 adapt  (3 rows, failed)",
        f"new      pretrain  {'c' * 12}  m D4 pretrain  (1 rows, interrupted)",
        f"new      report    {'e' * 12}  m D4 report  (0 rows, done)",
        f"{3 if offline else 4} runs would be {where}; 1 still running, left for later",
    ]  # fmt: skip


def test_a_sweep_without_a_report_and_with_nothing_to_send(sweep, capsys):
    sweep.report = None
    sync.sync(sweep.folder)
    assert [call[0] for call in of(sweep, "write")] == [*"abc"]
    assert sync.Difference([], 0, 0).rest == ""


@pytest.mark.parametrize("offline", [True, False])
def test_a_workspace_is_made_on_request_where_the_runs_are(sweep, monkeypatch, capsys, offline):
    given = []

    def publish(*words):
        given.append(words)
        return "workspace: there"

    monkeypatch.setattr(workspace, "publish", publish)
    sync.sync(sweep.folder, "me", "p", offline=offline)
    assert given == []
    sync.sync(sweep.folder, "me", "p", offline=offline, workspace=True)
    ((folder, entity, project, report, asked),) = given
    assert (folder, entity, project, report) == (sweep.folder, "me", "p", sweep.report)
    assert asked is None if offline else asked.url == URL
    assert capsys.readouterr().out.splitlines()[-1] == "workspace: there"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_sees_how_many_were_sent(sweep, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    sync.sync(sweep.folder, offline=True)
    shown = f"\r1/3 adapt {'b' * 12}\r2/3 pretrain {'c' * 12}\r3/3 report {'e' * 12}\n" if terminal else ""
    assert capsys.readouterr().err == f"left out: adapt/x: odd\n{shown}"
    monkeypatch.setattr(write, "offline_checksums", lambda _: {r.id: r.checksum() for r in [*sweep.runs, sweep.report]})
    sync.sync(sweep.folder, offline=True)
    assert capsys.readouterr().err == "left out: adapt/x: odd\n"


@pytest.mark.parametrize(
    ("logger", "given", "words"),
    [
        ({}, {}, None), ({"entity": None, "project": "ratplus"}, {}, None), ({"project": None}, {}, None),
        ({"entity": "a b", "project": "p"}, {}, "--entity 'a b' --project p"),
        ({"entity": "e", "project": "p"}, {"entity": "e"}, "--project p"),
        ({"entity": "e", "project": "p"}, {"project": "q"}, "--entity e"),
        ({"entity": "e", "project": "p"}, {"entity": "e", "project": "q"}, None),
        ({"entity": "e\x1b[2J"}, {}, "--entity 'e\\x1b[2J'"),
    ],
)  # fmt: skip
def test_where_a_sweep_was_made_to_send_is_told(tmp_path, monkeypatch, capsys, logger, given, words):
    manifest = {"cells": [{"run": {"logger": {"entity": "first"}}}, {"run": {"logger": logger}}]}
    monkeypatch.setattr(sync, "read_manifest", lambda folder: manifest)
    sync._tell_other_place(Path("x"), given.get("entity"), given.get("project"))
    line = f"x was made to send to another place; to send there, add {words}\n"
    assert capsys.readouterr().err == ("" if words is None else line)
    for cells in ([], [{"run": {}}]):
        monkeypatch.setattr(sync, "read_manifest", lambda folder: {"cells": cells})  # noqa: B023
        sync._tell_other_place(Path("x"), None, None)
    assert capsys.readouterr().err == ""
