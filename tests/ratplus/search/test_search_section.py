"""What the keys of `ratplus search` may be: the least of each is taken, and less is refused by its name."""

import pytest

from ratplus.config.check import check
from ratplus.config.search import SearchSection


@pytest.mark.parametrize(
    ("key", "least"),
    [
        ("length", 16), ("text_rows", 3), ("items", 3), ("digits", 1), ("weight", 0), ("remeasure", 0), ("swaps", 0),
        ("undecided", 1), ("batch", 1), ("seed", 0), ("threads", 1),
    ],
)  # fmt: skip
def test_the_least_of_a_key(key, least):
    assert getattr(SearchSection(model="m", **{key: least}), key) == least
    with pytest.raises(ValueError, match=f"^{key}: got {least - 1}; it must be ≥ {least}$"):
        SearchSection(model="m", **{key: least - 1})


@pytest.mark.parametrize(
    ("key", "fine", "wrong", "told"),
    [
        ("recall_rows", (0, 3), (1, 2, -1), "it must be 0, or ≥ 3"), ("random", (0, 3), (1, 2), "it must be 0, or ≥ 3"),
        ("seed", (2**31 - 1,), (2**31,), "it must be ≤ 2147483647"),
        ("out", (None, "a.yaml", "a.yml"), ("a.json", "yaml", ""), "it must end in .yaml"),
        ("over", ("layers", "heads", "layers,heads"), ("heads,layers", "x"), "allowed: layers; heads; layers,heads"),
        ("anchor", ("dense", "sparse", "both"), ("none",), "allowed: dense, sparse, both"),
        ("accelerator", ("auto", "cpu", "cuda"), ("gpu",), "allowed: auto, cpu, cuda"),
        ("template", ("ruler", "short", "letters"), ("long",), "allowed: ruler, short, letters"),
        ("budget", (["kv:0.5"],), ([],), "give one such as kv:0.25"),
    ],
)  # fmt: skip
def test_values_of_a_key(key, fine, wrong, told):
    for value in fine:
        assert getattr(SearchSection(model="m", **{key: value}), key) == value
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{key}: got .*; {told}"):
            SearchSection(model="m", **{key: value})


def test_names_of_tasks():
    for key in ("tasks", "test_tasks"):
        SearchSection(model="m", **{key: ["niah_single_1", "niah_multiquery"]})
        with pytest.raises(ValueError, match=f"^{key}: got 'niah_single_9'; allowed: niah_single_1"):
            SearchSection(model="m", **{key: ["niah_single_1", "niah_single_9"]})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_key_takes_what_is_not_finite(value):
    with pytest.raises(ValueError, match="x: got"):
        check(True, "x", value, "any")
    with pytest.raises(ValueError, match="^weight: got"):
        SearchSection(model="m", weight=value)
