"""The whole report of a sweep: every table and figure that applies, a page with all of them, one paragraph on top."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ratplus.analysis import (
    ablation,
    accuracy_vs_dilation,
    adaptation_curves,
    efficiency,
    masks,
    niah_depth,
    pareto,
    pattern_tables,
    positions,
    recurrence,
    scaling_gap,
    sensitivity,
)
from ratplus.analysis.draw.output import remove_others, write
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.aggregate import (
    first_runs,
    in_order,
    over_seeds,
    progress,
    reference_cells,
    with_loss_delta,
)
from ratplus.analysis.frame.load import Sweep, read_sweep
from ratplus.analysis.frame.reference import check_reference
from ratplus.analysis.frame.tasks import SUITES
from ratplus.analysis.page.page import write_page
from ratplus.analysis.paired.differences import baseline_of, rows_with_deltas
from ratplus.analysis.paired.ties import delta_texts
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits
from ratplus.records.manifest import Entry

# Each has `applies(frame)` and `contents(frame)`; in the order in which a reader should meet them. `efficiency` is not
# among them: it does not read the sweep's records but benchmark results.
MODULES = (
    accuracy_vs_dilation,
    accuracy_vs_budget,
    pattern_tables,
    niah_depth,
    pareto,
    ablation,
    scaling_gap,
    positions,
    sensitivity,
    adaptation_curves,
    recurrence,
    selection_hits,
    masks,
)
# The names of the files of modules that have more than one table or figure.
NAMES = {
    recurrence.NAME: (recurrence.NAME, recurrence.SCHEMES),
    ablation.NAME: (ablation.NAME, ablation.GAPS),
    efficiency.NAME: tuple(f"{efficiency.NAME}_{part}" for part in ("kernels", "lengths", "models")),
}
# Models and variants that the headline has room for.
MOST_NAMED = 4
# What a reader of the page calls each file; others go by their name.
TITLES = {
    "accuracy_vs_dilation": "Loss and accuracy against dilation",
    "accuracy_vs_budget": "Accuracy against entries read",
    "niah_depth": "Needles by depth (NIAH)",
    "pareto": "Quality against cost",
    "ablation": "Ablation: recurrence, ARL, adaptation",
    "ablation_gaps": "Ablation: what each pattern costs",
    "scaling_gap": "What sparsity costs, by model size",
    "positions": "Loss and recall by position",
    "sensitivity": "Which layers and heads need to be dense",
    "adaptation_curves": "Adaptation curves",
    "recurrence": "What the recurrence does",
    "recurrence_schemes": "The recurrence over time, by how often it starts anew",
    "selection_hits": "Does a head select the answer?",
    "masks": "What each pattern sees",
    **{f"pattern_tables_{suite}": f"{title}, pattern by pattern" for suite, title in SUITES.items()},
}


def report(
    folder: Path,
    *,
    sweep: Sweep | None = None,
    reference: str | None = None,
    baseline: str | None = None,
    reproduce: Callable[[Entry], str] | None = None,
) -> list[Path]:
    """Write everything that applies to a sweep into `<folder>/report/`; returns the paths, the page last.

    Benchmark results in `<folder>/bench` are shown too. A module that fails is named in a warning and left out: the
    others are written all the same. Files of modules that no longer apply are removed.

    Args:
        sweep: what `read_sweep(folder)` gave, if it has been read already.
        reference: "paper" shows the paper's values beside ours, labelled as such.
        baseline: label or name of the pattern that differences are taken to; None for the dense one.
        reproduce: the command that makes the cell of a `sweep.json` entry again, for the page.

    Raises:
        ValueError: `folder` is not a sweep's output folder, its `sweep.json` is damaged or has no cells, or an unknown
            reference or baseline.
    """
    check_reference(reference)
    folder = Path(folder)
    sweep = sweep or read_sweep(folder)
    frame, target = sweep.frame, folder / "report"
    if frame.empty:
        raise ValueError(f"{folder / 'sweep.json'}: lists no cells, so there is nothing to report")
    if baseline not in (None, "dense") and not reference_cells(frame, baseline):
        close = difflib.get_close_matches(baseline, [*frame["pattern"].unique(), *frame["pattern_name"].unique()])
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(frame['pattern'].unique()[:8])}"
        raise ValueError(f"--baseline: the sweep has no finished cell of pattern {baseline!r}; {hint}")
    frame.attrs |= {"reference": reference, "baseline": baseline}
    written: list[Path] = []
    tables: list[Table] = []
    parts: list[tuple[Any, pd.DataFrame | Path]] = [(module, frame) for module in MODULES]
    parts.append((efficiency, folder / "bench"))
    for module, source in parts:
        try:
            made = module.contents(source) if module.applies(source) else []
            mine = write(made, target)
        except (ValueError, ArithmeticError) as error:
            logging.getLogger(__name__).warning("%s: left out of the report (%s)", module.NAME, error)
            made, mine = [], []
        remove_others(_names(module.NAME, target), target, mine)
        tables += [part for part in made if isinstance(part, Table)]
        written += mine
    pictures = [path for path in written if path.suffix == ".png"]
    page = write_page(sweep, pictures, tables, headline(frame), target, reproduce, TITLES)
    return [*written, page]


def _names(module: str, folder: Path) -> Iterable[str]:
    """Every name that a report may have given to files of a module."""
    if module == pattern_tables.NAME:  # a name for each suite, also of tasks that users define
        return [path.stem for path in folder.glob(f"{module}_*.md")]
    return NAMES.get(module, (module,))


def headline(frame: pd.DataFrame) -> str:
    """One paragraph on what sparsity costs each model, computed from the cells that have finished.

    It speaks of the largest plain dilation (no window, no sinks) that a RAT+ model has a finite loss for (any model,
    if there is no RAT+), against the same model's loss of the dense pattern, or of the baseline that was asked for;
    then of the recall there, of the cache that is left, and of cells and added suites without a result.
    """
    sentences = [_comparison(frame)] if len(frame) else []
    if not frame["status"].eq("done").all() or frame.empty:
        sentences.append(progress(frame) + ".")
    for suite, states in frame.attrs.get("added", {}).items():
        left = ", ".join(f"{count} {status}" for status, count in sorted(states.items()) if status != "done")
        if left:
            sentences.append(
                f"The added suite {suite}: {states.get('done', 0)} of {sum(states.values())} done ({left})."
            )
    return " ".join(sentence for sentence in sentences if sentence)


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a model, variant and pattern, with the errors of its difference to dense as far as they are known."""
    try:
        return rows_with_deltas(frame, ["recall_accuracy"])
    except ValueError:  # a damaged file of samples, which the tables' warnings tell of
        rows = over_seeds(with_loss_delta(in_order(frame)), ["loss", "loss_delta", "recall_accuracy"])
        return rows.assign(loss_delta_pm=math.nan)


def _errors_of(rows: pd.DataFrame, texts: list[str]) -> str:
    """What the ± of the headline are of; empty where it has none."""
    if not any("±" in text for text in texts):
        return ""
    seeds = f"{rows['done'].max()} seeds"
    if rows["loss_delta_pm"].isna().all():
        return f" (± over {seeds})"
    return " (± over the evaluation's items" + (
        f", then over {seeds})" if any(t.count("±") > 1 for t in texts) else ")"
    )


def _comparison(frame: pd.DataFrame) -> str:
    rows, baseline = _rows(frame), baseline_of(frame)
    rows["name"] = [f"RAT+ ({run})" if recurrent else run for run, recurrent in zip(rows["run"], rows["recurrence"])]
    plain = rows[rows["kind"].eq("dilated") & rows["loss_delta"].abs().lt(float("inf"))]
    if plain.empty:
        return f"No model has finished both its {baseline} and a dilated cell yet."
    recurrent = plain[plain["recurrence"]]
    dilation = (plain if recurrent.empty else recurrent)["dilation"].max()
    # RAT+ first: it is what the reader asks about.
    at = plain[plain["dilation"].eq(dilation)].sort_values("recurrence", ascending=False, kind="stable")
    there = set(at["name"])
    at, others = first_runs(at, MOST_NAMED)
    # What is known to a thousandth is said to a thousandth.
    digits = 3 if at["loss_delta_pm"].notna().any() else 2
    sizes = delta_texts(at.assign(loss_delta=at["loss_delta"].abs()), "loss", 1, digits)
    changes = [
        f"{name} {'loses' if round(delta, digits) >= 0 else 'gains'} {size}"
        for name, delta, size in zip(at["name"], at["loss_delta"], sizes)
    ]
    changes[0] += " nats against its dense self" if baseline == "dense" else f" nats against its own {baseline}"
    text = f"At D={dilation} {'; '.join(changes)}{_errors_of(at, sizes)}."
    recalls = [f"{name} {value:.0%}" for name, value in at[["name", "recall_accuracy"]].values if not pd.isna(value)]
    if recalls:
        text += f" Recall accuracy there: {', '.join(recalls)}."
    first = at.iloc[0]
    text += f" The pattern keeps {first['kv_entries']:g} of {first['context']} cache entries a head"
    text += f" and {first['attention_flops_ratio']:.1%} of the attention FLOPs."
    if others:
        text += f" These are {others}."
    silent = [name for name in dict.fromkeys(rows["name"]) if name not in there]
    if silent:
        rest = f" and {len(silent) - MOST_NAMED} more" if len(silent) > MOST_NAMED else ""
        text += f" Not to compare at D={dilation}: {', '.join(silent[:MOST_NAMED])}{rest}."
    return text
