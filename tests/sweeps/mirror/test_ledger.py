"""What was sent where: `wandb-synced.json`, also as earlier versions wrote it."""

import json

from ratplus.records.lock import is_locked
from ratplus.sweeps.mirror import ledger
from ratplus.sweeps.mirror.ledger import LEDGER_FILE, read_ledger, remember, write_ledger
from ratplus.sweeps.mirror.runs import RunSpec

TARGET = "https://api.wandb.ai/team/project"


def write(folder, workspaces) -> None:
    content = {"format": 1, "targets": {TARGET: {"run": "checksum"}}, "workspaces": workspaces}
    (folder / LEDGER_FILE).write_text(json.dumps(content))


def test_a_workspace_of_an_earlier_version_is_found_again(tmp_path):
    write(tmp_path, {TARGET: {"name": "nw-a0b1c2d3e4f-v", "id": "Vmlldzox"}})
    ledger = read_ledger(tmp_path)
    assert ledger["targets"] == {TARGET: {"run": "checksum"}}
    assert ledger["workspaces"] == {TARGET: f"{TARGET}?nw=a0b1c2d3e4f"}
    write_ledger(tmp_path, ledger)
    assert read_ledger(tmp_path) == ledger


def test_a_damaged_ledger_counts_as_empty(tmp_path, capsys):
    for workspaces in ({TARGET: {"id": "Vmlldzox"}}, {TARGET: 5}, [TARGET]):
        write(tmp_path, workspaces)
        assert read_ledger(tmp_path) == {"format": 1, "targets": {}, "workspaces": {}}
        assert "damaged; sending every run again" in capsys.readouterr().err


def test_a_ledger_of_somebody_else_is_not_followed_nor_are_odd_ones_read(tmp_path, capsys):
    empty = {"format": 1, "targets": {}, "workspaces": {}}
    assert read_ledger(tmp_path) == empty
    assert capsys.readouterr().err == "", "there is none yet"
    (tmp_path / "there.json").write_text(json.dumps(empty | {"targets": {TARGET: {"a": "b"}}}))
    (tmp_path / LEDGER_FILE).symlink_to(tmp_path / "there.json")
    assert read_ledger(tmp_path) == empty
    (tmp_path / LEDGER_FILE).unlink()
    for content in (
        empty | {"format": 2},
        empty | {"targets": {TARGET: ["a"]}},
        {"format": 1, "targets": {}},
        [],
        None,
    ):
        (tmp_path / LEDGER_FILE).write_text(json.dumps(content))
        assert read_ledger(tmp_path) == empty
        line = f"{tmp_path / LEDGER_FILE}: damaged; sending every run again\n"
        assert capsys.readouterr().err.endswith(line)


def test_runs_are_noted_for_each_place_under_its_lock(tmp_path, monkeypatch):
    locked: list = []
    real = ledger.write_ledger
    monkeypatch.setattr(
        ledger, "write_ledger", lambda *words: locked.append(is_locked(tmp_path / "wandb")) or real(*words)
    )
    one, two = (RunSpec(name, "n", "g", "adapt", [], {"of": name}) for name in "ab")
    remember(tmp_path, TARGET, one)
    remember(tmp_path, TARGET, two)
    remember(tmp_path, "other", two, locked=True)
    assert locked == [True, True, False]
    assert read_ledger(tmp_path)["targets"] == {
        TARGET: {"a": one.checksum(), "b": two.checksum()}, "other": {"b": two.checksum()},
    }  # fmt: skip
    text = (tmp_path / LEDGER_FILE).read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"
