"""Which objectives a cell's evaluation can find, of configs alone, and which way is better."""

from dataclasses import replace

import pytest

from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner.objective import check_asked, directions, names_of

ALL = ("loss", "perplexity", "next_token_accuracy", "recall_accuracy", "cloze_accuracy", "kv_ratio", "timing:seconds")


def refused(words: list[str], *names: str) -> set[str]:
    config, found = compose_one(words).config, set()
    for name in names:
        try:
            check_asked(replace(config, objective=name))
        except UsageError as error:
            if f"objective: got {name!r}, which this cell has not; " in str(error):
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("words", "lacks"),
    [
        ([], set()), (["eval.text_rows=0"], {"loss", "perplexity", "next_token_accuracy"}),
        (["eval.recall_rows=0"], {"recall_accuracy"}), (["data.recall.fraction=0"], {"recall_accuracy"}),
        (["eval.cloze.items=0"], {"cloze_accuracy"}),
    ],
)  # fmt: skip
def test_what_is_not_asked_is_no_objective(words, lacks):
    assert refused(words, *ALL, "recall_accuracy_1_32", "selection_density", "metric:seed", "piqa/acc") == lacks | {
        "piqa/acc"
    }


def test_names_of_other_suites_are_known_once_they_have_run():
    words = ["eval.tasks=[piqa]", "eval.recall_rows=0"]
    assert refused(words, "piqa/acc", "loss", "recall_accuracy") == {"recall_accuracy"}


def test_names_and_directions():
    assert (names_of(None), names_of("loss"), names_of(["a", "b"])) == ([], ["loss"], ["a", "b"])
    assert directions(["loss", "recall_accuracy", "kv_ratio"]) == ["minimize", "maximize", "minimize"]
    with pytest.raises(UsageError, match=r"add hydra.sweeper.direction=minimize or maximize"):
        directions(["odd"])
    with pytest.raises(UsageError, match=r"add hydra.sweeper.direction=\[minimize,...\] or maximize"):
        directions(["loss", "odd"])
