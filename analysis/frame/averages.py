"""Averages over the tasks of a suite: which results enter them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ratplus.analysis.frame.tasks import ResultColumn, by_suite, niah_groups


def suites_of(frame: pd.DataFrame) -> dict[str, list[ResultColumn]]:
    """{suite: tasks} that a finished cell has a value of; loss and perplexity alone are no suite of tasks."""
    known = frame[list(frame.attrs["metrics"])].notna().any()  # all at once: there may be thousands
    measured = [str(name) for name in known.index[known]]
    found = by_suite(measured)
    found.pop("positions", None)  # the module of that name shows them
    if all(task.column in ("loss", "perplexity", "next_token_accuracy") for task in found.get("language", ())):
        found.pop("language", None)
    return found


def averaged(tasks: list[ResultColumn]) -> list[ResultColumn]:
    """The results that enter a suite's average: its total where it records one, else one measure of each whole task."""
    chosen = [task for task in tasks if task.whole] or one_measure(tasks)
    return [task for task in chosen if not task.part] or chosen


def one_measure(tasks: list[ResultColumn]) -> list[ResultColumn]:
    """Each task once, by its first measure."""
    best: dict[str, ResultColumn] = {}
    for task in tasks:
        if task.task not in best or task.rank < best[task.task].rank:
            best[task.task] = task
    return list(best.values())


def has_average(tasks: list[ResultColumn]) -> bool:
    """Whether the mean of these results means something: less is better in all or none, and they belong together."""
    return len({task.lower for task in tasks}) == 1 and tasks[0].suite != "other"


def mean_of(cells: pd.DataFrame, tasks: list[ResultColumn]) -> tuple[pd.Series, pd.Series]:
    """Mean over tasks and its standard error, tasks taken as independent; null where any is."""
    names = [task.column for task in tasks]
    errors = cells[[f"{name}_stderr" for name in names]]
    return cells[names].mean(axis=1, skipna=False), np.sqrt((errors**2).sum(axis=1, skipna=False)) / len(names)


def averages_of(frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """{`average:<suite>` or `group:<name of the paper's needle group>`: columns whose mean it is}."""
    found: dict[str, tuple[str, ...]] = {}
    for suite, tasks in suites_of(frame).items():
        chosen = averaged(tasks)
        if suite == "niah":
            for name, members in niah_groups(chosen).items():
                found[f"group:{name}"] = tuple(task.column for task in members)
        if has_average(chosen):
            found[f"average:{suite}"] = tuple(task.column for task in chosen)
    return found
