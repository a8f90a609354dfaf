"""Where results are sent comes from the user: never from the folder that they stand in, nor from the current one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.mirror import sync

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"
ASK = "from ratplus.sweeps.mirror.server import server_url; print(server_url())"


def asked(place, **more) -> str:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(place / "home")} | more
    done = subprocess.run([sys.executable, "-c", ASK], cwd=place, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_current_folder_does_not_name_the_server(tmp_path):
    """W&B itself reads wandb/settings of the current folder; the user's own settings and the environment count."""
    for name in ("wandb", ".wandb", "home/.config/wandb"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("wandb", ".wandb"):
        (tmp_path / name / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    theirs = "http://127.0.0.1:9"
    assert asked(tmp_path) not in ("", theirs)
    assert asked(tmp_path, WANDB_BASE_URL="http://wandb.example") == "http://wandb.example"
    (tmp_path / "home/.config/wandb/settings").write_text("[default]\nbase_url = http://own.example\n")
    assert asked(tmp_path) == "http://own.example"


@pytest.mark.parametrize(
    ("options", "target", "told"),
    [
        ({}, "-/ratplus", "--entity theirs --project 'their project'"),
        ({"entity": "me", "project": "mine"}, "me/mine", None),
        ({"entity": "me"}, "me/ratplus", "--project 'their project'"),
    ],
)
def test_a_sweep_does_not_say_which_project_gets_its_runs(tmp_path, monkeypatch, capsys, options, target, told):
    folder = shutil.copytree(OLD, tmp_path / "given")
    manifest = read_manifest(folder)
    for cell in manifest["cells"]:
        cell["run"]["logger"] |= {"entity": "theirs", "project": "their project"}
    monkeypatch.setattr(sync, "read_manifest", lambda _folder: manifest)
    monkeypatch.setattr(sync, "server_url", lambda: "https://wandb.example")
    sync.sync(folder, dry_run=True, **options)
    said = capsys.readouterr()
    assert f"would be sent to https://wandb.example/{target}" in said.out
    assert (told in said.err) if told else ("another place" not in said.err)


def test_of_several_places_that_of_the_latest_cells_is_told(tmp_path, monkeypatch, capsys):
    """Cells that a later call added stand behind the others, and may have been made to send elsewhere."""
    folder = shutil.copytree(OLD, tmp_path / "given")
    manifest = read_manifest(folder)
    first, *_, last = manifest["cells"]
    first["run"]["logger"] |= {"entity": "before", "project": "ratplus"}
    last["run"]["logger"] |= {"entity": "now", "project": "ratplus"}
    monkeypatch.setattr(sync, "read_manifest", lambda _folder: manifest)
    monkeypatch.setattr(sync, "server_url", lambda: "https://wandb.example")
    sync.sync(folder, dry_run=True)
    said = capsys.readouterr().err
    assert "--entity now" in said
    assert "before" not in said


def test_a_workspace_of_another_project_is_not_written_to(monkeypatch):
    """The ledger in the folder says where a workspace was made."""
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    from ratplus.sweeps.mirror.workspace import _updated

    followed = []
    monkeypatch.setattr(workspaces.Workspace, "from_url", classmethod(lambda _cls, url: followed.append(url)))
    wanted = type("Wanted", (), {"entity": "me", "project": "mine"})
    assert _updated("https://wandb.example/theirs/mine?nw=abc", wanted) is wanted
    assert _updated("https://wandb.example/me/mine/../other?nw=abc", wanted) is wanted
    assert followed == []
