"""`<sweep>/wandb-synced.json`: which runs `ratplus sync` and the live mirror sent, and where to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.lock import FolderLock
from ratplus.records.reading import read_json
from ratplus.sweeps.mirror.runs import RunSpec

LEDGER_FILE = "wandb-synced.json"
FORMAT = 1


def remember(folder: Path, target: str, run: RunSpec, locked: bool = False) -> None:
    """Note that `target` has this run. Several processes may do so, each under the lock of `<folder>/wandb`.

    `locked` says that the caller holds that lock.
    """
    if not locked:
        with FolderLock(folder / "wandb"):
            return remember(folder, target, run, locked=True)
    ledger = read_ledger(folder)
    ledger["targets"].setdefault(target, {})[run.id] = run.checksum()
    write_ledger(folder, ledger)


def read_ledger(folder: Path) -> dict:
    """Read `targets`, {target: {run id: checksum}}, and `workspaces`, {target: URL of the workspace made there}.

    A damaged ledger counts as an empty one, since sending again does no harm.
    """
    path = folder / LEDGER_FILE
    empty = {"format": FORMAT, "targets": {}, "workspaces": {}}
    try:
        ledger = read_json(path, follow=False)
        assert ledger["format"] == FORMAT
        assert all(isinstance(runs, dict) for runs in ledger["targets"].values())
        made = {target: _workspace_url(target, place) for target, place in ledger["workspaces"].items()}
        return ledger | {"workspaces": made}
    except FileNotFoundError:
        return empty
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        print(f"{path}: damaged; sending every run again", file=sys.stderr)
        return empty


def write_ledger(folder: Path, ledger: dict) -> None:
    write_atomically(folder / LEDGER_FILE, json.dumps(ledger, indent=1) + "\n")


def _workspace_url(target: str, made: str | dict[str, str]) -> str:
    """Where a workspace was made. Earlier versions kept its name instead, and that of `?nw=<word>` is `nw-<word>-v`."""
    if isinstance(made, str):
        return made
    return f"{target}?nw={made['name'].removeprefix('nw-').removesuffix('-v')}"
