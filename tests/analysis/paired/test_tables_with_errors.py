"""Δ ± in the tables of single modules and in the headline, with what each error is of below them."""

import pytest

from ratplus.analysis import ablation, pareto, scaling_gap, sensitivity
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.report import headline, report
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.samples import write_samples

ITEMS = (1.0, 1.5, 2.0, 2.5) * 4
OF_ITEMS = "± of Δ: over the evaluation's items (paired bootstrap, 2000 resamples)."


def add(sweep, pattern, change, spread=0.0, *, stored=True, model="ratplus_tiny", recall=None, **options):
    """A cell whose items differ from those of ITEMS by change ± spread, in turn; its record says their mean."""
    values = [item + change + (spread if place % 2 else -spread) for place, item in enumerate(ITEMS)]
    metrics = {"loss": (sum(values) / len(values), 0.1)} | ({} if recall is None else {"recall_accuracy": recall})
    cell = sweep.add(model, pattern, metrics, **options)
    if stored:
        samples = [{"task": "loss", "id": place, "loss": value} for place, value in enumerate(values)]
        write_samples(sweep.path / "evaluate" / cell["id"], samples)
    return cell


def contents(module, sweep):
    frame = load_sweep(sweep.write())
    assert module.applies(frame)
    return module.contents(frame)


def test_pareto_shows_what_a_point_costs(sweep):
    add(sweep, Pattern(1), 0.0)
    add(sweep, Pattern(4), 0.1, 0.04)
    table, _ = contents(pareto, sweep)
    # 0.1 with a spread of 0.04 over 16 items: an error of 0.010, where that of the loss alone is 0.1.
    assert dict(zip(table.shown["Pattern"], table.shown["Δ loss"])) == {"D1": "0.000", "D4": "0.100 ± 0.010"}
    assert table.notes == [OF_ITEMS]
    row = table.data.set_index("pattern").loc["D4"]
    assert (row["loss_delta"], row["loss_delta_pm"]) == (pytest.approx(0.1), pytest.approx(0.01, rel=0.05))
    assert row["loss_delta_p"] == pytest.approx(2 / 2**16)


def test_pareto_without_a_dense_cell_has_no_column_of_differences(sweep):
    add(sweep, Pattern(4), 0.1)
    add(sweep, Pattern(8), 0.2)
    table, _ = contents(pareto, sweep)
    assert "Δ loss" not in table.shown
    assert table.notes == []


@pytest.mark.parametrize("stored", [True, False])
def test_sensitivity_names_what_its_errors_are_of(sweep, stored):
    add(sweep, Pattern(1), 0.0, stored=stored)
    for layer, change in ((0, 0.3), (2, 0.1)):
        layers = [Pattern(16) if place == layer else Pattern() for place in range(4)]
        add(sweep, PatternMap.per_layer(layers, 4), change, 0.04, stored=stored)
    table, _ = contents(sensitivity, sweep)
    errors = " ± 0.010" if stored else ""
    assert list(zip(table.shown["Place"], table.shown["Δ loss"])) == [
        ("layer 0: D16", f"0.300{errors}"), ("layer 2: D16", f"0.100{errors}"),
    ]  # fmt: skip
    assert table.notes == [
        OF_ITEMS if stored else "No ± over items: the evaluations stored no samples (samples.jsonl)."
    ]


def test_scaling_gap_keeps_items_and_seeds_apart(sweep):
    for parameters in (1e6, 4e6):
        for seed, change in enumerate((0.1, 0.3, 0.2)):
            options = {"model": f"ratplus_{parameters:.0e}", "parameters": parameters, "seed": seed}
            add(sweep, Pattern(1), 0.0, **options)
            add(sweep, Pattern(16), change, 0.04, **options)
    table, _ = contents(scaling_gap, sweep)
    assert list(table.shown["D16"]) == ["0.200 ± 0.010 ± 0.058"] * 2
    assert table.notes == [f"{OF_ITEMS[:-1]}; the second ±: over 3 training seeds (standard error)."]
    assert scaling_gap.figure(load_sweep(sweep.path)).axes  # bars of the errors over seeds


def test_ablation_has_the_gaps_of_each_combination(sweep):
    for arl, change in ((True, 0.1), (False, 0.5)):
        axes = {"train.pretrain.arl": arl}
        add(sweep, Pattern(1), 0.0 if arl else 1.0, axes=axes)
        add(sweep, Pattern(16), change if arl else 1.0 + change, 0.04, axes=axes)
    losses, gaps, _ = contents(ablation, sweep)
    assert (losses.name, gaps.name) == ("ablation", "ablation_gaps")
    # To the dense pattern of the same combination, not to one for all.
    assert dict(zip(gaps.shown["ARL"], gaps.shown["D16"])) == {"on": "0.100 ± 0.010", "off": "0.500 ± 0.010"}
    assert "D1" not in gaps.shown
    assert gaps.notes == [OF_ITEMS]
    assert list(gaps.data["loss_delta_pm"].notna()) == [False, True, False, True]


def test_the_headline_has_the_error_of_its_difference(sweep):
    add(sweep, Pattern(1), 0.0)
    add(sweep, Pattern(16), 0.1, 0.04)
    assert headline(load_sweep(sweep.write())).startswith(
        "At D=16 RAT+ (ratplus_tiny) loses 0.100 ± 0.010 nats against its dense self (± over the evaluation's items). "
    )


def test_the_headline_names_both_errors(sweep):
    for seed, change in enumerate((-0.1, -0.3, -0.2)):
        add(sweep, Pattern(1), 0.0, seed=seed)
        add(sweep, Pattern(16), change, 0.04, seed=seed)
    assert headline(load_sweep(sweep.write())).startswith(
        "At D=16 RAT+ (ratplus_tiny) gains 0.200 ± 0.010 ± 0.058 nats against its dense self (± over the evaluation's "
        "items, then over 3 seeds). "
    )


def test_the_headline_survives_damaged_samples(sweep, caplog):
    add(sweep, Pattern(1), 0.0)
    cell = add(sweep, Pattern(16), 0.1)
    (sweep.path / "evaluate" / cell["id"] / "samples.jsonl").write_text("no JSON\n")
    folder = sweep.write()
    assert headline(load_sweep(folder)).startswith(
        "At D=16 RAT+ (ratplus_tiny) loses 0.10 nats against its dense self."
    )
    assert report(folder)[-1].name == "index.html"
    assert "samples.jsonl" in caplog.text
