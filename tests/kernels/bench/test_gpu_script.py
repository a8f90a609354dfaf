"""The operators' benchmark as it runs on a GPU machine, rehearsed on a CPU at next to no size."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from ratplus.kernels.attention import fused as attention
from ratplus.kernels.bench import gpu, timing, variants
from ratplus.kernels.bench.block_variants import block_entries, block_groups
from ratplus.kernels.bench.cases import DENSE, Plan, Selection, Shapes
from ratplus.kernels.bench.goals import GOALS, Goal, concerns_goals
from ratplus.kernels.block_decode import fused as block_decode
from ratplus.kernels.scan import fused as scan

# Groups of the smallest size have `tokens` / 64 tokens, which the interpreter takes.
SHAPES = Shapes(
    d_models=(32,), d_head=16, tokens=1024, lengths=(16,), patterns=((1, 0, 0), (4, 0, 0)), decode_batches=(2,),
    backward_lengths=(16,), peer_lengths=(16,), peer_patterns=((4, 0, 0),), peer_d_models=(32,), repeats=2,
    device="cpu", dtype=torch.float32,
)  # fmt: skip


@pytest.fixture(params=[["decode"], pytest.param(["scan backward", "attention dkv", "decode"], marks=pytest.mark.slow)])
def few_groups(request, monkeypatch):
    """One group a table at a small size, two variants each; the names of their kernels."""
    kept = {name: "-" if name == "scan backward" else "D16" for name in request.param}
    found = {}
    every = variants.groups

    def groups(shapes, small=False):
        for group in every(replace(shapes, d_head=128, d_models=(128,)), small=True):
            if kept.get(group.entry.kernel) == group.pattern and group.entry.kernel not in found:
                found[group.entry.kernel] = True
                yield replace(group, entry=replace(group.entry, values=group.entry.values[:2]))

    monkeypatch.setattr(gpu, "groups", groups)
    tables = [(table, dict(table)) for table in (scan.WALKS, attention.TILES, variants.decode.WALKS)]
    yield request.param
    for table, before in tables:
        table.clear()
        table.update(before)


def test_variants_take_turns_and_the_fastest_stays(few_groups, tmp_path, capsys):
    gpu.main([str(tmp_path), "--phases", "variants"], SHAPES)
    result = json.loads((tmp_path / "variants.json").read_text())
    assert [row["kernel"] for row in result["rows"]] == [name for name in few_groups for _ in range(2)]
    assert all(row["ms_p50"] > 0 and row["failure"] is None for row in result["rows"])
    for name, table, key in (
        ("scan backward", scan.WALKS, "backward"),
        ("attention dkv", attention.TILES, ("dkv", 128)),
        ("decode", variants.decode.WALKS, "single"),
    ):
        if name not in few_groups:
            continue
        tried = [row for row in result["rows"] if row["kernel"] == name]
        assert result["chosen"][name] == min(tried, key=lambda row: row["ms_p50"])["variant"]
        assert vars(table[key]) == result["chosen"][name]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("chosen: ") for line in lines) == len(few_groups)
    assert all(len(line) < 120 for line in lines)


def test_attention_to_selected_blocks_at_a_small_size(monkeypatch, tmp_path, capsys):
    """Every kind of row, the parts of the forward pass's time, and how many blocks a tile of queries reads."""
    monkeypatch.setattr(timing, "LEAST_REPEATS", 1)
    monkeypatch.setattr(gpu, "measure_ceilings", lambda *_, **__: timing.Ceilings(1.0, 1.0))
    small = replace(
        SHAPES, d_models=(16,), block_shapes=((1, 64),), block_backward_lengths=(64,), block_decode_shapes=((1, 20),),
        selections=(Selection((None, 0, 0), 3, 4, "mean"), Selection((None, 0, 0), 3, 4, "bounds")), repeats=1,
    )  # fmt: skip
    gpu.main([str(tmp_path), "--phases", "blocks"], small)
    saved = json.loads((tmp_path / "blocks.json").read_text())
    for part in ("forward", "backward"):
        names = {row["candidate"] for row in saved["rows"] if row["op"] == f"blocks {part}"}
        assert names == {"ours", "ours, apart", "dilated, equal reads (D3)", DENSE}, (part, names)
    names = {row["candidate"] for row in saved["rows"] if row["op"] == "blocks decode"}
    assert names == {"ours", f"{DENSE}, one query", "dilated, equal reads (D2)"}
    assert saved["skipped"] == []
    alike, apart = saved["splits"]
    assert (alike["queries"], apart["queries"]) == ("alike", "apart")
    for found in (alike, apart):
        assert min(found[f"{part}_ms"] for part in ("selection", "metadata", "scores", "lists", "kernel")) > 0
        assert 1 < found["blocks_a_query"] <= 3
    assert alike["blocks_a_tile"] < apart["blocks_a_tile"] <= 16
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("blocks forward, its parts B1 T64 d16") for line in lines) == 2
    assert all(len(line) < 220 for line in lines)

    gpu.main([str(tmp_path), "--phases", "blocks,goals", "--seconds", "0"], small)
    lines = capsys.readouterr().out.splitlines()
    (late,) = [n for n, line in enumerate(lines) if line.startswith("left out for want of time: 2 plans")]
    goals = [n for n, line in enumerate(lines) if line.startswith("goal ")]
    assert len(goals) == len(GOALS)
    assert max(goals) < late  # goals first, whatever order the words have


def test_variants_of_attention_to_selected_blocks(monkeypatch, tmp_path, capsys):
    """What ships is among what is tried; a group of the backward pass and one of decoding run at a small size."""
    for entry in block_entries(128).values():
        assert entry.table[entry.key] in entry.values, entry.kernel
    kept = {}
    for group in block_groups(replace(SHAPES, d_models=(16,), tokens=192), small=True):
        kept.setdefault(group.entry.kernel, replace(group, entry=replace(group.entry, values=group.entry.values[:1])))
    assert set(kept) == set(block_entries(128))
    # The others run what this one of the backward pass runs, or makes first.
    kept = {name: kept[name] for name in ("blocks static dkv", "blocks scores", "blocks decode")}
    before = {name: dict(group.entry.table) for name, group in kept.items()}
    monkeypatch.setattr(gpu, "block_groups", lambda shapes: list(kept.values()))
    monkeypatch.setattr(timing, "LEAST_REPEATS", 1)
    monkeypatch.setattr(gpu, "measure_ceilings", lambda *_, **__: timing.Ceilings(1.0, 1.0))
    monkeypatch.setattr(block_decode, "choose_splits", lambda *_: 1)
    try:
        gpu.main([str(tmp_path), "--phases", "block_variants"], replace(SHAPES, repeats=1))
    finally:
        for name, group in kept.items():
            group.entry.table.update(before[name])
    rows = json.loads((tmp_path / "block_variants.json").read_text())["rows"]
    assert [(row["kernel"], row["failure"]) for row in rows] == [(name, None) for name in kept]
    assert all(len(line) < 120 for line in capsys.readouterr().out.splitlines())


def test_a_variant_that_fails_is_named_and_the_others_are_measured(monkeypatch, tmp_path, capsys):
    table = {"here": None}
    entry = variants.Entry("planted", table, "here", (scan.Walk(1, 1, 1), scan.Walk(2, 1, 1)))

    def run():
        if table["here"].rows == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    good = variants.Group(entry, "B1", "-", 1e3, 1e3, lambda: run)
    broken = variants.Group(replace(entry, kernel="no inputs"), "B2", "-", 1e3, 1e3, lambda: 1 / 0)
    monkeypatch.setattr(gpu, "groups", lambda shapes: [good, broken])
    gpu.main([str(tmp_path), "--phases", "variants"], SHAPES)
    out = capsys.readouterr().out
    assert re.search(r"r1 s1 f1 +RuntimeError: CUDA error: an illegal memory access was encountered\n", out)
    assert out.count("ZeroDivisionError") == 2
    assert table["here"] == scan.Walk(2, 1, 1)
    failures = [row["failure"] is None for row in json.loads((tmp_path / "variants.json").read_text())["rows"]]
    assert failures == [False, True, False, False]

    gpu.main([str(tmp_path), "--phases", "variants", "--only", "pla"], SHAPES)
    assert {row["kernel"] for row in json.loads((tmp_path / "variants.json").read_text())["rows"]} == {"planted"}


def test_goals_table_and_peers_at_a_small_size(monkeypatch, tmp_path, capsys):
    """A row a line; what is left out for want of time is named; the goals' verdicts come last."""
    wanted = Plan("scan", "B64 T16 d32", "-", lambda: iter(()))
    monkeypatch.setattr(gpu, "GOALS", (Goal("scan forward", wanted.shape, "-", "bandwidth_fraction", 0.75), *GOALS[:1]))
    monkeypatch.setattr(gpu, "concerns_goals", lambda plan: plan.op == "scan")
    gpu.main([str(tmp_path), "--phases", "goals,table", "--seconds", "60"], SHAPES)
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line for line in lines if line.startswith("scan forward") and " ours " in line]
    assert first.split()[2:4] == ["B64", "T16"]
    assert lines[-2].startswith("goal scan forward B64 T16 d32 -")
    assert lines[-2].endswith(("reached", "MISSED"))
    assert lines[-1].endswith("not measured")
    saved = json.loads((tmp_path / "kernels.json").read_text())
    assert saved["complete"]
    shown = {(row["op"], row["pattern"], row["candidate"]) for row in saved["rows"]}
    assert {("scan forward", "-", "ours"), ("decode", "D4", "ours"), ("attention forward", "D4", DENSE)} <= shown
    assert not any("paper" in row["candidate"] for row in saved["rows"])
    # One measurement of the ceilings holds for both parts.
    ceiling = pytest.approx(saved["ceilings"]["copy_gb_s"], rel=1e-6)
    assert all(row["gb_s"] / row["bandwidth_fraction"] == ceiling for row in saved["rows"])

    gpu.main([str(tmp_path), "--phases", "goals,table", "--seconds", "0"], SHAPES)
    assert "left out for want of time: " in capsys.readouterr().out
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] == []


def test_wrong_words(tmp_path):
    with pytest.raises(
        ValueError, match="--phases: got fast; allowed: variants, goals, table, peers, block_variants, blocks"
    ):
        gpu.main([str(tmp_path), "--phases", "fast"], SHAPES)
    with pytest.raises(ValueError, match="invalid float value: 'x'"):
        gpu.main([str(tmp_path), "--seconds", "x"], SHAPES)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            gpu.main([str(tmp_path)])


def test_a_goal_is_judged_by_the_faster_dense_attention():
    def row(op, pattern, candidate, ms, share=0.5):
        figures = {"ms_p50": ms, "bandwidth_fraction": share, "matmul_fraction": 0.1}
        return {"op": op, "shape": "B1 T9", "pattern": pattern, "candidate": candidate, **figures}

    rows = [
        row("both", "D16", "ours", 2.0),
        row("dense", "D1", f"{DENSE} (cudnn)", 20.0),
        row("dense", "D1", f"{DENSE} (flash)", 40.0),
        row("both", "D16", "paper", 1.0),
    ]
    goal = Goal("both", "B1 T9", "D16", "over dense", 12.0, "dense")
    assert goal.reached(rows) == 10.0
    assert goal.line(rows).endswith("10.0x of over dense, aim 12.0x: MISSED")
    assert goal.reached(rows[:1]) is None
    assert Goal("both", "B1 T9", "D16", "bandwidth_fraction", 0.5).line(rows).endswith(": reached")


def test_every_goal_is_about_a_plan_of_the_benchmark():
    from ratplus.kernels.bench.cases import plans

    needed = [plan for plan in plans(replace(Shapes(), device="cpu")) if concerns_goals(plan)]
    for goal in GOALS:
        op = "attention" if goal.op == "recurrence and attention" else goal.op.split()[0]
        assert any((plan.op, plan.shape, plan.pattern) == (op, goal.shape, goal.pattern) for plan in needed), goal


def test_the_script_needs_nothing_that_a_bare_gpu_machine_lacks():
    """Hydra, OmegaConf, W&B and pytest-mpl aren't there."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'wandb', 'pytest_mpl', 'antlr4'): sys.modules[name] = None\n"
        "import ratplus.kernels.bench.gpu, ratplus.bench.models, ratplus.bench.trainer, ratplus.analysis.efficiency"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
