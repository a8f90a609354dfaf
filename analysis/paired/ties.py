"""How tables show differences: their errors, which patterns tie with the best, and the lines below that say how."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from ratplus.analysis.draw.tables import number
from ratplus.analysis.paired.bootstrap import RESAMPLES

TIED, TIED_SEEDS = "=", "~"


@dataclass(frozen=True)
class Stored:
    """Which results of a table have samples.

    Attributes:
        sampled: those with items that make up their values.
        odd: those whose items do not: their mean is another value.
        few: {result: items that differ} of those with a pattern that ties for want of items.
    """

    sampled: Collection[str]
    odd: Collection[str]
    few: Mapping[str, int] = field(default_factory=dict)


def delta_texts(rows: pd.DataFrame, name: str, scale: float, digits: int) -> list[str]:
    """`<name>_delta` of each row as text: ± over items and, where rows have several seeds, a second ± over these."""
    values, items = rows[f"{name}_delta"] * scale, rows[f"{name}_delta_pm"] * scale
    texts = [number(*row) for row in zip(values, [digits] * len(rows), items)]
    if not _over_seeds(rows, name):
        return texts
    # Of two kinds of error the first is that of the items, so its place is kept where it is not known.
    first = " ± —" if items.notna().any() else ""
    return [
        text if pd.isna(seeds) or seeds == 0 else f"{text}{'' if '±' in text else first} ± {number(seeds, digits)}"
        for text, seeds in zip(texts, rows[f"{name}_delta_stderr"] * scale)
    ]


def mark_ties(rows: pd.DataFrame, name: str, texts: Iterable[str], rounded: Iterable[str] | None = None) -> list[str]:
    """Texts of a result: the best sparse pattern of each model in bold, `=` behind those that tie with it.

    Args:
        rows: of `over_seeds`, with the columns of `with_row_errors`.
        rounded: values without errors; sparse patterns that round to the same as the best are bold too.
    """
    plain = list(rounded) if rounded is not None else [None] * len(rows)
    columns = [rows[f"{name}_{key}"] for key in ("best", "tied", "tied_seeds")]
    best_of = {run: text for run, text, best in zip(rows["run"], plain, columns[0]) if best}
    marked = []
    for run, own, dense, text, best, tied, seeds in zip(rows["run"], plain, rows["kind"].eq("dense"), texts, *columns):
        if best or (own is not None and not dense and best_of.get(run) == own):
            marked.append(f"**{text}**")
        else:
            marked.append(text + (f" {TIED}" if tied else f" {TIED_SEEDS}" if seeds else ""))
    return marked


def difference_notes(
    rows: pd.DataFrame, deltas: Mapping[str, str], marked: Mapping[str, str], stored: Stored, ties: bool = True
) -> list[str]:
    """The lines under a table that say what the errors of its differences are of, and what its marks mean.

    Args:
        rows: what the table is made of, with the columns of `with_row_errors`.
        deltas: {result whose difference the table shows: what a reader calls the result}.
        marked: {result whose best and ties it marks: likewise}.
        stored: of `stored_results`.
        ties: whether the table marks ties where samples tell of them.
    """
    lines, sampled = [], stored.sampled
    seeds = int(rows["done"].max()) if len(rows) else 0
    several = any(_over_seeds(rows, name) for name in deltas)
    if any(name in sampled for name in deltas):
        second = f"; the second ±: over {seeds} training seeds (standard error)" if several else ""
        lines.append(f"± of Δ: over the evaluation's items (paired bootstrap, {RESAMPLES} resamples){second}.")
    elif several:
        lines.append(f"± of Δ: over {seeds} training seeds (standard error).")
    if any(name in sampled and rows[f"{name}_best"].any() for name in marked):
        lines.append(
            f"{TIED}: cannot be told from the best sparse pattern of its model (bold) over the items: p ≥ 0.05 after "
            "Holm's adjustment over all patterns of a result."
        )
    few = [stored.few[name] for name in marked if name in stored.few]
    if few:
        lines.append(
            f"{TIED} marks large differences too: with no more than {max(few)} items that differ, none is certain "
            "after that adjustment, whatever its size. Evaluate on more items."
        )
    of_seeds = [name for name in marked if rows[f"{name}_tied_seeds"].any()]
    if of_seeds:
        lines.append(_seeds_note(seeds, of_items=[name in sampled for name in of_seeds]))
    shown = {**deltas, **marked}
    no_ties = " and no ties over them" if ties else ""
    odd = list(dict.fromkeys(title for name, title in shown.items() if name in stored.odd))
    if odd:
        lines.append(f"No ± over items{no_ties} of {', '.join(odd)}: the samples' mean is not the recorded result.")
    without = list(dict.fromkeys(t for name, t in shown.items() if name not in sampled and name not in stored.odd))
    if without and len(without) == len(set(shown.values())):
        lines.append(f"No ± over items{no_ties}: the evaluations stored no samples (samples.jsonl).")
    elif without:
        lines.append(f"No samples, so no ± over items{no_ties}: {', '.join(without)}.")
    return lines


def _seeds_note(seeds: int, of_items: list[bool]) -> str:
    """What TIED_SEEDS means, of results that have samples (`of_items`) and of others, of which only seeds can tell."""
    if all(of_items):
        return f"{TIED_SEEDS}: can be told over the items, but not over the {seeds} seeds (Student's t, Holm)."
    items = "; over the items it can, where they are stored" if any(of_items) else ""
    return (
        f"{TIED_SEEDS}: cannot be told from the best sparse pattern of its model (bold) over the {seeds} seeds "
        f"(Student's t, Holm){items}."
    )


def _over_seeds(rows: pd.DataFrame, name: str) -> bool:
    """Whether some row has an error of its difference over seeds."""
    return f"{name}_delta_stderr" in rows and bool(rows[f"{name}_delta_stderr"].notna().any())
