"""The workspace of a sweep, whole: its panels, and how it is made and brought up to date; no server is asked."""

import json
from types import SimpleNamespace

import pytest

from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror import ledger, workspace
from ratplus.sweeps.mirror.runs import RunSpec
from ratplus.sweeps.mirror.server import Server

workspaces = pytest.importorskip("wandb_workspaces.workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces.*")

MODEL = "${config:model_name}"
PATTERN = "${config:model_name} ${config:pattern_label}"
ROWS = [
    {"step": 0, "by_dilation/dilation": 1}
    | {f"by_dilation/perplexity/{name}": 1.0 for name in ("h", "c", "f", "b", "g", "a x=1", "e", "d")},
    {"step": 1, "by_dilation/dilation": 4, "by_dilation/recall_accuracy/a": 1.0, "by_dilation/loss/a": 1.0,
     "by_dilation/next_token_accuracy/a": 1.0},
]  # fmt: skip
REPORT = RunSpec("x", "x", "x", "report", [], {}, ROWS)


def manifest(monkeypatch, *stages: str, name="a/b c") -> None:
    cells = [{"stages": dict.fromkeys(("pretrain", "adapt"), "x")}, {"stages": dict.fromkeys(stages, "y")}]
    monkeypatch.setattr(workspace, "read_manifest", lambda folder: {"name": name, "cells": cells})


def written(tmp_path) -> dict:
    return json.loads((tmp_path / "report" / "wandb_workspace.json").read_text())


def curve(title: str, y: str, legend: str, most: int | None = None) -> dict:
    panel = {
        "title": title, "x": "tokens", "y": [y], "title_x": "tokens", "title_y": "nats", "legend_template": legend,
    }  # fmt: skip
    return panel | ({} if most is None else {"max_runs_to_show": most})


def lines(title: str, names: dict[str, str]) -> dict:
    return {
        "title": f"{title} by dilation", "x": "by_dilation/dilation", "y": list(names), "log_x": True,
        "title_x": "dilation", "title_y": title, "line_titles": names,
    }  # fmt: skip


def points(x: str, y: str, title: str, log_x: bool) -> dict:
    return {"title": title, "x": {"name": x}, "y": {"name": y}, "log_x": log_x, "legend_template": PATTERN}


CURVES = [
    curve("Pretraining: loss", "pretrain_loss", MODEL),
    curve("Pretraining: loss of the sparse passes", "arl_loss", MODEL),
    curve("Adaptation: loss by pattern", "adapt_loss", PATTERN, 100),
]
TUNING = curve("Fine-tuning: loss by pattern", "sft_loss", PATTERN, 100)
COSTS = [
    lines("Held-out loss (nats)", {"by_dilation/loss/a": "a"}),
    lines("Held-out perplexity", {f"by_dilation/perplexity/{name}": name for name in ("a x=1", *"bcdefgh")}),
    lines("Next-token accuracy", {"by_dilation/next_token_accuracy/a": "a"}),
    lines("Recall accuracy", {"by_dilation/recall_accuracy/a": "a"}),
]
SAVINGS = [
    points("kv_bytes", "loss", "Held-out loss against KV cache bytes", True),
    points("attention_flops_ratio", "loss", "Held-out loss against attention FLOPs (1 = dense)", False),
    points("kv_bytes", "recall_accuracy", "Recall accuracy against KV cache bytes", True),
    points("dilation", "loss", "Held-out loss against dilation, all patterns", True),
]


@pytest.mark.parametrize("tuned", [True, False])
def test_the_whole_definition(monkeypatch, tmp_path, tuned):
    manifest(monkeypatch, *(("sft",) if tuned else ("evaluate",)))
    line = workspace.publish(tmp_path, "me", "p", REPORT, None)
    assert line == f"workspace: {tmp_path / 'report' / 'wandb_workspace.json'}"
    assert written(tmp_path) == {
        "entity": "me", "project": "p", "name": "ratplus a-b c",
        "runset_settings": {
            "filters": 'Group == "a/b c"', "pinned_columns": ["run:displayName", "config:model_name"],
        },
        "sections": [
            {"name": "Training", "is_open": True, "panels": [*CURVES, *([TUNING] if tuned else [])]},
            {"name": "What a dilation costs", "is_open": True, "panels": COSTS},
            {"name": "What a pattern saves", "is_open": True, "panels": SAVINGS},
        ],
    }  # fmt: skip
    text = (tmp_path / "report" / "wandb_workspace.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize(("name", "shown"), [("x_1-2.3 é", "x_1-2.3 é"), ('a/"b"(c):d', "a--b--c--d")])
def test_names_have_the_characters_that_are_allowed(monkeypatch, tmp_path, name, shown):
    manifest(monkeypatch, name=name)
    workspace.publish(tmp_path, None, "p", None, None)
    made = written(tmp_path)
    assert made["name"] == f"ratplus {shown}"
    assert made["runset_settings"]["filters"] == f"Group == {json.dumps(name)}"
    assert made["entity"] == ""
    assert "panels" not in made["sections"][1]


def test_what_the_library_keeps_for_itself_is_left_out():
    """At any depth."""
    from dataclasses import dataclass, field

    @dataclass
    class Odd:
        kept: dict = field(default_factory=dict)

    content = {"a": [{"_b": 1, "c": [{"_d": 2, "e": 3}]}], "_f": 4, "g": "_h"}
    assert workspace._definition(Odd(content)) == {"kept": {"a": [{"c": [{"e": 3}]}], "g": "_h"}}


class Answering(Server):
    """A server of an account `me`."""

    def __init__(self):
        super().__init__(SimpleNamespace(default_entity="me"), "https://wandb.example")


@pytest.fixture
def saved(monkeypatch):
    """The workspaces that were saved on the server; they get one address after the other."""
    kept = []

    def save(made):
        kept.append(made)
        return SimpleNamespace(url=f"https://wandb.example/me/p?nw=w{len(kept)}")

    monkeypatch.setattr(workspaces.Workspace, "save", save)
    return kept


def test_a_workspace_is_made_once_and_then_brought_up_to_date(monkeypatch, tmp_path, saved):
    manifest(monkeypatch, "sft")
    target = "https://wandb.example/me/p"
    ledger.write_ledger(tmp_path, {"format": 1, "targets": {target: {"a": "b"}}, "workspaces": {"other": "url"}})
    assert workspace.publish(tmp_path, None, "p", REPORT, Answering()) == f"workspace: {target}?nw=w1"
    assert (saved[0].entity, saved[0].project) == ("me", "p")
    assert ledger.read_ledger(tmp_path) == {
        "format": 1, "targets": {target: {"a": "b"}}, "workspaces": {"other": "url", target: f"{target}?nw=w1"},
    }  # fmt: skip
    there, asked = workspaces.Workspace(entity="me", project="p", name="old"), []
    monkeypatch.setattr(workspaces.Workspace, "from_url", classmethod(lambda _cls, url: asked.append(url) or there))
    workspace.publish(tmp_path, "me", "p", REPORT, Answering())
    assert asked == [f"{target}?nw=w1"]
    assert saved[1] is there
    assert workspace._definition(there) == written(tmp_path)
    assert ledger.read_ledger(tmp_path)["workspaces"][target] == f"{target}?nw=w2"
    workspace.publish(tmp_path, "team", "p", REPORT, Answering())
    assert saved[2].entity == "team"
    assert ledger.read_ledger(tmp_path)["workspaces"].keys() == {"other", target, "https://wandb.example/team/p"}


@pytest.mark.parametrize(
    ("error", "made"),
    [(ValueError("Workspace `w1` not found in project `p`"), True), (ValueError("odd"), False),
     (RuntimeError("not found in project"), False)],
)  # fmt: skip
def test_a_workspace_that_was_deleted_is_made_anew_and_other_mistakes_are_told(
    monkeypatch, tmp_path, saved, error, made
):
    def from_url(_cls, url):
        raise error

    manifest(monkeypatch)
    target = "https://wandb.example/me/p"
    before = {"format": 1, "targets": {}, "workspaces": {target: f"{target}?nw=w0"}}
    ledger.write_ledger(tmp_path, before)
    monkeypatch.setattr(workspaces.Workspace, "from_url", classmethod(from_url))
    if made:
        assert workspace.publish(tmp_path, "me", "p", None, Answering()) == f"workspace: {target}?nw=w1"
        return
    with pytest.raises(UsageError) as told:
        workspace.publish(tmp_path, "me", "p", None, Answering())
    path = tmp_path / "report" / "wandb_workspace.json"
    assert str(told.value) == (f"https://wandb.example: the workspace could not be made ({error}); it is in {path}")
    assert path.exists()
    assert (saved, ledger.read_ledger(tmp_path)) == ([], before)


def test_without_the_extra_the_line_says_how_to_install_it(monkeypatch, tmp_path):
    import sys

    manifest(monkeypatch)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(
        UsageError, match=r"^--workspace: needs the package wandb-workspaces; pip install 'ratplus.dash"
    ):
        workspace.build(tmp_path, "", "p", None)
