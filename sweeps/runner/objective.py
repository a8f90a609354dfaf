"""`objective`: what a cell of `ratplus-hydra` returns to Hydra's sweeper, and whether less of it is better."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.records.manifest import Entry
from ratplus.sweeps.define.mistakes import UsageError

# What the suites of `eval=default` always find; all but recall by distance, which depends on the context.
_TEXT = ("loss", "perplexity", "next_token_accuracy")
_OTHERS = re.compile(r"timing:.+|recall_accuracy_\d+_\d+|selection_\w+|metric:.+")


def names_of(objective: str | list[str] | None) -> list[str]:
    """The names of an objective; none of null."""
    return [] if objective is None else [objective] if isinstance(objective, str) else list(objective)


def directions(names: list[str]) -> list[str]:
    """`minimize` or `maximize` for each name.

    Raises:
        UsageError: nothing is known of a name.
    """
    from ratplus.analysis.frame.tasks import less_is_better

    found = []
    for name in names:
        lower = less_is_better(name)
        if lower is None:
            raise UsageError(
                f"objective: whether less or more of {name!r} is better is not known; "
                f"add hydra.sweeper.direction={'minimize' if len(names) == 1 else '[minimize,...]'} or maximize"
            )
        found.append("minimize" if lower else "maximize")
    return found


def check_asked(config: Config) -> None:
    """Refuse an objective that the cell's evaluation cannot find, before anything is trained.

    Only where that is certain: names of other suites than those of `eval=default` are known once they have run.

    Raises:
        UsageError: names the objective and what there will be.
    """
    from ratplus.analysis.frame.tasks import COUNTED

    asked = config.eval
    known = [*_TEXT] if asked.text_rows else []
    known += ["recall_accuracy"] if asked.recall_rows and config.data.recall.fraction > 0 else []
    known += ["cloze_accuracy"] if asked.cloze.items else []
    more = asked.niah.tasks or asked.tasks or asked.positions.width or asked.efficiency.enabled
    for name in names_of(config.objective):
        possible = name in known or name in COUNTED or _OTHERS.fullmatch(name) is not None
        always = name in (*_TEXT, "recall_accuracy", "cloze_accuracy")
        if not possible and (always or not more):
            raise UsageError(_unknown(name, [*known, *COUNTED]))


def values_of(names: list[str], folder: Path, entry: Entry) -> list[float]:
    """The values of an objective, from the records of a cell that is done; columns as of `ratplus ls`.

    Raises:
        UsageError: the cell has no such result; the line has those that it has.
        ValueError: a value is no number (NaN), so that nothing can be decided by it.
    """
    from ratplus.analysis.frame.load import read_sweep
    from ratplus.analysis.frame.tasks import COUNTED

    frame = read_sweep(folder, only={entry["id"]}).frame
    row = frame.iloc[0]
    times = [str(column) for column in frame.columns if str(column).startswith("timing:")]
    metrics = [name for name in frame.attrs["metrics"] if frame[f"{name}_stderr"].notna().any() or _known(row[name])]
    found = []
    for name in names:
        if name not in (*metrics, *COUNTED, *times):
            raise UsageError(_unknown(name, [*metrics, *COUNTED, *times]))
        if not _known(row[name]):
            raise ValueError(f"objective: {name} of {entry['model']} {entry['label']} is no number ({row[name]})")
        found.append(float(row[name]))
    return found


def _known(value) -> bool:
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    near = f"did you mean {close[0]}? " if close else ""
    return f"objective: got {name!r}, which this cell has not; {near}allowed: {', '.join(known)}"
