"""The whole report of a sweep: every table and figure that applies, and one paragraph that says what came out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ratplus.analysis import accuracy_vs_dilation
from ratplus.analysis.aggregate import in_order, over_seeds, progress, with_loss_delta
from ratplus.analysis.load import load_sweep

# Each has `applies(frame)` and `write(frame, folder)`; in the order in which a reader should meet them.
MODULES = (accuracy_vs_dilation,)


def report(folder: Path) -> list[Path]:
    """Write everything that applies to a sweep into `<folder>/report/`; returns the paths.

    Raises:
        ValueError: `folder` is not a sweep's output folder, or its `sweep.json` is damaged or has no cells.
    """
    folder = Path(folder)
    frame = load_sweep(folder)
    if frame.empty:
        raise ValueError(f"{folder / 'sweep.json'}: lists no cells, so there is nothing to report")
    return [path for module in MODULES if module.applies(frame) for path in module.write(frame, folder / "report")]


def headline(frame: pd.DataFrame) -> str:
    """One paragraph on what sparsity costs each model, computed from the cells that have finished.

    It speaks of the largest plain dilation (no window, no sinks) that a RAT+ model has a finite loss for (any model,
    if there is no RAT+), against the same model's dense loss; then of the recall there, of the cache that is left, and
    of cells without a result.
    """
    sentences = [_comparison(frame)] if len(frame) else []
    if not frame["status"].eq("done").all() or frame.empty:
        sentences.append(progress(frame) + ".")
    return " ".join(sentence for sentence in sentences if sentence)


def _comparison(frame: pd.DataFrame) -> str:
    rows = over_seeds(with_loss_delta(in_order(frame)), ["loss", "loss_delta", "recall_accuracy"])
    rows["name"] = [f"RAT+ ({run})" if recurrent else run for run, recurrent in zip(rows["run"], rows["recurrence"])]
    plain = rows[rows["kind"].eq("dilated") & rows["loss_delta"].abs().lt(float("inf"))]
    if plain.empty:
        return "No model has finished both its dense and a dilated cell yet."
    recurrent = plain[plain["recurrence"]]
    dilation = (plain if recurrent.empty else recurrent)["dilation"].max()
    # RAT+ first: it is what the reader asks about.
    at = plain[plain["dilation"].eq(dilation)].sort_values("recurrence", ascending=False, kind="stable")
    changes = [
        f"{name} {'loses' if round(delta, 2) >= 0 else 'gains'} {abs(delta):.2f}"
        for name, delta in at[["name", "loss_delta"]].values
    ]
    changes[0] += " nats against its dense self"
    text = f"At D={dilation} {'; '.join(changes)}."
    recalls = [f"{name} {value:.0%}" for name, value in at[["name", "recall_accuracy"]].values if not pd.isna(value)]
    if recalls:
        text += f" Recall accuracy there: {', '.join(recalls)}."
    first = at.iloc[0]
    text += f" The pattern keeps {first['kv_entries']:g} of {first['context']} cache entries a head"
    text += f" and {first['attention_flops_ratio']:.1%} of the attention FLOPs."
    silent = [name for name in dict.fromkeys(rows["name"]) if name not in set(at["name"])]
    if silent:
        text += f" Not to compare at D={dilation}: {', '.join(silent)}."
    return text
