"""Three sweeps or more in one table: every model and pattern of each, ranked by results that all were asked alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import GROUP, in_order, over_seeds, progress, short_patterns
from ratplus.analysis.frame.tasks import is_cost, is_share, result_column
from ratplus.analysis.paired.best import compare_to_first
from ratplus.analysis.paired.bootstrap import RESAMPLES
from ratplus.analysis.paired.several import names_of, read_folders, same_items, seeds_note, shared_seeds
from ratplus.analysis.paired.ties import TIED, TIED_SEEDS

NAME = "ranking"
# Results that a table has room for; the CSV file has the same ones.
MOST_RESULTS = 5


def ranking(folders: Sequence[Path]) -> Table:
    """The table: rows by the share of the cache that they hold, the best sparse one of all in bold, its ties marked.

    Raises:
        ValueError: a folder that is no sweep, or no result that all were asked alike.
    """
    frame = in_order(read_folders(folders))
    wanted = [
        name for name in frame.attrs["metrics"]
        if frame[name].notna().any() and not is_cost(name) and name not in ("perplexity", "next_token_accuracy")
        and not result_column(name).part
    ]  # fmt: skip
    done = frame[frame["status"].eq("done")]
    alike, refused = [], []
    for name in wanted:
        known = done[done[name].notna()]
        if known["folder"].nunique() < len(names_of(folders)):
            continue
        (alike if len(same_items(known, name)) == 1 else refused).append(name)
    if not alike:
        asked = f" ({', '.join(refused[:6])}: different prompts or data)" if refused else ""
        raise ValueError(f"{', '.join(map(str, folders))}: no result that all sweeps were asked alike{asked}")
    shown_metrics = alike[:MOST_RESULTS]
    shared = shared_seeds(done[done[alike[0]].notna()])
    if shared:
        frame, done = (part[part["seed"].isin(shared)] for part in (frame, done))
    rows = over_seeds(frame, shown_metrics)
    ratio = frame.groupby(GROUP, sort=False)["kv_ratio"].first().astype("float64")
    rows["kv_ratio"] = [ratio[tuple(key)] for key in rows[GROUP].itertuples(index=False, name=None)]
    for name in shown_metrics:
        rows = _with_ties(rows, done, name)
    rows = rows.sort_values(["kv_ratio", shown_metrics[0]], kind="stable").reset_index(drop=True)
    shown = pd.DataFrame({"Model": rows["run"], "Pattern": rows["pattern"].map(short_patterns(rows))})
    shown["KV (%)"] = [number(100 * value, 1) for value in rows["kv_ratio"]]
    for name in shown_metrics:
        share = is_share(result_column(name).measure, rows[name])
        scale, digits, unit = (100, 1, " (%)") if share else (1, 3, "")
        lower = " ↓" if result_column(name).lower else ""
        texts = [number(v, digits, e) for v, e in zip(rows[name] * scale, rows[f"{name}_stderr"] * scale)]
        marks = zip(texts, rows[f"{name}_best"], rows[f"{name}_tied"])
        shown[name.replace("_", " ").capitalize() + unit + lower] = [
            f"**{text}**" if best else f"{text} {TIED if tied == 'items' else TIED_SEEDS}" if tied else text
            for text, best, tied in marks
        ]
    notes = [
        f"Bold: the best sparse row of all sweeps. {TIED}: cannot be told from it item by item (paired bootstrap, "
        f"{RESAMPLES} resamples; p ≥ 0.05, Holm over all rows); {TIED_SEEDS}: can, but not over three or more seeds."
    ]
    if said := seeds_note(shared):
        notes.append(f"Means are {said}." if shared else f"{said[:1].upper()}{said[1:]}.")
    if refused:
        notes.append(f"Not ranked, since prompts or data are different: {', '.join(refused)}.")
    if len(alike) > MOST_RESULTS:
        notes.append(f"{len(alike) - MOST_RESULTS} more results: see the sweeps' own tables.")
    if not frame["status"].eq("done").all():
        notes.append(f"{progress(frame)}.")
    names = ", ".join(names_of(folders).values())
    caption = (
        f"Sweeps {names}: every model and pattern by the share of the dense cache that it holds; mean over seeds ± "
        "standard error (over seeds, or of the evaluation where there is one)."
    )
    results = [name + end for name in shown_metrics for end in ("", "_stderr", "_best", "_tied", "_p")]
    data = rows[["model", "variant", "pattern", "cells", "done", "kv_ratio", "kv_read", "kv_bytes", *results]]
    return Table(NAME, data, shown, caption, notes, names=2, grouped=True)


def _with_ties(rows: pd.DataFrame, done: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with `<name>_best`, `<name>_tied` ("items", "seeds" or "") and `<name>_p` (Holm)."""
    sparse = rows[rows["kind"].ne("dense") & rows["done"].eq(rows["cells"]) & rows[name].notna()]
    sparse = sparse.sort_values(name, ascending=result_column(name).lower, kind="stable").reset_index(drop=True)
    found: dict[tuple, dict] = {}
    if len(sparse):
        own = done.merge(sparse[GROUP], on=GROUP)
        keys = sparse[GROUP].itertuples(index=False, name=None)
        found = dict(zip(keys, compare_to_first(sparse, own, name)))
    first = next(iter(found), None)
    groups = [tuple(key) for key in rows[GROUP].itertuples(index=False, name=None)]
    return rows.assign(
        **{
            f"{name}_best": [key == first and len(found) > 1 for key in groups],
            f"{name}_tied": [found[key]["tied"] if key in found and key != first else "" for key in groups],
            f"{name}_p": [found[key]["p"] if key in found else math.nan for key in groups],
        }
    )
