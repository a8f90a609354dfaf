"""What a metric's name says: which suite and task it belongs to, what it measures, and whether less is better.

Names come from records, also those of tasks that users define, so nothing here is a closed list. A name that no rule
knows becomes a task of the suite `other`, of which more is better, and is shown as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

# The suites and their titles, in the order in which a reader should meet them.
SUITES = {
    "language": "Language modelling",
    "cloze": "Cloze",
    "recall": "Recall",
    "positions": "By position",
    "commonsense": "Commonsense",
    "longbench": "LongBench",
    "niah": "Needle in a haystack (NIAH)",
    "other": "Other tasks",
}
_COMMONSENSE = ("piqa", "arc_easy", "arc_challenge", "winogrande", "lambada_openai", "hellaswag")
_LANGUAGE = ("wikitext", "paloma", "next_token")
# A task may have several measures: the one that stands first here enters the average of its suite.
_MEASURES = (
    "accuracy", "acc", "score", "exact_match", "em", "f1", "acc_norm", "rouge", "substring", "overlap", "contains",
    "loss", "perplexity", "ppl", "word_perplexity", "byte_perplexity", "bits_per_byte",
)  # fmt: skip
# These measures are shown in percent where all values lie within 0 and 1.
_SHARES = ("accuracy", "acc", "acc_norm", "exact_match", "em", "f1", "score", "substring", "overlap", "contains")
_LOWER = ("loss", "perplexity", "ppl", "bits_per_byte", "nll", "error")
_COSTS = re.compile(
    r"(^|_)(flops|bytes|ms|seconds|max_batch|parameters|count|tokens_per_second)($|_)|"
    # What a pattern that selects by query was seen to read, and how often it read the answer.
    r"^selection_(density|hit_rate)$"
)
_BY_POSITION = re.compile(r"(loss|recall)_(at|over)_(\d+)_(\d+)")
_NIAH_GROUPS = {"single": r"single", "multi-key": r"multi_?key", "multi-query/value": r"multi_?(query|value)"}


@dataclass(frozen=True)
class ResultColumn:
    """One result column of a loaded frame.

    Attributes:
        column: its name in the frame.
        suite: a key of SUITES.
        task: name of the task, for the head of a table's column.
        measure: what was measured, such as `accuracy`; empty if the name does not say.
        lower: whether less is better.
        whole: whether it is the suite's own total, such as `recall_accuracy` beside `recall_accuracy_1_32`.
        part: whether only some of the task's items enter it, such as `recall_accuracy_1_32` (distances 1 to 31).
    """

    column: str
    suite: str
    task: str
    measure: str
    lower: bool
    whole: bool = False
    part: bool = False

    @property
    def rank(self) -> int:
        """Place of the measure among those of one task; the measure with the least rank enters an average."""
        return _MEASURES.index(self.measure) if self.measure in _MEASURES else len(_MEASURES)


def by_suite(names: Iterable[str]) -> dict[str, list[ResultColumn]]:
    """{suite: its result columns}, suites in the order of SUITES; columns that count costs are left out."""
    found: dict[str, list[ResultColumn]] = {suite: [] for suite in SUITES}
    for name in names:
        if not is_cost(name):
            task = result_column(name)
            found[task.suite].append(task)
    return {suite: tasks for suite, tasks in found.items() if tasks}


def is_cost(name: str) -> bool:
    """Whether a metric counts what a pattern costs rather than how well it does."""
    return _COSTS.search(name) is not None


# Counts and times of which more is better; of all others less is.
_MORE = ("tokens_per_second", "max_batch", "hit_rate")
# What a pattern costs, counted from its definition: columns that every cell has, finished or not.
COUNTED = (
    "kv_entries", "kv_read", "kv_bytes", "kv_ratio", "attention_flops", "attention_flops_ratio", "parameters",
)  # fmt: skip


def less_is_better(name: str) -> bool | None:
    """Whether less of a result, count of costs or measured time (`timing:...`) is better; None: no rule knows it."""
    if name.startswith("timing:") or name in COUNTED or is_cost(name):
        return not name.endswith(_MORE)
    column = result_column(name)
    return column.lower or (None if column.suite == "other" and column.rank == len(_MEASURES) else False)


def is_share(measure: str, values: Iterable[float]) -> bool:
    """Whether values of this measure are shown in percent: an accuracy or score, and all within 0 and 1."""
    return measure in _SHARES and all(0 <= value <= 1 for value in values if math.isfinite(value))


def result_column(name: str) -> ResultColumn:
    """What a column's name says: `loss`, `recall_accuracy_1_32`, `piqa/acc`, `ruler/niah_single_1/score`, ..."""
    if by_position := _BY_POSITION.fullmatch(name):
        measure, low, high = by_position[1], by_position[3], int(by_position[4]) - 1
        title = f"{measure} {by_position[2]} {low}–{high}"
        return ResultColumn(
            name, "positions", title, "loss" if measure == "loss" else "accuracy", measure == "loss", part=True
        )
    # lm-eval names the filter of answers behind a comma.
    name_, _, chosen = name.removeprefix("metric:").partition(",")
    parts = re.split(r"[/:]", name_)
    if len(parts) > 1:
        measure, bins = parts.pop(), ""
    else:
        parts[-1], measure, bins = _measure_at_end(parts[-1])
    if chosen not in ("", "none"):
        bins = f"{bins} {chosen}".strip()
    task = parts[-1]
    suite = _suite(task, parts[:-1])
    bare = task.removeprefix(f"{suite}_") if suite in ("longbench", "niah") else task
    title = " ".join(part for part in (bare or measure, bins) if part)
    lower = any(word in f"{task}_{measure}" for word in _LOWER)
    return ResultColumn(name, suite, title, measure, lower, whole=task == suite and not bins, part="–" in bins)


def recorded(column: str) -> str:
    """What the record calls a metric of the frame, which has `metric:` before a name that is taken."""
    while column.startswith("metric:"):
        column = column.removeprefix("metric:")
    return column


def niah_groups(tasks: list[ResultColumn]) -> dict[str, list[ResultColumn]]:
    """The paper's three groups of needle tasks, as far as the given columns have them."""
    groups = {name: [t for t in tasks if re.search(rule, t.column)] for name, rule in _NIAH_GROUPS.items()}
    return {name: members for name, members in groups.items() if members}


def _measure_at_end(name: str) -> tuple[str, str, str]:
    """(task, measure, bins) of a name without separators: `recall_accuracy_1_32` is recall, accuracy, `1–31`."""
    for measure in sorted(_MEASURES, key=len, reverse=True):
        if name == measure:
            return name, measure, ""
        found = re.fullmatch(rf"(.+?)_{measure}(?:_(\d+)_(\d+))?", name)
        if found:
            bins = f"{found[2]}–{int(found[3]) - 1}" if found[2] else ""
            return found[1], measure, bins
    return name, "", ""


def _suite(task: str, before: list[str]) -> str:
    words = [task, *before]
    for suite in SUITES:
        if any(word == suite or word.startswith(f"{suite}_") for word in words):
            return suite
    if any(word.startswith("ruler") for word in words):
        return "niah"
    if task in _COMMONSENSE:
        return "commonsense"
    if task in _LOWER or task.startswith(_LANGUAGE):
        return "language"
    return "other"
