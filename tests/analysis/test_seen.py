"""All that the modules of a report show, of small sweeps whose numbers are chosen: see seen.py."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from seen import check
from small_sweeps import add_plain, add_seeds, frame_of, pattern_of, results, with_trained_context

from ratplus.analysis import (
    ablation,
    accuracy_vs_dilation,
    adaptation_curves,
    masks,
    niah_depth,
    pareto,
    pattern_tables,
    positions,
    recurrence,
    scaling_gap,
    sensitivity,
)
from ratplus.analysis.report import headline
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits
from ratplus.pattern import Pattern, PatternMap

pytestmark = pytest.mark.usefixtures("quick")


def one_place(layer: int, head: int, odd: int = 64, rest: int = 1) -> PatternMap:
    rows = [[Pattern(odd if (i, j) == (layer, head) else rest) for j in range(4)] for i in range(4)]
    return PatternMap(tuple(map(tuple, rows)))


@pytest.mark.parametrize("module", [accuracy_vs_dilation, pareto, masks], ids=lambda module: module.NAME)
def test_seen_of_static_patterns(sweep, module):
    add_plain(sweep)
    frame = frame_of(sweep)
    check(f"plain_{module.NAME}", *module.contents(frame))


def test_seen_of_tasks_and_the_headline(sweep):
    add_plain(sweep)
    frame = frame_of(sweep)
    check("plain_tasks", *pattern_tables.contents(frame), headline(frame))


@pytest.mark.parametrize("module", [accuracy_vs_dilation, pareto, pattern_tables], ids=lambda module: module.NAME)
def test_seen_of_seeds_with_items(sweep, module):
    add_seeds(sweep)
    frame = frame_of(sweep)
    check(f"seeds_{module.NAME}", *module.contents(frame), headline(frame))


def test_seen_to_another_baseline(sweep):
    add_seeds(sweep)
    frame = frame_of(sweep, baseline="D2")
    check("baseline", accuracy_vs_dilation.contents(frame)[0], pareto.contents(frame)[0], headline(frame))


def test_seen_of_an_ablation(sweep):
    """ARL on and off, at two lengths, with and without adaptation, from scratch; one combination has no D64."""
    for model, arl, length, steps, loss in (
        ("ratplus_tiny", True, 16, 40, 2.0), ("ratplus_tiny", True, 16, 0, 2.125), ("ratplus_tiny", True, 64, 40, 2.25),
        ("ratplus_tiny", False, None, 40, 2.5), ("attention_tiny", False, None, 0, 2.75),
    ):  # fmt: skip
        axes = {"train.pretrain.arl": arl, "train.adapt.steps": steps, "train.lr": 0.001}
        axes |= {"train.pretrain.arl_dilation": length} if length else {}
        for label, gap in (("D64", 0.5), ("D1", 0.0), ("stream-W64-I4", 0.25), ("layers 1 64 64 1", 0.125)):
            failed = not arl and steps and label == "D64"
            sweep.add(model, pattern_of(label), results(loss + gap), axes=axes, status="failed" if failed else "done")
    check("ablation", *ablation.contents(frame_of(sweep)))


def test_seen_of_an_ablation_of_steps_and_of_training_from_scratch(sweep):
    for sparse in (None, 16):
        for steps in (0, 40, 80):
            for dilation in (1, 16):
                axes = {"train.adapt.steps": steps, "train.pretrain.sparse": sparse, "note": "x" if sparse else None}
                for seed in (0, 1):
                    loss = 2 + bool(sparse) / 8 + dilation / 64 - steps / 1024 + seed / 32
                    status = "failed" if (steps, dilation, seed) == (40, 16, 1) else "done"
                    sweep.add("ratplus_tiny", Pattern(dilation), results(loss), axes=axes, seed=seed, status=status)
    check("ablation_of_steps", *ablation.contents(frame_of(sweep)))


def test_seen_of_an_ablation_of_dilations_alone_and_of_many_lines(sweep):
    for length in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        for dilation in (1, 16):
            axes = {"train.pretrain.arl_dilation": length}
            sweep.add("ratplus_tiny", Pattern(dilation), results(2 + 0.01 * dilation + length / 4096), axes=axes)
    check("ablation_of_dilations", *ablation.contents(frame_of(sweep)))


def test_seen_of_sizes(sweep):
    for model, parameters, gaps in (
        ("ratplus_b", 4e6, (0.125, 0.25)), ("ratplus_a", 2.5e9, (0.0625, 0.5)), ("attention_b", 4e6, (0.5, 0.75)),
        ("attention_a", 4.5e6, (1.0, None)),
    ):  # fmt: skip
        for label, gap in zip(("D1", "D64", "stream-W64-I4"), (0.0, *gaps)):
            if gap is not None:
                sweep.add(model, pattern_of(label), results(2 + gap), parameters=parameters)
    check("scaling", *scaling_gap.contents(frame_of(sweep)), *scaling_gap.contents(frame_of(sweep, reference="paper")))


def test_seen_of_sizes_of_several_variants_and_patterns(sweep):
    for lr, sizes in ((0.1, (1e6,)), (0.2, (1e6, 4e6))):
        for parameters in sizes:
            for power in range(11):
                for seed in (0, 1):
                    found = results(2 + power / 8 + seed * power / 64)
                    options = {"axes": {"train.lr": lr}, "parameters": parameters, "seed": seed}
                    sweep.add(f"ratplus_{parameters:.0e}", Pattern(2**power), found, **options)
    check("scaling_of_variants", *scaling_gap.contents(frame_of(sweep)))


def test_seen_by_position(sweep):
    """Two ways to scale positions, one at two rates, the trained context shorter than the cells'; a cell that failed.

    D16 was asked for fewer distances.
    """
    for scaling, rate, add in (("none", 0.1, 0.5), ("yarn", 0.1, 0.0), ("yarn", 0.2, 0.25)):
        for label, gap in (("D16", 0.25), ("D1", 0.0)):
            for seed in (0, 1):
                metrics = {f"loss_at_{a}_{b}": (2 + gap + add * (a > 128) + a / 4096 + seed / 8, 0.02)
                           for a, b in ((0, 64), (64, 128), (128, 256), (256, 512))}  # fmt: skip
                metrics |= {"recall_at_0_128": (0.75 - gap, 0.05), "recall_at_128_256": (0.5, 0.05)}
                metrics |= {"recall_over_1_64": (0.875, 0.05)}
                metrics |= {} if gap else {"recall_over_64_256": (0.25, 0.05)}
                cell = sweep.add("ratplus_tiny", pattern_of(label), metrics, seed=seed,
                                 axes={"model.rope_scaling": scaling, "train.lr": rate})  # fmt: skip
                cell["config"]["model"] |= {} if scaling == "none" else {
                    "rope_scaling": scaling, "rope_factor": 4, "rope_original": 128}  # fmt: skip
    sweep.add("ratplus_tiny", Pattern(64), status="failed", axes={"model.rope_scaling": "none", "train.lr": 0.1})
    for cell in sweep.cells:
        with_trained_context(sweep, cell, 128)
    check("positions", *positions.contents(frame_of(sweep)))


def test_seen_by_position_within_the_context_of_several_models(sweep):
    for model in ("attention_tiny", "ratplus_tiny"):
        for rank, label in enumerate(("D1", "D2", "D4", "D8", "stream-W64-I4")):
            metrics = {f"loss_at_{a}_{b}": (2 + rank / 8 + a / 1024, 0.02) for a, b in ((0, 64), (64, 256), (256, 512))}
            sweep.add(model, pattern_of(label), metrics, axes={"train.lr": 0.5, "data.name": "x"})
    check("positions_of_models", *positions.contents(frame_of(sweep)))


DEPTHS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 101))


def needles(task: str, measure: str, values, whole=None) -> dict:
    found = {f"{task}_{measure}_{a}_{b}": (value, 0.05) for (a, b), value in zip(DEPTHS, values)}
    return found | ({} if whole is None else {f"{task}_{measure}": (whole, 0.02)})


def test_seen_of_needles_by_depth(sweep):
    for model, shift in (("attention_tiny", 0.25), ("ratplus_tiny", 0.0)):
        for label, values in (
            ("D4", (1.0, 0.75, 0.5, 0.25, 0.0)),
            ("D1", (1.0,) * 5),
            ("D64", (0.5, 0.5, 0.5, 0.5, 1.0)),
        ):
            values = [max(0, value - shift) for value in values]
            metrics = needles("niah_single_1", "substring", values, sum(values) / 5)
            metrics |= needles("niah_multikey_1", "substring", values[:3] + [math.nan] * 2, 0.5)
            metrics |= needles("niah_single_1", "overlap", [0.1] * 5, 0.1)
            sweep.add(model, pattern_of(label), metrics)
    sweep.add("ratplus_tiny", Pattern(16), status="missing")
    frame = frame_of(sweep)
    check("niah", *niah_depth.contents(frame), *pattern_tables.contents(frame))


def test_seen_of_needles_of_three_models(sweep):
    for model in ("attention_tiny", "ratplus_tiny", "ratplus_b"):
        sweep.add(model, Pattern(4), needles("niah_single_1", "substring", [0.5] * 5, 0.5))
    check("niah_of_three", niah_depth.figure(frame_of(sweep)))


def test_seen_of_needles_by_the_older_score_of_many_patterns(sweep):
    for seed in (0, 1):
        for power in range(9):
            for window in (0, 8):
                values = [0.5 + (power + seed) / 32] * 5
                sweep.add(
                    "ratplus_tiny",
                    Pattern(2**power, window),
                    needles("niah_single_1", "overlap", values, values[0]),
                    seed=seed,
                )
    check("niah_of_many", *niah_depth.contents(frame_of(sweep)))


def test_seen_of_single_places(sweep):
    sweep.add("ratplus_tiny", Pattern(1), results(2.0))
    for layer in range(4):
        only = pattern_of("layers " + " ".join("64" if i == layer else "1" for i in range(4)))
        sweep.add("ratplus_tiny", only, results(2.0 + layer / 8), status="failed" if layer == 2 else "done")
    for layer, head in ((0, 1), (3, 2)):
        sweep.add("ratplus_tiny", one_place(layer, head), results(2.0 + (layer + head) / 64))
    for head in (1, 3):
        sweep.add(
            "ratplus_tiny",
            pattern_of("heads " + " ".join("1" if i == head else "16" for i in range(4))),
            results(3 + head),
        )
    sweep.add("ratplus_tiny", pattern_of("heads 1 1 64 1"), results(2.5))
    for layer in (0, 1):
        only = pattern_of("layers " + " ".join("1" if i == layer else "4" for i in range(4)))
        sweep.add("ratplus_tiny", only, results(2.25 + layer / 4))
    sweep.add("ratplus_tiny", pattern_of("heads 1 4 16 64"), results(9.0))
    check("sensitivity", *sensitivity.contents(frame_of(sweep)))


def test_seen_of_single_places_without_a_dense_cell_and_of_many_maps(sweep):
    for odd in (2, 4, 8, 16, 32):
        for head in (0, 2):
            sweep.add(
                "ratplus_tiny",
                pattern_of("heads " + " ".join(str(odd) if i == head else "1" for i in range(4))),
                results(2 + odd / 32 + head),
            )
    check("sensitivity_of_many", *sensitivity.contents(frame_of(sweep)))


def gates_of(shift: float, chunk=None) -> dict:
    """Of two layers of three heads."""
    per_head = [[0.25 + 0.125 * layer + 0.0625 * head for head in range(3)] for layer in range(2)]
    norms = [[1 + layer + shift + position / 64 for position in range(0, 512, 128)] for layer in range(2)]
    return {
        "format": 1, "rows": 4, "context": 512, "positions": [0, 128, 256, 384], "gate_mean": per_head,
        "gate_p10": [[gate / 2 for gate in heads] for heads in per_head],
        "gate_p90": [[gate * 1.25 for gate in heads] for heads in per_head],
        "memory_tokens": [[2.0 ** (2 * layer + head) + shift for head in range(3)] for layer in range(2)],
        "key_norm": norms, "value_norm": norms, **({} if chunk is None else {"recurrence_chunk": chunk}),
    }  # fmt: skip


def add_gates(sweep, cell, gates) -> None:
    (sweep.path / "evaluate" / cell["id"] / "gates.json").write_text(json.dumps(gates))


def test_seen_of_gates(sweep):
    for rank, label in enumerate(("D64", "D1")):
        for seed in (0, 1):
            cell = sweep.add("ratplus_tiny", pattern_of(label), results(2.0), seed=seed)
            add_gates(sweep, cell, gates_of(seed + rank / 2))
    sweep.add("ratplus_small", Pattern(1), results(2.0))
    check("gates", *recurrence.contents(frame_of(sweep)))


def test_seen_of_schemes_of_many_models(sweep):
    for model in "abcde":
        for chunk in (64, None, 16):
            for label in ("D4", "D1"):
                if model != "e" or chunk != 64:
                    cell = sweep.add(f"ratplus_{model}", pattern_of(label), results(2.0),
                                     axes={"model.recurrence_chunk": chunk, "train.lr": 0.1})  # fmt: skip
                    add_gates(sweep, cell, gates_of((chunk or 0) / 64 + ord(model) - 97 + 8 * (label == "D4"), chunk))
    check("schemes", *recurrence.contents(frame_of(sweep))[1:])


def test_seen_of_curves(sweep):
    for model, scale in (("ratplus_tiny", 100), ("ratplus_b", 1000), ("attention_tiny", 1000)):
        for label, losses in (
            ("D16", (4.0, 3.5, 3.0, 3.2, 2.0)),
            ("D1", (2.0, 2.5, 2.0)),
            ("stream-W64-I4", (3.0, 1.0)),
        ):
            for seed in (0, 1):
                curve = [(s, scale * s, loss + seed) for s, loss in enumerate(losses[: 9 if seed else None], start=1)]
                sweep.add(model, pattern_of(label), results(2.0), curve=curve, seed=seed)
    check("curves", *adaptation_curves.contents(frame_of(sweep)))


def selection_of(label: str, rates: dict) -> dict:
    seen = np.tril(np.ones((48, 48), dtype=bool))
    seen[40:, :8] = False
    mask = {"task": "recall", "layer": 0, "head": 0, "length": 48, "bits": base64.b64encode(np.packbits(seen)).decode()}
    return {"format": 1, "rows": {"recall": 2}, "density": [[0.5]], "hit_rate": rates, "masks": {label: mask}}


def add_selecting(sweep) -> None:
    for model, base in (("attention_tiny", 2.0), ("ratplus_tiny", 1.5)):
        for rank, label in enumerate(
            ("D1", "top8x16", "top4x16", "D64", "stream-W60-I4", "quest4x16", "D64-top4x16", "snap128x16", "random4x16")
        ):
            selects = rank not in (0, 3, 4)
            found = {"loss": (base + rank / 32, 0.01), "recall_accuracy": (1 - rank / 16, 0.02),
                     "cloze_accuracy": (0.5 - rank / 32, 0.03), "cloze_score": (0.25, 0.03)}  # fmt: skip
            if label.startswith("snap"):
                found.pop("loss")
            found |= (
                {"selection_density": (0.125 + rank / 64, 0.01), "selection_hit_rate": (0.5, 0.01)} if selects else {}
            )
            cell = sweep.add(model, pattern_of(label), found)
            if selects:
                rates = [[0.25 + layer / 8 + head / 64 + rank / 128 for head in range(3)] for layer in range(2)]
                path = sweep.path / "evaluate" / cell["id"] / "selection.json"
                path.write_text(json.dumps(selection_of(label, {"recall": rates, "cloze_far": rates[::-1]})))
    sweep.add("ratplus_tiny", pattern_of("layers 1 top4x16 top4x16 1"), results(1.75, 0.5))
    sweep.add("ratplus_tiny", pattern_of("top2x16"), status="failed")


@pytest.mark.parametrize(
    "module", [accuracy_vs_budget, selection_hits, masks, pareto, accuracy_vs_dilation], ids=lambda module: module.NAME
)
def test_seen_of_patterns_that_select(sweep, module):
    add_selecting(sweep)
    check(f"selecting_{module.NAME}", *module.contents(frame_of(sweep)))
