"""What was sent where: `wandb-synced.json`, also as earlier versions wrote it."""

import json

from ratplus.sweeps.mirror.ledger import LEDGER_FILE, read_ledger, write_ledger

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
