"""What every measure's name says, in each way that a task may be written; and which columns count costs."""

import pytest

from ratplus.analysis.frame.tasks import SUITES, by_suite, is_cost, is_share, less_is_better, result_column

# Measure -> (whether less is better, whether it is shown in percent), in the order of what enters an average.
MEASURES = {
    "accuracy": (False, True), "acc": (False, True), "score": (False, True), "exact_match": (False, True),
    "em": (False, True), "f1": (False, True), "acc_norm": (False, True), "rouge": (False, False),
    "substring": (False, True), "overlap": (False, True), "contains": (False, True), "loss": (True, False),
    "perplexity": (True, False), "ppl": (True, False), "word_perplexity": (True, False),
    "byte_perplexity": (True, False), "bits_per_byte": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
def test_measures(measure):
    lower, share = MEASURES[measure]
    for name in (f"mine/{measure}", f"group/mine/{measure}", f"mine_{measure}", f"mine/{measure},none"):
        found = result_column(name)
        assert (found.column, found.suite, found.task) == (name, "other", "mine")
        assert (found.measure, found.lower, found.rank) == (measure, lower, list(MEASURES).index(measure))
        assert not found.part
        assert not found.whole
    part = result_column(f"mine_{measure}_16_32")
    assert (part.task, part.measure, part.part) == ("mine 16–31", measure, True)
    assert is_share(measure, [0.0, 1.0, float("nan")]) == share
    for beyond in (1.001, -0.001):
        assert not is_share(measure, [0.5, beyond])
    assert less_is_better(f"mine/{measure}") is lower


@pytest.mark.parametrize(
    ("name", "suite", "task", "whole", "lower"),
    [
        ("loss", "language", "loss", False, True), ("perplexity", "language", "perplexity", False, True),
        ("next_token_accuracy", "language", "next_token", False, False),
        ("wikitext/word_perplexity", "language", "wikitext", False, True),
        ("paloma_c4/ppl", "language", "paloma_c4", False, True),
        ("recall_accuracy", "recall", "recall", True, False), ("cloze_accuracy", "cloze", "cloze", True, False),
        ("piqa/acc", "commonsense", "piqa", False, False), ("arc_easy/acc", "commonsense", "arc_easy", False, False),
        ("arc_challenge/acc_norm", "commonsense", "arc_challenge", False, False),
        ("winogrande/acc", "commonsense", "winogrande", False, False),
        ("hellaswag/acc", "commonsense", "hellaswag", False, False),
        ("lambada_openai/perplexity", "commonsense", "lambada_openai", False, True),
        ("niah_single_1_substring", "niah", "single_1", False, False),
        ("ruler/vt/score", "niah", "vt", False, False), ("longbench_qasper/f1", "longbench", "qasper", False, False),
        ("loss_at_0_128", "positions", "loss at 0–127", False, True),
        ("recall_at_128_256", "positions", "recall at 128–255", False, False),
        ("recall_over_64_128", "positions", "recall over 64–127", False, False),
        ("gsm8k/exact_match,strict", "other", "gsm8k strict", False, False),
        ("metric:score/acc", "other", "score", False, False), ("my_error_rate", "other", "my_error_rate", False, True),
        ("nll", "language", "nll", False, True),
    ],
)  # fmt: skip
def test_suites_and_titles(name, suite, task, whole, lower):
    found = result_column(name)
    assert (found.suite, found.task, found.whole, found.lower) == (suite, task, whole, lower)


COSTS = (
    "flops", "attention_flops", "kv_bytes", "decode_ms_per_token", "train_seconds", "max_batch", "parameters", "count",
    "tokens_per_second", "selection_density", "selection_hit_rate",
)  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_no_results(name):
    assert is_cost(name)
    assert by_suite([name, "loss"]).keys() == {"language"}
    more = name in ("max_batch", "tokens_per_second", "selection_hit_rate")
    assert less_is_better(name) is not more
    assert less_is_better(f"timing:{name}") is not more


@pytest.mark.parametrize("name", ["counts/acc", "milliseconds_of_fame/acc", "bytestream/acc", "my_selection_density"])
def test_names_that_only_look_like_costs(name):
    assert not is_cost(name)


def test_suites_stand_in_their_order():
    names = [
        "zz/acc", "niah_single_1_substring", "piqa/acc", "recall_accuracy", "cloze_accuracy", "loss", "loss_at_0_8",
        "longbench_a/f1",
    ]  # fmt: skip
    assert list(by_suite(names)) == list(SUITES)
    assert less_is_better("zz") is None, "no rule knows it"
    assert less_is_better("zz/f1") is False
    assert less_is_better("niah_single_1") is False, "of a needle more is better, whatever its measure is called"
    assert less_is_better("kv_ratio") is True
