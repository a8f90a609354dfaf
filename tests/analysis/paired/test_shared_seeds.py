"""Rows of several sweeps that have different seeds: compared on those that all have."""

import math

import pandas as pd
import pytest

from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.paired.best import choose
from ratplus.analysis.paired.differences import with_differences
from ratplus.analysis.paired.ranking import ranking
from ratplus.analysis.paired.several import seeds_note, shared_seeds
from ratplus.pattern import Pattern


@pytest.fixture
def folders(folder_of_sweep, tmp_path):
    """D4 in two seeds, and D16, better by 0.01 in each of three, of which the last is bad for all."""
    made = []
    for name, dilation, seeds in (("small", 4, (0, 1)), ("whole", 16, (0, 1, 2))):
        sweep = folder_of_sweep(tmp_path / name)
        for seed in seeds:
            for own in (1, dilation):
                loss = 3.0 + 0.1 * seed + (1.0 if seed == 2 else 0.0) - (0.01 if own == 16 else 0.0)
                sweep.add("ratplus_tiny", Pattern(own), {"loss": (loss, 0.001)}, seed=seed)
        made.append(sweep.write())
    return made


def test_lucky_seeds_of_a_smaller_sweep_do_not_win(folders):
    choice = choose(folders, "loss", {"kv_ratio": 0.5})
    assert (choice["winner"]["pattern"], choice["winner"]["seeds"]) == ("D16", 2)
    assert choice["winner"]["value"] == pytest.approx(3.04)
    assert choice["how"].endswith("; over the seeds that all rows have (0, 1)")
    alone = choose(folders[1:], "loss")
    assert alone["winner"]["seeds"] == 3
    assert "seeds that all" not in alone["how"]


def test_bounds_hold_for_means_over_seeds(folder_of_sweep, tmp_path):
    """D4 is better, and takes 1 ms in one seed and 3 ms in the other; D16 takes 2.1 and 1.7 ms."""
    sweep = folder_of_sweep(tmp_path / "timed")
    for dilation, loss, times in ((4, 3.0, (1.0, 3.0)), (16, 3.5, (2.1, 1.7))):
        for seed, ms in enumerate(times):
            took = {"decode_ms_per_token": ms}
            sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.001)}, seed=seed, timing=took)
    path, time = sweep.write(), "timing:decode_ms_per_token"
    chosen = choose([path], "loss", {time: 1.95})
    assert (chosen["winner"]["pattern"], chosen["left_out"]) == ("D16", {"beyond the bounds": 1})
    assert chosen["winner"]["costs"][time] == pytest.approx(1.9)
    assert choose([path], "loss", {time: 2.0})["winner"]["pattern"] == "D4"
    assert choose([path], "loss", least={time: 1.95})["of"] == 1
    with pytest.raises(ValueError, match=r"within the bounds \(2 rows; timing:decode_ms_per_token is from 1\.9\)"):
        choose([path], "loss", {time: 1.8})


def test_a_ranking_has_means_over_the_same_seeds(folders):
    table = ranking(folders)
    (best,) = (text for text in table.shown["Loss ↓"] if text.startswith("**"))
    assert best == "**3.040 ± 0.050**"
    assert "Means are over the seeds that all rows have (0, 1)." in table.notes
    assert not any("seeds that all" in note for note in ranking(folders[1:]).notes)


def test_a_ranking_has_no_result_that_only_some_sweeps_have(folder_of_sweep, tmp_path):
    made = []
    for name, more in (("a", {"recall_accuracy": (0.5, 0.1)}), ("b", {})):
        sweep = folder_of_sweep(tmp_path / name)
        for dilation in (4, 16):
            sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (3.0, 0.1), **more})
        made.append(sweep.write())
    assert list(ranking(made).shown) == ["Model", "Pattern", "KV (%)", "Loss ↓"]
    assert list(ranking(made[:1]).shown)[3:] == ["Loss ↓", "Recall accuracy (%)"]


def test_a_ranking_has_room_for_five_results_and_no_part_of_one(folder_of_sweep, tmp_path):
    sweep = folder_of_sweep(tmp_path / "many")
    parts = ("perplexity", "next_token_accuracy", "recall_accuracy_1_32")
    for dilation in (4, 16):
        shares = {name: (0.5, 0.1) for name in ("recall_accuracy", *parts, *(f"t{task}/acc" for task in range(5)))}
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (3.0, 0.1), **shares})
    table = ranking([sweep.write()])
    assert list(table.shown)[3:] == ["Loss ↓", "Recall accuracy (%)", *(f"T{task}/acc (%)" for task in range(3))]
    assert "2 more results: see the sweeps' own tables." in table.notes
    few = folder_of_sweep(tmp_path / "few")
    for dilation in (4, 16):
        few.add("ratplus_tiny", Pattern(dilation), {f"t{task}/acc": (0.5, 0.1) for task in range(5)})
    table = ranking([few.write()])
    assert len(list(table.shown)[3:]) == 5
    assert not any("more results" in note for note in table.notes)


def test_where_the_pattern_with_most_seeds_has_no_number_none_is_the_best(folder_of_sweep, tmp_path):
    sweep = folder_of_sweep(tmp_path / "one")
    for dilation, recalls in ((2, (math.nan, math.nan)), (4, (0.5,)), (8, (0.25,))):
        for seed, recall in enumerate(recalls):
            sweep.add("m", Pattern(dilation), {"loss": 2.0, "recall_accuracy": recall}, seed=seed)
    assert not with_differences(load_sweep(sweep.write()), ["recall_accuracy"])["recall_accuracy_best"].any()


def test_seeds_that_no_two_rows_share_are_told(folder_of_sweep, tmp_path):
    rows = pd.DataFrame({"model": "m", "variant": "", "pattern": ["D1", "D4", "D4"], "seed": [0, 1, 2]})
    assert shared_seeds(rows) == []
    assert shared_seeds(rows[1:]) is None
    assert seeds_note(None) == ""
    sweep = folder_of_sweep(tmp_path / "apart")
    for seed, dilation in enumerate((4, 16)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (3.0 + seed, 0.1)}, seed=seed)
    path = sweep.write()
    told = "ows have different seeds and none in common, so their means differ by their seeds too"
    assert choose([path], "loss")["how"].endswith(f"; r{told}")
    assert f"R{told}." in ranking([path]).notes


def test_a_row_with_a_seed_that_failed_is_not_the_best_of_a_ranking(folder_of_sweep, tmp_path):
    """D4 was asked two seeds and has the lower loss in the one that it finished; D16 and D64 were asked that one."""
    sweep = folder_of_sweep(tmp_path / "one")
    sweep.add("ratplus_tiny", Pattern(4), status="failed", seed=1)
    for dilation, loss in ((4, 2.0), (16, 3.0), (64, 3.1)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.1)})
    table = ranking([sweep.write()])
    assert dict(zip(table.shown["Pattern"], table.shown["Loss ↓"])) == {
        "D4": "2.000 ± 0.100", "D16": "**3.000 ± 0.100**", "D64": "3.100 ± 0.100 =",
    }  # fmt: skip
    assert "3 of 4 cells finished (1 failed)." in table.notes
    assert dict(zip(table.data["pattern"], table.data["loss_best"])) == {"D4": False, "D16": True, "D64": False}


def test_the_only_sparse_row_of_a_ranking_is_no_best_one(folder_of_sweep, tmp_path):
    sweep = folder_of_sweep(tmp_path / "one")
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (3.0, 0.1)})
    assert list(ranking([sweep.write()]).shown["Loss ↓"]) == ["3.000 ± 0.100"] * 2
