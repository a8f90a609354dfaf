"""A generated sweep folder: `sweep.json` and records as the sweep writes them, with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ratplus.pattern import Pattern, PatternMap
from ratplus.record import stage_id, write_record

LAYERS, D_MODEL, D_HEAD, CONTEXT = 4, 64, 16, 512
HEADS = D_MODEL // D_HEAD


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
        message: str = "Traceback\n  RuntimeError: it broke",
        axes: dict | None = None,
        pattern_name: str = "",
    ) -> dict:
        """One cell: `metrics` is {name: value or (value, stderr)}; `status` as `load_sweep` should report it."""
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
            },
            "train": {"context": CONTEXT},
            "seed": seed,
            "axes": axes or {},
        }
        parent, stages = None, {}
        for stage in ("pretrain", "adapt", "evaluate"):
            of_stage = config if stage == "pretrain" else {**config, "pattern": patterns.to_dict()}
            stages[stage] = name = stage_id(stage, of_stage, parent)
            self._leave(stage, name, of_stage, parent, status, message, metrics or {})
            parent = name
        cell = {
            "id": stages["evaluate"],
            "model": model,
            "pattern": patterns.to_dict(),
            "pattern_name": pattern_name,
            "label": patterns.label,
            "seed": seed,
            "stages": stages,
            "overrides": [f"model={model}"],
            "axes": axes or {},
            "config": config,
        }
        self.cells.append(cell)
        return cell

    def _leave(self, stage, name, config, parent, status, message, metrics) -> None:
        """What the stage leaves in a cell of that status: a record, a lock or nothing."""
        folder = self.path / stage / name
        last = stage == "evaluate"
        if status == "running" and last:
            folder.mkdir(parents=True)
            (folder / "lock.json").write_text("{}")
        if status in ("missing", "running") and last:
            return
        wrong = status == "failed" and last
        write_record(
            folder,
            stage=stage,
            config=config,
            parent=parent,
            status="failed" if wrong else "done",
            metrics={k: _metric(v) for k, v in metrics.items()} if last else {},
            timing={},
            provenance={},
            error={"type": "RuntimeError", "message": message} if wrong else None,
        )
        if status == "damaged" and last:
            text = (folder / "record.json").read_text()
            (folder / "record.json").write_text(text[: len(text) // 2])

    def write(self, name: str = "demo") -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "sweep.json").write_text(json.dumps({"format": 1, "name": name, "cells": self.cells}))
        return self.path


def _metric(value) -> dict:
    value, stderr = value if isinstance(value, tuple) else (value, None)
    return {"value": value, "stderr": stderr, "count": 100}


def results(loss: float, recall: float | None = None) -> dict:
    """Metrics of a cell, the derived ones consistent with the loss."""
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


def demo_cells(sweep: SweepFolder, seed: int = 0, shift: float = 0.0) -> None:
    """The cells of the demo, with losses like those of its prototype."""
    hybrid = PatternMap.per_layer([Pattern(), Pattern(64), Pattern(64), Pattern()], HEADS)
    heads = PatternMap.per_head([Pattern()] + [Pattern(64)] * 3, LAYERS)
    collapse = {1: (1.74, 0.99), 2: (2.21, 0.58), 4: (2.41, 0.36), 8: (2.5, 0.25), 16: (2.54, 0.19), 32: (2.55, 0.15), 64: (2.56, 0.14)}
    flat = {1: (1.669, 0.99), 2: (1.671, 0.96), 4: (1.677, 0.9), 8: (1.679, 0.83), 16: (1.681, 0.71), 32: (1.682, 0.6), 64: (1.684, 0.52)}
    for model, by_dilation, others in (
        ("attention_tiny", collapse, ((2.2, 0.3), (2.3, 0.2), (1.82, 0.8), (1.79, 0.85))),
        ("ratplus_tiny", flat, ((1.675, 0.78), (1.72, 0.45), (1.672, 0.95), (1.671, 0.97))),
    ):
        special = (
            (Pattern(16, 64), "dilated_local"),
            (Pattern(None, 64, 4), "streaming"),
            (hybrid, "hybrid_layers"),
            (heads, "hybrid_heads"),
        )
        for dilation, (loss, recall) in by_dilation.items():
            sweep.add(model, Pattern(dilation), results(loss + shift, recall), seed=seed, pattern_name="dilated")
        for (pattern, name), (loss, recall) in zip(special, others):
            sweep.add(model, pattern, results(loss + shift, recall), seed=seed, pattern_name=name)


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    """An empty sweep folder to add cells to."""
    return SweepFolder(tmp_path / "outputs" / "demo")


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A finished sweep of the demo's cells. Read it, and write its `report/`; change nothing else."""
    folder = SweepFolder(tmp_path_factory.mktemp("outputs") / "demo")
    demo_cells(folder)
    return folder.write()
