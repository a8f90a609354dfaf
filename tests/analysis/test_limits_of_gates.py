"""Gates at their limits and choices within bounds: sweeps of a few cells whose numbers are chosen."""

import numpy as np
import pytest

from ratplus.analysis.frame.all_sweeps import find_sweeps, list_cells, read_all
from ratplus.analysis.gates import check, parse_gate
from ratplus.analysis.paired.best import choose
from ratplus.pattern import Pattern
from ratplus.records.samples import write_samples


@pytest.fixture
def two(folder_of_sweep, tmp_path):
    """Makes two sweeps of {pattern: (a, b)}, either of which may be a status; returns their folders."""

    def make(values: dict, metric="loss", seeds=1, timing=False, items=None):
        places = []
        for side, name in enumerate(("one", "two")):
            sweep = folder_of_sweep(tmp_path / name)
            for dilation, pair in values.items():
                for seed in range(seeds):
                    value = pair[side]
                    if isinstance(value, str):
                        sweep.add("ratplus_tiny", Pattern(dilation), seed=seed, status=value)
                        continue
                    value = value[seed] if isinstance(value, tuple) else value
                    metrics = {"loss": (1.0, 0.1)} if timing else {metric: (value, 0.1)}
                    cell = sweep.add("ratplus_tiny", Pattern(dilation), metrics, seed=seed,
                                     timing={metric: value} if timing else None)  # fmt: skip
                    if items:
                        rows = [{"task": "loss", "id": i, "loss": value + 0.001 * (i - (items - 1) / 2) * (1 + side)}
                                for i in range(items)]  # fmt: skip
                        write_samples(sweep.path / "evaluate" / cell["id"], rows)
            places.append(sweep.write(name))
        return places

    return make


def verdicts(folders, *gates) -> list[str]:
    return [verdict.line for verdict in check(*folders, [parse_gate(gate) for gate in gates])]


def test_a_gate_fails_beyond_its_limit_and_not_at_it(two):
    folders = two({1: (2.0, 2.0), 2: (2.0, 2.5), 4: (4.0, 3.0)})
    limits = {"loss>0.5": False, "loss>0.49": True, "loss<-1": False, "loss<-0.99": True, "loss>25%": False,
              "loss>24%": True, "loss<-25%": False, "loss<-24%": True, "loss>-2": True}  # fmt: skip
    for text, failed in limits.items():
        (verdict,) = check(*folders, [parse_gate(text)])
        assert verdict.failed == failed, verdict.line
    assert verdicts(folders, "loss>0.4", "loss<-0.1", "loss>3", "loss<-3", "loss>-2") == [
        "FAIL loss>0.4: 1 of 3 patterns; worst: ratplus_tiny D2, 2.000 → 2.500 (Δ 0.500 ± 0.141)",
        "FAIL loss<-0.1: 1 of 3 patterns; worst: ratplus_tiny D4, 4.000 → 3.000 (Δ −1.000 ± 0.141)",
        "ok   loss>3: none of 3 patterns; nearest: ratplus_tiny D2, 2.000 → 2.500 (Δ 0.500 ± 0.141)",
        "ok   loss<-3: none of 3 patterns; nearest: ratplus_tiny D4, 4.000 → 3.000 (Δ −1.000 ± 0.141)",
        "FAIL loss>-2: 3 of 3 patterns; worst: ratplus_tiny D2, 2.000 → 2.500 (Δ 0.500 ± 0.141)",
    ]


def test_points_are_of_shares_and_percent_of_the_first_value(two):
    folders = two({1: (0.5, 0.5), 2: (0.5, 0.46)}, metric="recall_accuracy")
    assert verdicts(folders, "recall_accuracy<-3.9pt", "recall_accuracy<-4.1pt", "recall_accuracy<-7.9%") == [
        "FAIL recall_accuracy<-3.9pt: 1 of 2 patterns; worst: ratplus_tiny D2, 50.0 → 46.0 % (Δ −4.0 ± 14.1)",
        "ok   recall_accuracy<-4.1pt: none of 2 patterns; nearest: ratplus_tiny D2, 50.0 → 46.0 % (Δ −4.0 ± 14.1)",
        "FAIL recall_accuracy<-7.9%: 1 of 2 patterns; worst: ratplus_tiny D2, 50.0 → 46.0 % (Δ −8.0 %)",
    ]
    (line,) = verdicts(two({1: (-2.0, -1.0)}, metric="my_task/gain"), "my_task/gain>49%")
    assert "Δ 50.0 %" in line, "percent of a negative value are of its size"


def test_times_are_means_over_the_seeds_that_both_have_finished(two):
    folders = two({1: ((1.0, 3.0), (2.0, 4.0)), 2: (1.0, "failed"), 4: (5.0, 5.0)}, "decode_ms", 2, timing=True)
    assert verdicts(folders, "decode_ms>49%", "decode_ms>51%") == [
        "FAIL decode_ms>49%: 1 of 2 patterns; worst: ratplus_tiny D1, 2.000 → 3.000 (Δ 50.0 %)",
        "ok   decode_ms>51%: none of 2 patterns; nearest: ratplus_tiny D1, 2.000 → 3.000 (Δ 50.0 %)",
    ]


def test_with_a_level_only_what_is_certain_fails(two):
    folders = two({1: (2.0, 2.0), 2: (2.0, 2.1)})
    (line,) = verdicts(folders, "loss>0.05@p0.05")
    assert line.startswith("ok   loss>0.05@p0.05: none of 2 patterns; nearest: ratplus_tiny D2, 2.000 → 2.100")
    folders = two({1: (2.0, 2.0), 2: (2.0, 2.1)}, items=32)
    (line,) = verdicts(folders, "loss>0.05@p0.05")
    assert line.startswith("FAIL loss>0.05@p0.05: 1 of 2 patterns; worst: ratplus_tiny D2")
    assert ", p " in line


def test_a_difference_without_an_error_has_no_p_and_does_not_fail_at_a_level(folder_of_sweep, tmp_path):
    folders = []
    for name, loss in (("one", 2.0), ("two", 2.5)):
        sweep = folder_of_sweep(tmp_path / name)
        sweep.add("ratplus_tiny", Pattern(2), {"loss": loss})
        folders.append(sweep.write())
    told = "ratplus_tiny D2, 2.000 → 2.500 (Δ 0.500)"
    assert verdicts(folders, "loss>0.4@p0.05", "loss>0.4", "loss>0.6@p0.05") == [
        f"ok   loss>0.4@p0.05: none of 1 pattern; nearest: {told}; 1 beyond it have no p",
        f"FAIL loss>0.4: 1 of 1 pattern; worst: {told}",
        f"ok   loss>0.6@p0.05: none of 1 pattern; nearest: {told}",
    ]


@pytest.mark.parametrize("level", ["0", "1", "1.5"])
def test_levels_lie_between_0_and_1(level):
    with pytest.raises(ValueError, match="the level behind @p lies between 0 and 1"):
        parse_gate(f"loss>1@p{level}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("loss>1", ("loss", True, 1.0, "", None)), (" loss < -1.5e-1 pt ", ("loss", False, -0.15, "pt", None)),
        ("a/b,c<+.5%@p0.01", ("a/b,c", False, 0.5, "%", 0.01)), ("x>2 % @ p=.9", ("x", True, 2.0, "%", 0.9)),
    ],
)  # fmt: skip
def test_what_a_gate_says(text, parts):
    gate = parse_gate(text)
    assert (gate.name, gate.rises, gate.limit, gate.unit, gate.p) == parts
    assert gate.text == text.strip()


# ---- choosing --------------------------------------------------------------------------------------------------


@pytest.fixture
def several(sweep):
    """Losses that rise with what is left out; D8 has not finished a seed, D64 is far worse. Items differ by little."""
    for dilation, loss in ((1, 2.0), (2, 2.01), (4, 2.02), (8, 1.0), (64, 3.0)):
        for seed in (0, 1):
            if (dilation, seed) == (8, 1):
                sweep.add("ratplus_tiny", Pattern(8), seed=1, status="failed")
                continue
            # The first three differ by less than their items do, the last by far more.
            cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.1), "gain": (loss, 0.1)}, seed=seed)
            noise = np.random.default_rng([dilation, seed]).normal(0, 0.1, 40)
            values = loss + noise - noise.mean()
            write_samples(
                sweep.path / "evaluate" / cell["id"],
                [{"task": "loss", "id": i, "loss": float(v)} for i, v in enumerate(values)],
            )
    return sweep.write()


def test_bounds_are_within_and_the_cheapest_of_ties_wins(several):
    found = choose([several], "loss")
    assert (found["winner"]["pattern"], found["winner"]["value"], found["winner"]["seeds"]) == ("D1", 2.0, 2)
    assert [row["pattern"] for row in found["ties"]] == ["D2", "D4"]
    assert (found["of"], found["lower"], found["unit"]) == (4, True, "")
    assert found["left_out"] == {"not finished, or without the result": 1}
    assert found["why"] == "the lowest loss of 4 rows; 2 others tie with it"
    cheap = choose([several], "loss", tie="cheapest")
    assert cheap["winner"]["pattern"] == "D4"
    assert cheap["why"].startswith(
        "the cheapest (kv_read) of 3 rows that cannot be told from the lowest loss of 4 rows"
    )
    for most, winner, of in ((0.5, "D2", 3), (0.49, "D4", 2), (0.25, "D4", 2), (0.2499, "D64", 1)):
        found = choose([several], "loss", {"kv_ratio": most})
        assert (found["winner"]["pattern"], found["of"]) == (winner, of)
        assert found["left_out"].get("beyond the bounds", 0) == 4 - of
        assert found["winner"]["costs"].keys() == {"kv_ratio", "kv_read", "kv_bytes"}
    for least, of in ((0.5, 2), (0.51, 1)):
        found = choose([several], "loss", least={"kv_ratio": least})
        assert (found["winner"]["pattern"], found["of"]) == ("D1", of)
        # D8, which is beyond this bound too, is counted once.
        assert found["left_out"] == {"not finished, or without the result": 1, "beyond the bounds": 4 - of}
    with pytest.raises(
        ValueError, match=r"no finished row has loss within the bounds \(5 rows; kv_ratio is from 0.01562"
    ):
        choose([several], "loss", {"kv_ratio": 0.01})
    with pytest.raises(ValueError, match=r"kv_ratio is up to 1\)"):
        choose([several], "loss", least={"kv_ratio": 1.1})
    assert choose([several], "gain")["winner"]["pattern"] == "D64", "more of a result that no rule knows is better"
    assert choose([several], "loss", where="dilation >= 4")["of"] == 2


def test_what_ties_rest_on_is_said_of_each_kind_of_rows(sweep):
    def how(stored: tuple[int, ...]) -> str:
        sweep.cells.clear()
        for dilation in (1, 4, 16):
            cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (2.0 + dilation / 64, 0.1)})
            place = sweep.path / "evaluate" / cell["id"]
            (place / "samples.jsonl").unlink(missing_ok=True)
            if dilation in stored:
                write_samples(place, [{"task": "loss", "id": i, "loss": 2.0 + dilation / 64} for i in range(8)])
        return choose([sweep.write()], "loss")["how"].removeprefix(
            "ties: p ≥ 0.05 after Holm's adjustment over all rows, "
        )

    assert how((1, 4, 16)) == "paired item by item"
    assert how((1, 16)) == "paired item by item, by standard errors where there are no samples of the same items"
    assert how((4,)) == "from standard errors, unpaired (no samples of the same items)"


def test_the_cheapest_of_ties_is_so_in_what_was_bounded_first(sweep):
    """The window reads fewer entries than D8 in a step, and attends to more keys in a forward; all three tie."""
    for pattern, loss in ((Pattern(), 2.0), (Pattern(8), 2.01), (Pattern(None, 50), 2.02)):
        sweep.add("ratplus_tiny", pattern, {"loss": (loss, 0.1)})
    folder = sweep.write()
    for bounds, winner in (
        ({}, "stream-W50"),
        ({"attention_flops": 1e12}, "D8"),
        ({"kv_ratio": 1, "attention_flops": 1e12}, "stream-W50"),
        ({"attention_flops": 1e12, "kv_ratio": 1}, "D8"),
    ):
        found = choose([folder], "loss", bounds, tie="cheapest")
        assert [row["pattern"] for row in found["ties"]] == ["D8", "stream-W50"]
        assert found["winner"]["pattern"] == winner
        assert found["why"].startswith(f"the cheapest ({next(iter(bounds), 'kv_read')}) of 3 rows")


def test_ties_over_seeds_are_of_all_rows_together(sweep):
    """Each row is 0.13 worse, with p = 0.02 over three seeds: certain where it is the only one, not among four."""
    for seed, more in enumerate((0.10, 0.12, 0.16)):
        sweep.add("ratplus_tiny", Pattern(), {"loss": (2.0, 1e-6)}, seed=seed)
        for dilation in (2, 4, 8, 16):
            sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (2.0 + more, 1e-6)}, seed=seed)
    folder = sweep.write()
    assert [(row["pattern"], row["tied"]) for row in choose([folder], "loss")["ties"]] == [
        (f"D{dilation}", "seeds") for dilation in (2, 4, 8, 16)
    ]
    assert choose([folder], "loss", where="dilation <= 2")["ties"] == []


# ---- listing ---------------------------------------------------------------------------------------------------


def test_columns_that_tell_nothing_are_not_shown(sweep):
    def titles(condition=None, **how):
        return list(list_cells(read_all({"x": sweep.write}).frame, condition, **how).rows[0])

    sweep.add("ratplus_tiny", Pattern(1), {"loss": (2.0, 0.1)})
    sweep.add("ratplus_tiny", Pattern(2), {"loss": (1.0, 0.1)})
    usual = ["sweep", "cell", "model", "pattern", "status", "kv_ratio", "loss"]
    assert titles() == usual, "one seed, one variant, no recall, no note"
    assert titles("seed == 0") == [*usual, "seed"]
    assert titles("kv_bytes > 0") == [*usual, "kv_bytes"]
    assert titles(columns=["loss", "seed"]) == ["loss", "seed"]
    sweep.add("ratplus_tiny", Pattern(2), {"loss": (3.0, 0.1), "recall_accuracy": (0.5, 0.1)}, seed=1)
    assert titles() == [*usual[:4], "seed", *usual[4:], "recall_accuracy"]
    frame = read_all({"x": sweep.write}).frame
    assert [row["loss"] for row in list_cells(frame, None, sort="loss").rows] == [1.0, 2.0, 3.0]
    assert [row["loss"] for row in list_cells(frame, None, sort="-loss").rows] == [3.0, 2.0, 1.0]
    listing = list_cells(frame, "loss < 3", sort="recall_accuracy")
    assert (len(listing.rows), len(listing.cells), listing.of) == (2, 2, 3)
    assert listing.cells[0]["recall_accuracy"] is None


def test_sweeps_and_packs_are_found_once(tmp_path):
    for name in ("a/sweep.json", "a/evaluate/sweep.json", "b/c/sweep.json", ".hidden/sweep.json", "d/x.pack.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_sweeps(tmp_path) == [tmp_path / "a", tmp_path / "b/c"]
    assert find_sweeps(tmp_path, ".pack.zip") == [tmp_path / "a", tmp_path / "b/c", tmp_path / "d/x.pack.zip"]
    assert find_sweeps(tmp_path / "a") == [tmp_path / "a"]
