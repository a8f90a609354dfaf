"""Which results enter the average of a suite, and its error."""

import math

import pandas as pd
import pytest

from ratplus.analysis.frame.averages import averaged, averages_of, has_average, mean_of, one_measure, suites_of
from ratplus.analysis.frame.tasks import result_column


def columns(*names):
    return [result_column(name) for name in names]


def names(tasks):
    return [task.column for task in tasks]


def test_each_task_counts_once_by_its_first_measure():
    tasks = columns("piqa/acc_norm", "piqa/acc", "hellaswag/acc,none", "hellaswag/acc", "mine/odd", "mine/f1")
    assert names(one_measure(tasks)) == ["piqa/acc", "hellaswag/acc,none", "mine/f1"], "of equal ones the first"


def test_a_total_or_whole_tasks_and_parts_only_where_nothing_else_is():
    total = columns("recall_accuracy_1_32", "recall_accuracy", "recall_accuracy_32_64")
    assert names(averaged(total)) == ["recall_accuracy"]
    assert names(averaged([total[0], total[2]])) == ["recall_accuracy_1_32", "recall_accuracy_32_64"]
    needles = columns("niah_single_1_substring", "niah_single_1_substring_0_20", "niah_vt_substring")
    assert names(averaged(needles)) == ["niah_single_1_substring", "niah_vt_substring"]


def test_a_mean_of_what_belongs_together():
    assert has_average(columns("piqa/acc", "hellaswag/acc"))
    assert not has_average(columns("piqa/acc", "lambada_openai/perplexity")), "of one more is better, of the other less"
    assert not has_average(columns("mine/acc", "yours/acc")), "tasks of a user are no suite"


def test_the_mean_and_its_error_are_null_where_a_task_is():
    cells = pd.DataFrame({
        "a/acc": [0.5, 0.5, 0.5], "a/acc_stderr": [0.03, 0.03, math.nan], "b/acc": [0.7, math.nan, 0.7],
        "b/acc_stderr": [0.04, math.nan, 0.04],
    })  # fmt: skip
    mean, error = mean_of(cells, columns("a/acc", "b/acc"))
    assert list(mean) == pytest.approx([0.6, math.nan, 0.6], nan_ok=True)
    assert list(error) == pytest.approx([0.025, math.nan, math.nan], nan_ok=True)


def test_averages_of_a_frame_and_the_papers_groups_of_needles():
    known = ["loss", "niah_single_1_substring", "niah_multikey_1_substring", "niah_multivalue_substring", "piqa/acc"]
    frame = pd.DataFrame({name: [0.5, math.nan] for name in known} | {"hellaswag/acc": math.nan, "recall_at_0_8": 0.5})
    frame.attrs["metrics"] = list(frame)
    assert list(suites_of(frame)) == ["commonsense", "niah"], "loss alone is no suite, and positions have a table"
    needles = tuple(known[1:4])
    assert averages_of(frame) == {
        "average:commonsense": ("piqa/acc",), "group:single": needles[:1], "group:multi-key": needles[1:2],
        "group:multi-query/value": needles[2:], "average:niah": needles,
    }  # fmt: skip
    wiki = pd.DataFrame({"loss": [1.0], "wikitext/perplexity": [9.0]})
    wiki.attrs["metrics"] = list(wiki)
    assert names(suites_of(wiki)["language"]) == ["loss", "wikitext/perplexity"]
