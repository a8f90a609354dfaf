"""Small sweeps whose numbers are halves, quarters and so on, so that what is computed from them is exact."""

from __future__ import annotations

import json
import math

import numpy as np

from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.record import write_record
from ratplus.records.samples import write_samples

ITEMS = np.array([1.0, 1.5, 2.0, 2.5] * 4)


def pattern_of(text: str) -> Pattern | PatternMap:
    """`D16`, or a map of the four layers or heads: `layers 1 64 64 1`."""
    kind, *parts = text.split()
    if not parts:
        return Pattern.from_label(text)
    patterns = [Pattern.from_label(part if part[0].isalpha() else f"D{part}") for part in parts]
    return PatternMap.per_layer(patterns, 4) if kind == "layers" else PatternMap.per_head(patterns, 4)


def with_items(sweep, model, label, change, spread=0.0, *, recall=None, **options) -> dict:
    """A cell whose losses of 16 items are ITEMS and a change, ± the spread in turn; its record says their mean."""
    values = ITEMS + change + spread * np.array([-1.0, 1.0] * 8)
    metrics = {"loss": (float(values.mean()), 0.1), "perplexity": (math.exp(values.mean()), 0.5)}
    samples = [{"task": "loss", "id": i, "loss": float(v)} for i, v in enumerate(values)]
    if recall is not None:
        right = [float(i < recall) for i in range(16)]
        metrics["recall_accuracy"] = (recall / 16, 0.05)
        samples += [{"task": "recall", "id": i, "accuracy": v} for i, v in enumerate(right)]
    cell = sweep.add(model, pattern_of(label), metrics, **options)
    write_samples(sweep.path / "evaluate" / cell["id"], samples)
    return cell


def results(loss, recall=None, next_token=None) -> dict:
    found = {"loss": (loss, 0.01), "perplexity": (math.exp(loss), 0.02)}
    found |= {} if recall is None else {"recall_accuracy": (recall, 0.02), "recall_accuracy_1_32": (recall / 2, 0.03)}
    return found | ({} if next_token is None else {"next_token_accuracy": (next_token, 0.005)})


def frame_of(sweep, **attrs):
    frame = load_sweep(sweep.write())
    frame.attrs |= attrs
    return frame


def add_plain(sweep) -> None:
    """Two models under all kinds of static patterns, listed out of order; cells that failed, run and are missing."""
    for label, loss, recall in (
        ("D16", 2.5, 0.25), ("D1", 2.0, 0.99), ("D4", 2.25, 0.5), ("stream-W64-I4", 2.4, 0.2), ("D16-W64", 2.1, 0.75),
        ("layers 1 64 64 1", 2.05, 0.8),
    ):  # fmt: skip
        sweep.add("attention_tiny", pattern_of(label), results(loss, recall, 0.5))
    sweep.add("ratplus_tiny", Pattern(1), results(1.875, 1.0, 0.6))
    sweep.add("ratplus_tiny", Pattern(16), results(1.9375, 0.875, 0.55))
    sweep.add("ratplus_tiny", Pattern(4), status="failed", message="out of memory | 50%")
    sweep.add("ratplus_tiny", Pattern(64), status="missing", at="adapt")
    sweep.add("ratplus_tiny", Pattern(16, 64), status="running")
    sweep.add("ratplus_tiny", Pattern(None, 64, 4), results(2.0, math.nan, 0.5))


def add_seeds(sweep) -> None:
    """Three seeds with items of D1, D2, D4, D8, D32; of another model one seed less, and no items."""
    for seed in range(3):
        base = seed / 16
        with_items(sweep, "ratplus_tiny", "D8", base + 9 / 64, 1 / 1024, seed=seed, recall=12)
        with_items(sweep, "ratplus_tiny", "D1", base, seed=seed, recall=16)
        with_items(sweep, "ratplus_tiny", "D2", base + 8 / 64, seed=seed, recall=13)
        with_items(sweep, "ratplus_tiny", "D4", base + 129 / 1024, 1 / 32, seed=seed, recall=13)
        with_items(
            sweep, "ratplus_tiny", "D32", base + 130 / 1024 + (seed - 1) / 4, 1 / 1024, seed=seed, recall=4 + seed
        )
    for label, change in (("D1", 0.5), ("D4", 1.0)):
        for seed in (0, 1):
            sweep.add("attention_tiny", pattern_of(label), results(1.75 + change + seed / 8, 0.5), seed=seed)
    sweep.add("attention_tiny", Pattern(8), results(2.0, 0.5), seed=0)
    sweep.add("attention_tiny", Pattern(8), status="failed", seed=1)


def add_selecting_pair(sweep) -> None:
    """Two patterns that select by query, of which no evaluation says what they selected."""
    for label in ("top4x16", "quest4x16"):
        sweep.add("ratplus_tiny", pattern_of(label), results(2.0, 0.5))


def with_trained_context(sweep, cell: dict, length: int | None) -> None:
    """Say in the record of a cell's pretraining for which context its weights were trained; None says nothing."""
    folder = sweep.path / "pretrain" / cell["stages"]["pretrain"]
    record = json.loads((folder / "record.json").read_text())
    names = ("stage", "config", "parent", "status", "metrics", "timing", "provenance")
    body = {name: record[name] for name in names}
    body["metrics"].pop("trained_context", None)
    if length is not None:
        body["metrics"]["trained_context"] = {"value": length, "stderr": None, "count": 1}
    write_record(folder, **body)
