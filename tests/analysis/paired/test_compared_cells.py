"""`compare_cells` on a few cells whose numbers are chosen: every pair, every result, and what is left out."""

import json
import math
from itertools import combinations

import pandas as pd
import pytest

from ratplus.analysis.paired.cells import _named, compare_cells
from ratplus.pattern import Pattern
from ratplus.records.record import write_record
from ratplus.records.samples import write_samples


@pytest.fixture
def folder(sweep):
    """D1, D4 and D16 of two seeds; D64 of a seed that failed. Results of all kinds; the decoding time is a cost."""
    for dilation, loss, recall in ((1, 2.0, 0.9), (4, 2.25, 0.5), (16, 3.0, 0.1)):
        for seed in (0, 1):
            metrics = {
                **sweep.results(loss + seed * dilation / 8, recall), "cloze_accuracy": (recall, 0.01),
                "kv_bytes_held": (5.0, None),
            }  # fmt: skip
            sweep.add("ratplus_tiny", Pattern(dilation), metrics, seed=seed, pattern_name=f"group{dilation > 1}")
    sweep.add("ratplus_tiny", Pattern(64), status="failed")
    return sweep.write()


def test_every_result_but_costs_and_what_follows_from_the_loss(folder):
    found = compare_cells(folder, ["D1", "D4", "D16"])
    assert [(row["first"], row["second"]) for row in found.rows if row["metric"] == "loss"] == [
        ("D1", "D4"), ("D1", "D16"), ("D4", "D16"),
    ]  # fmt: skip
    metrics = {row["metric"] for row in found.rows}
    assert metrics == {"loss", "next_token_accuracy", "recall_accuracy", "recall_accuracy_1_64", "cloze_accuracy"}
    assert found.notes == ["perplexity: not shown, it follows from the loss"]
    row = next(row for row in found.rows if row["metric"] == "loss")
    # Seeds 0 and 1: 2 → 2.25 and 2.125 → 2.75.
    assert (row["a"], row["b"], row["difference"], row["seeds"]) == (2.0625, 2.5, 0.4375, 2)
    assert row["seeds_stderr"] == pytest.approx(0.1875 * math.sqrt(2) / math.sqrt(2))
    assert math.isnan(row["p_seeds"]), "of two seeds nothing is said"
    assert (row["unit"], row["method"], row["items"], row["run"]) == ("", "standard errors", 0, "ratplus_tiny")
    assert row["certain"]
    share = next(row for row in found.rows if row["metric"] == "recall_accuracy")
    assert (share["unit"], share["difference"]) == ("%", pytest.approx(-0.4))


def test_cells_are_named_in_three_ways(folder):
    cells = {cell["label"]: cell["id"] for cell in _cells(folder) if cell["seed"] == 0}
    rows = compare_cells(folder, [cells["D1"], cells["D16"][:8]]).rows
    assert {row["seeds"] for row in rows} == {1}
    assert next(row["difference"] for row in rows if row["metric"] == "loss") == 1.0
    by_group = compare_cells(folder, ["groupFalse", "D4"], where="seed == 1").rows
    assert next(row["difference"] for row in by_group if row["metric"] == "loss") == 0.625
    assert {row["first"] for row in by_group} == {"groupFalse"}


def _cells(folder):

    return json.loads((folder / "sweep.json").read_text())["cells"]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["D1"], "compare: got D1; name two patterns or cells, or more, each once"),
        (["D1", "D1"], "compare: got D1 D1; name two"), (["D1", "D4", "D1"], "each once"),
        (["D1", "groupTrue"], "compare: groupTrue are several patterns of this sweep (D4, D16); write a label"),
        (["D1", "D46"], "compare: the sweep has no pattern or cell 'D46'; did you mean"),
        (["D1", "D64"], "compare: no two of D1, D64 are finished in the same model and seed of"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(folder, names, line):
    with pytest.raises(ValueError) as caught:
        compare_cells(folder, names)
    assert line in str(caught.value)


def test_what_is_not_compared_costs_no_other_result(sweep):
    """A cost, a result that is no number and a task of other prompts, each before results that are compared."""
    for dilation, broken, recall in ((1, 0.5, 0.9), (4, math.nan, 0.5)):
        metrics = {"decode_kv_bytes": (5.0, None), "broken_acc": (broken, 0.1), "recall_accuracy": (recall, 0.01)}
        cell = sweep.add(
            "ratplus_tiny", Pattern(dilation), {**metrics, "alien_acc": (recall, 0.1), "zebra_acc": (recall, 0.1)}
        )
        own = sweep.path / "evaluate" / cell["id"]
        record = json.loads((own / "record.json").read_text())
        body = {key: record[key] for key in ("stage", "config", "parent", "status", "metrics", "timing")}
        write_record(own, **body, provenance={"tasks": {"alien": {"prompts_sha256": str(dilation)}}})
    found = compare_cells(sweep.write(), ["D1", "D4"])
    assert [row["metric"] for row in found.rows] == ["recall_accuracy", "zebra_acc"]
    assert found.notes == ["alien_acc: not compared, D1 and D4 were asked different prompts or data"]


def test_p_is_adjusted_among_the_pairs_of_one_result(sweep):
    """Holm's, by hand: of three raw p in their order, three, two and one times as large, and never falling."""
    for dilation, loss, recall in ((1, 2.0, 0.9), (4, 2.25, 0.82), (16, 2.45, 0.6)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.1), "recall_accuracy": (recall, 0.05)})
    folder, names = sweep.write(), ["D1", "D4", "D16"]
    together = compare_cells(folder, names).rows
    alone = [row for pair in combinations(names, 2) for row in compare_cells(folder, list(pair)).rows]
    for metric in {row["metric"] for row in together}:
        raw = {(row["first"], row["second"]): row["p"] for row in alone if row["metric"] == metric}
        expected, least = {}, 0.0
        for times, pair in zip((3, 2, 1), sorted(raw, key=raw.__getitem__), strict=True):
            expected[pair] = least = max(least, min(1.0, times * raw[pair]))
        found = {(row["first"], row["second"]): row["p"] for row in together if row["metric"] == metric}
        assert found == pytest.approx(expected)
        assert 1e-6 < min(raw.values()) < max(found.values()) < 1


@pytest.mark.parametrize(
    ("changes", "error", "items", "seeds", "certain"),
    [
        ((0.5, -0.3, 0.4), 0.01, True, False, False),
        ((0.10, 0.11, 0.09), 0.5, False, True, False),
        ((0.10, 0.11, 0.09), 0.01, True, True, True),
        ((0.10,), 0.01, True, None, True),  # of one seed nothing more is known
    ],
)
def test_certain_is_what_items_and_seeds_tell(sweep, changes, error, items, seeds, certain):
    for seed, change in enumerate(changes):
        for dilation, loss in ((1, 2.0), (4, 2.0 + change)):
            sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, error)}, seed=seed)
    (row,) = compare_cells(sweep.write(), ["D1", "D4"]).rows
    assert (row["p"] < 0.05) is items
    assert math.isnan(row["p_seeds"]) if seeds is None else (row["p_seeds"] < 0.05) is seeds
    assert row["certain"] is certain


def test_perplexity_is_shown_where_no_loss_is(sweep):
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), {"perplexity": (5.0 + dilation, 0.1)})
    found = compare_cells(sweep.write(), ["D1", "D4"])
    assert ([row["metric"] for row in found.rows], found.notes) == (["perplexity"], [])


@pytest.mark.parametrize("stored", [1, 4])
def test_samples_of_one_of_two_are_no_pairs(sweep, stored):
    for dilation in (1, 4):
        cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (1.5, 0.1)})
        if dilation == stored:
            items = [{"task": "loss", "id": i, "loss": 1.0 + i} for i in range(2)]
            write_samples(sweep.path / "evaluate" / cell["id"], items)
    (row,) = compare_cells(sweep.write(), ["D1", "D4"]).rows
    assert row["method"] == "standard errors"


def test_the_beginning_of_an_id_is_that_of_one_cell():
    frame = pd.DataFrame({"pattern": ["D1", "D4", "D16"], "pattern_name": "", "cell": ["abcd1", "abcd2", "abce3"]})
    assert list(_named("abce", frame)["pattern"]) == ["D16"]
    assert list(_named("abcd2", frame)["pattern"]) == ["D4"]
    with pytest.raises(ValueError, match="compare: abcd is how 2 ids of cells begin; write more of it"):
        _named("abcd", frame)
    for name in ("abc", "bce3", "abcd3"):
        with pytest.raises(ValueError, match=f"the sweep has no pattern or cell '{name}'"):
            _named(name, frame)
