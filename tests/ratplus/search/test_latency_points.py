"""Which timings a fit of latency takes from a file of `ratplus bench model`, and which maps are timed for one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ratplus.config.model import ModelConfig
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap
from ratplus.search.latency import bench_points, decode_ms, features, fit, fitting_maps

CONFIG = ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=8, max_len=128)
GOOD = {"pattern": "D1", "batch": 1, "context": 64, "heads": 4, "decode_ms_p50": 1.5}


@pytest.mark.parametrize(
    "odd",
    [
        {"batch": 4}, {"heads": 8}, {"heads": 8, "context": 100}, {"context": 32}, {"decode_ms_p50": None},
    ],
)  # fmt: skip
def test_only_times_of_this_model_at_batch_1_and_the_nearest_context(tmp_path, odd):
    rows = [GOOD | odd | {"pattern": "D2"}, GOOD, GOOD | {"pattern": "D4", "decode_ms_p50": 0.5}]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"rows": rows}))
    assert [(m.label, ms) for m, ms in bench_points(path, CONFIG, 100)] == [("D1", 1.5), ("D4", 0.5)]
    path.write_text(json.dumps({"rows": [GOOD | {"heads": 8}]}))
    with pytest.raises(ValueError, match=r"bench: .*: no decoding times at batch 1 of a model with 4 heads"):
        bench_points(path, CONFIG, 100)


def test_what_a_step_reads():
    """The new token's own entry included; a layer waits for its busiest head."""
    uniform = PatternMap.uniform(Pattern(4), 2, 4)
    assert features(uniform, CONFIG, 64) == [1.0, 8 * 17.0, 2 * 17.0]
    mixed = PatternMap.per_head([Pattern(), Pattern(4), Pattern(4), Pattern(4)], 2)
    assert features(mixed, CONFIG, 64) == [1.0, 2 * (65 + 3 * 17.0), 2 * 65.0]
    shared = PatternMap.per_head([Pattern(), Pattern(), Pattern(4), Pattern(4)], 2)
    assert features(shared, replace(CONFIG, kv_heads=2), 64) == [1.0, 2 * (65 + 17.0), 2 * 65.0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [3, 7])
def test_no_coefficients_of_0_or_more_fit_better(seed, count):
    """The conditions of Karush, Kuhn and Tucker: no slope of the error where a coefficient is free, none down at 0."""
    maps = fitting_maps([Pattern(), Pattern(4), Pattern(16), Pattern(64)], 2, 4, 4)[:count]
    times = np.random.default_rng(seed).uniform(0.5, 2.0, count)
    fitted = fit(list(zip(maps, times)), CONFIG, 64)
    found = np.array([fitted.base, fitted.each, fitted.most])
    table = np.array([features(m, CONFIG, 64) for m in maps]) / times[:, None]
    errors = table @ found - 1
    slopes = (table.T @ errors) / np.linalg.norm(table, axis=0)
    assert (found >= 0).all()
    assert slopes[found > 0] == pytest.approx(0, abs=1e-9)
    assert (slopes > -1e-9).all()
    assert fitted.error == pytest.approx(np.sqrt((errors**2).mean()))
    assert fitted.worst == pytest.approx(abs(errors).max())
    assert fitted(maps[0]) == pytest.approx(times[0] * (1 + errors[0]))
    assert fitted.points == count


@pytest.mark.parametrize(("length", "prompt"), [(20, 20), (120, 120), (500, 120), (0, 1)])
def test_steps_are_timed_behind_as_many_tokens_as_fit(monkeypatch, length, prompt):
    asked = []

    class Pretended:
        def __init__(self, name, model, settings, ceilings, found):
            self.found = found
            asked.append(settings.prefill_tokens)

        def at(self, context, batch, maps):
            asked.append((context, batch, list(maps)))
            self.found["rows"] += [{"pattern": label, "decode_ms_p50": i + 0.5} for i, label in enumerate(maps)]
            self.found["skipped"] += [{"reason": "too large"}] * (length == 0)

    monkeypatch.setattr("ratplus.bench.measure.Measuring", Pretended)
    model = RATPlus(CONFIG)
    maps = [PatternMap.uniform(Pattern(d), 2, 4) for d in (4, 16)]
    if length:
        assert decode_ms(model, maps, length) == {"D1": 0.5, "D4": 1.5, "D16": 2.5}
    else:
        with pytest.raises(ValueError, match="budget: latency cannot be timed here: too large"):
            decode_ms(model, maps, length)
    assert asked == [prompt, (prompt, 1, ["D1", "D4", "D16"])]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{"decode_ms_p50": 1}]}', '{"rows": 7}'])
def test_what_is_no_result_of_a_benchmark(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(ValueError, match="not a result of `ratplus bench model --json`"):
        bench_points(tmp_path / "bench.json", CONFIG, 100)


@pytest.mark.parametrize(
    ("layers", "kv_heads", "candidates", "mixed"),
    [
        (1, 1, ["D1", "D4"], []),
        (2, 1, ["D1", "D4"], ["layers[D4,D1]"]),
        (1, 2, ["D1", "D4"], ["heads[D1x2,D4x2]"]),
        (2, 4, ["D1", "D4"], ["layers[D4,D1]", "heads[D1,D4x3]"]),
        (2, 2, ["top2x8", "top4x8"], ["layers[top4x8,top2x8]", "heads[top2x8x2,top4x8x2]"]),
        (2, 2, ["top2x8", "top2x16"], ["layers[top2x16,top2x8]"]),  # heads of one layer share the size of blocks
        (2, 2, ["top2x8", "D4"], ["layers[D4,top2x8]", "heads[top2x8x2,D4x2]"]),
        (2, 2, ["D4", "top2x8"], ["layers[top2x8,D4]", "heads[D4x2,top2x8x2]"]),
        (4, 1, ["D1", "D4", "D8"], ["layers[D4,D1,D4,D1]", "layers[D8,D4,D8,D4]"]),
    ],
)
def test_maps_of_a_fit_mix_neighbours_by_layers_and_by_heads(layers, kv_heads, candidates, mixed):
    maps = fitting_maps([Pattern.from_label(label) for label in candidates], layers, 4, kv_heads)
    assert [m.label for m in maps[: len(candidates)]] == candidates
    assert [m.label for m in maps[len(candidates) :]] == mixed
