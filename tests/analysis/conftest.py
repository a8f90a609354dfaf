"""A generated sweep folder: `sweep.json` and records as the sweep writes them, with made-up but plausible numbers."""

from __future__ import annotations

import base64
import fcntl
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ratplus.pattern import Pattern, PatternMap
from ratplus.records.record import stage_id, write_record

LAYERS, D_MODEL, D_HEAD, CONTEXT = 4, 64, 16, 512
HEADS = D_MODEL // D_HEAD
STAGES = ("pretrain", "adapt", "evaluate")


@dataclass
class SweepFolder:
    """Builds a sweep folder cell by cell; `write` leaves the `sweep.json`."""

    path: Path
    cells: list[dict] = field(default_factory=list)

    def add(
        self,
        model: str,
        pattern: Pattern | PatternMap,
        metrics: dict | None = None,
        *,
        seed: int = 0,
        status: str = "done",
        at: str = "evaluate",
        message: str = "Traceback\n  RuntimeError: it broke",
        axes: dict | None = None,
        pattern_name: str = "",
        timing: dict | None = None,
        parameters: float = 512_544.0,
        kv_heads: int | None = None,
        mixer: str | None = None,
        curve: list[tuple[int, int, float]] | None = None,
    ) -> dict:
        """One cell: `metrics` is {name: value or (value, stderr)}; `status` as `load_sweep` should report it.

        A cell that is not done got as far as the stage `at`: earlier stages are done, later ones have left nothing.
        `timing` is the evaluation's; `parameters` what pretraining counted; `curve` rows (step, tokens, loss) of the
        adapt stage.
        """
        patterns = PatternMap.uniform(pattern, LAYERS, HEADS) if isinstance(pattern, Pattern) else pattern
        recurrence = model.startswith("ratplus")
        config = {
            "model": {
                "name": model,
                "layers": LAYERS,
                "d_model": D_MODEL,
                "d_head": D_HEAD,
                "recurrence": recurrence,
                "vocab_size": 257,
                # Another size has other records.
                "ffn_mult": 4 if parameters == 512_544.0 else parameters,
                **({} if kv_heads is None else {"kv_heads": kv_heads}),
                **({} if mixer is None else {"mixer": mixer}),
            },
            "train": {"context": CONTEXT},
            "seed": seed,
            "axes": axes or {},
        }
        parent, stages = None, {}
        for stage in STAGES:
            of_stage = config if stage == "pretrain" else {**config, "pattern": patterns.to_dict()}
            stages[stage] = name = stage_id(stage, of_stage, parent)
            if status == "done" or STAGES.index(stage) <= STAGES.index(at):
                of_cell = {"evaluate": metrics, "pretrain": {"parameters": parameters}}.get(stage)
                state = status if stage == at else "done"
                took = (timing or {}) if stage == "evaluate" else {}
                self._leave(stage, name, of_stage, parent, state, message, of_cell or {}, took)
                if stage == "adapt" and curve:
                    lines = ["step,tokens,lr,loss", *(f"{step},{tokens},0.001,{loss}" for step, tokens, loss in curve)]
                    (self.path / stage / name / "curve.csv").write_text("\n".join(lines) + "\n")
            parent = name
        cell = {
            "id": stages["evaluate"],
            "model": model,
            "pattern": patterns.to_dict(),
            "pattern_name": pattern_name,
            "label": patterns.label,
            "seed": seed,
            "stages": stages,
            "axes": axes or {},
            "swept": ["model", "pattern", *(axes or {})],
            "config": config,
            "corpus": {},
            "run": {},
        }
        self.cells.append(cell)
        return cell

    def _leave(self, stage, name, config, parent, state, message, metrics, timing) -> None:
        """What a stage in that state leaves: a record, half of one, a lock or nothing."""
        folder = self.path / stage / name
        if state == "missing":
            return
        if state == "running":
            folder.mkdir(parents=True)
            (folder / "lock.json").write_text(json.dumps({"token": "a", "host": "another machine", "pid": 1}))
            return
        write_record(
            folder,
            stage=stage,
            config=config,
            parent=parent,
            status="failed" if state == "failed" else "done",
            metrics={key: _metric(value) for key, value in metrics.items()},
            timing=timing,
            provenance={"host": "a", "versions": {"torch": "2.13.0"}, "git": {"commit": "0" * 40, "dirty": False}},
            error={"type": "RuntimeError", "message": message} if state == "failed" else None,
        )
        if state == "damaged":
            record = folder / "record.json"
            record.write_text(record.read_text()[:100])

    def add_demo(self, seed: int = 0, shift: float = 0.0) -> None:
        """The cells of the demo, with numbers like those of its prototype; `shift` is added to every loss."""
        others = (
            (Pattern(16, 64), "dilated_local"),
            (Pattern(None, 64, 4), "streaming"),
            (PatternMap.per_layer([Pattern(), Pattern(64), Pattern(64), Pattern()], HEADS), "hybrid_layers"),
            (PatternMap.per_head([Pattern(), Pattern(64), Pattern(64), Pattern(64)], LAYERS), "hybrid_heads"),
        )
        patterns = [(Pattern(2**power), "dilated") for power in range(7)] + list(others)
        for model, losses, recalls in (
            (
                "attention_tiny",
                (1.74, 2.21, 2.41, 2.50, 2.54, 2.55, 2.56, 2.2, 2.3, 1.82, 1.79),
                (0.99, 0.58, 0.36, 0.25, 0.19, 0.15, 0.14, 0.3, 0.2, 0.80, 0.85),
            ),
            (
                "ratplus_tiny",
                (1.669, 1.671, 1.677, 1.679, 1.681, 1.682, 1.684, 1.675, 1.72, 1.672, 1.671),
                (0.99, 0.96, 0.90, 0.83, 0.71, 0.60, 0.52, 0.78, 0.45, 0.95, 0.97),
            ),
        ):
            for (pattern, name), loss, recall in zip(patterns, losses, recalls):
                self.add(model, pattern, self.results(loss + shift, recall), seed=seed, pattern_name=name)

    @staticmethod
    def results(loss: float, recall: float | None = None) -> dict:
        """Metrics of a cell, those that follow from the loss consistent with it."""
        perplexity = math.exp(loss) if loss < 100 else math.inf
        metrics = {
            "loss": (loss, 0.006),
            "perplexity": (perplexity, 0.006 * perplexity),
            "next_token_accuracy": (0.9 - 0.22 * min(loss, 4), 0.002),
        }
        if recall is not None:
            metrics["recall_accuracy"] = (recall, 0.012)
            metrics["recall_accuracy_1_64"] = (min(1, recall + 0.1), 0.02)
        return metrics

    @staticmethod
    def gates() -> dict:
        """What a `gates.json` may hold."""
        return made_up_gates()

    def write(self, name: str = "demo") -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "sweep.json").write_text(json.dumps({"format": 1, "name": name, "cells": self.cells}))
        return self.path

    def add_everything(self) -> None:
        """Cells that every module has something to show of: sizes, ARL, no adaptation, single layers, tasks, gates."""
        patterns = [Pattern(), Pattern(4), Pattern(64), Pattern(16, 64), Pattern(None, 64, 4)]
        single = [PatternMap.per_layer([Pattern(64 if i == at else 1) for i in range(LAYERS)], HEADS) for at in (0, 2)]
        for model, base, slope in (("attention", 1.74, 0.13), ("ratplus", 1.67, 0.003)):
            for size, parameters in (("tiny", 5e5), ("small", 4e6)):
                for steps in (0, 40) if size == "tiny" else (40,):
                    for rank, pattern in enumerate([*patterns, *single]):
                        loss = base + rank * slope * (3 if steps == 0 else 1) - 0.1 * (size == "small")
                        metrics = self.results(loss, max(0.1, 0.95 - 3 * rank * slope))
                        metrics |= {f"{task}/acc": (0.6 - 0.01 * rank, 0.02) for task in ("piqa", "hellaswag")}
                        depths = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 101))
                        metrics |= {f"niah_single_2_overlap_{a}_{b}": (0.9 - a / 200, 0.05) for a, b in depths}
                        metrics |= {"niah_single_2_overlap": (0.7, 0.02)}
                        metrics |= {"niah_single_1": (0.9, 0.02), "my_task/score": (3.5 + rank, 0.1)}
                        quarters = [(low, low + 128) for low in range(0, CONTEXT, 128)]
                        metrics |= {f"loss_at_{a}_{b}": (loss - a / 2000, 0.02) for a, b in quarters}
                        metrics |= {f"recall_at_{a}_{b}": (0.9 - a / 1000, 0.02) for a, b in quarters}
                        metrics |= {f"recall_over_{a}_{2 * a}": (0.9 - a / 600, 0.02) for a in (64, 128, 256)}
                        falling = [(step, 4096 * step, loss + 1 / step) for step in (1, 10, 20, 30, 40)]
                        cell = self.add(
                            f"{model}_{size}", pattern, metrics, parameters=parameters, curve=falling,
                            axes={"train.adapt.steps": steps}, timing={"decode_ms_per_token": 1 / (1 + rank)},
                        )  # fmt: skip
                        if model == "ratplus":
                            gates = self.path / "evaluate" / cell["id"] / "gates.json"
                            gates.write_text(json.dumps(made_up_gates()))

    def add_selecting(self) -> None:
        """Cells of patterns that select by query, with what they selected, beside static ones."""
        labels = ("D1", "D64", "stream-W60-I4", "top4x16", "top8x16", "quest4x16", "D64-top4x16", "snap128x16")
        for model in ("attention_tiny", "ratplus_tiny"):
            for rank, label in enumerate(labels):
                cell = self.add(model, Pattern.from_label(label), self.results(1.7 + rank / 50, 0.9 - rank / 15))
                if rank > 2:
                    path = self.path / "evaluate" / cell["id"] / "selection.json"
                    path.write_text(json.dumps(made_up_selection(label, 0.2)))

    def add_failures(self) -> None:
        """A finished pair, a cell that diverged, and a cell for each way not to finish."""
        self.add("ratplus_tiny", Pattern(1), self.results(1.67, 0.9))
        self.add("ratplus_tiny", Pattern(2), self.results(1.68, 0.8))
        self.add("ratplus_tiny", Pattern(4), self.results(math.nan, 0.8))
        for dilation, status in ((8, "failed"), (16, "running"), (32, "missing"), (64, "damaged")):
            self.add("ratplus_tiny", Pattern(dilation), status=status, message="x\n</script><b>boom</b> & 50%")


def made_up_gates() -> dict:
    """What `gates.json` holds of a model of LAYERS × HEADS."""
    per_head = [[0.4 + 0.1 * layer + 0.01 * head for head in range(HEADS)] for layer in range(LAYERS)]
    norms = [[1 + layer + 0.01 * position for position in range(16)] for layer in range(LAYERS)]
    return {
        "format": 1, "rows": 4, "context": CONTEXT, "positions": list(range(0, CONTEXT, CONTEXT // 16)),
        "gate_mean": per_head, "gate_p10": per_head, "gate_p90": per_head,
        "memory_tokens": [[g / (1 - g) for g in heads] for heads in per_head], "key_norm": norms, "value_norm": norms,
    }  # fmt: skip


def made_up_selection(label: str, rate: float) -> dict:
    """What `selection.json` holds of a model of LAYERS × HEADS."""
    seen = np.tril(np.ones((40, 40), dtype=bool))
    mask = {"task": "recall", "layer": 0, "head": 0, "length": 40, "bits": base64.b64encode(np.packbits(seen)).decode()}
    rates = [[rate + 0.1 * layer + 0.01 * head for head in range(HEADS)] for layer in range(LAYERS)]
    return {
        "format": 1, "rows": {"recall": 2}, "density": rates, "hit_rate": {"recall": rates}, "masks": {label: mask},
    }  # fmt: skip


def _metric(value) -> dict:
    value, stderr = value if isinstance(value, tuple) else (value, None)
    return {"value": value, "stderr": stderr, "count": 100}


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    """An empty sweep folder to add cells to."""
    return SweepFolder(tmp_path / "outputs" / "demo")


@pytest.fixture(scope="session")
def folder_of_sweep() -> type[SweepFolder]:
    """What builds sweep folders, for fixtures of several."""
    return SweepFolder


@pytest.fixture
def quick(monkeypatch):
    """Files of a test that writes hundreds need not reach the disk, since none outlives the test."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A finished sweep of the demo's cells. Read it, and write its `report/`; change nothing else."""
    folder = SweepFolder(tmp_path_factory.mktemp("outputs") / "demo")
    folder.add_demo()
    return folder.write()


@pytest.fixture(scope="session")
def everything(tmp_path_factory) -> Path:
    """A finished sweep that every module applies to. Read it, and write its `report/`; change nothing else."""
    folder = SweepFolder(tmp_path_factory.mktemp("outputs") / "everything")
    with mock.patch("os.fsync"):
        folder.add_everything()
    return folder.write("everything")


@pytest.fixture(scope="session")
def selecting(tmp_path_factory) -> Path:
    """A finished sweep of patterns that select by query. Read it, and write its `report/`; change nothing else."""
    folder = SweepFolder(tmp_path_factory.mktemp("outputs") / "selecting")
    with mock.patch("os.fsync"):
        folder.add_selecting()
    return folder.write("selecting")


@pytest.fixture(scope="session")
def stored():
    """What makes the content of a `selection.json`."""
    return made_up_selection


@pytest.fixture(scope="session")
def reported(everything, tmp_path_factory) -> list[Path]:
    """The files of that sweep's report. It takes half a minute, so the processes of a run of pytest-xdist share it."""
    from ratplus.analysis.report import report

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reported"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits here
        if not (shared / "names.json").exists():
            paths = report(everything)
            shutil.copytree(everything / "report", shared)
            (shared / "names.json").write_text(json.dumps([path.name for path in paths]))
            return paths
    names = json.loads((shared / "names.json").read_text())
    (everything / "report").mkdir(exist_ok=True)
    return [Path(shutil.copy(shared / name, everything / "report")) for name in names]
