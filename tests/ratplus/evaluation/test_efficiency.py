"""`eval.efficiency`: the counts against live caches, the measured times' names, and cells' ids."""

from dataclasses import replace

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.cell import Config
from ratplus.config.eval import EfficiencySection, EvalSection
from ratplus.costs.budget import parameters
from ratplus.costs.cost import cost
from ratplus.evaluation.efficiency import efficiency_counts, measure_efficiency
from ratplus.model.cache import KVCache
from ratplus.stages.stage_ids import plan

CONFIG = ModelConfig(vocab_size=40, layers=2, d_model=32, d_head=16, max_len=64)
MAPS = [
    PatternMap.uniform(Pattern(), 2, 2),
    PatternMap.uniform(Pattern(4, 3, 2), 2, 2),
    PatternMap.uniform(Pattern(None, 5, 1), 2, 2),
    PatternMap.per_head([Pattern(), Pattern(16, 8)], 2),
]


@pytest.mark.parametrize("recurrence", [True, False])
@pytest.mark.parametrize("patterns", MAPS, ids=lambda m: m.label)
def test_counts_are_those_of_a_live_cache(patterns, recurrence):
    config = replace(CONFIG, recurrence=recurrence)
    model = RATPlus(config).bfloat16()
    parameters = sum(p.numel() for p in model.parameters())
    counts = efficiency_counts(config, patterns, 48, 16, 0.001)
    value = {name: int(entry["value"]) for name, entry in counts.items()}
    cache = model.new_cache(1, patterns, 64)
    assert value["decode_cache_bytes"] == cache.bytes()
    assert value["state_bytes"] == cache.state_bytes()
    assert (value["state_bytes"] > 0) == recurrence
    cache.rewind(64)
    held = sum(sum(sum(row) for row in layer) for layer in cache.kv_entries())
    assert value["decode_kv_bytes"] == held * 2 * 16 * 2
    assert value["decode_read_bytes"] == (held + 4) * 2 * 16 * 2  # and each head's own entry
    seen = sum(p.visible(48).sum() for row in patterns for p in row)
    assert value["prefill_attention_flops"] == 4 * 16 * seen
    last = sum(p.visible(1, 49).sum() for row in patterns for p in row)
    assert value["decode_attention_flops"] == 4 * 16 * last
    # One more would not fit beside the weights.
    assert value["max_batch"] * cache.bytes() <= 1_000_000 - 2 * parameters < (value["max_batch"] + 1) * cache.bytes()


def test_measured_names_and_that_counts_repeat():
    torch.manual_seed(0)
    model = RATPlus(CONFIG)
    section = EfficiencySection(enabled=True, batch=2, new_tokens=3, repeats=3)
    runs = [measure_efficiency(model, MAPS[1], section, "cpu") for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    timing = runs[0][1]
    assert set(timing) == {
        "prefill_ms", "prefill_ms_p20", "prefill_ms_p80", "dense_prefill_ms", "decode_ms_per_token",
        "decode_ms_per_token_p20", "decode_ms_per_token_p80", "dense_decode_ms_per_token", "tokens_per_second",
        "prefill_peak_bytes", "decode_peak_bytes", "decode_path",
    }  # fmt: skip
    assert timing["tokens_per_second"] == pytest.approx(2e3 / timing["decode_ms_per_token"])
    assert timing["prefill_ms_p20"] <= timing["prefill_ms"] <= timing["prefill_ms_p80"]
    assert timing["decode_path"] == "plain loop"


def test_where_the_system_does_not_tell_its_memory_the_section_does(monkeypatch, tmp_path):
    """As on macOS, which has no /proc/meminfo."""
    monkeypatch.setattr("ratplus.kernels.bench.timing._MEMORY_FACTS", str(tmp_path / "absent"))
    model, section = RATPlus(CONFIG), EfficiencySection(True, new_tokens=3, repeats=3)
    assert measure_efficiency(model, MAPS[0], section, "cpu")[1]["tokens_per_second"] > 0
    small = replace(section, batch=9, memory_gb=0.0002)
    line = r"eval.efficiency.batch: got 9; a cache takes .* fit in eval.efficiency.memory_gb=0.0002, weights among it"
    with pytest.raises(ValueError, match=line):
        measure_efficiency(model, MAPS[0], small, "cpu")


def test_counts_of_patterns_that_select():
    """Three layers of four heads that share two of keys; what is found at the prompt, what is held at the end."""
    config = ModelConfig(40, 3, 32, 8, kv_heads=2, max_len=64)
    for label in ("top2x4", "snap12x4", "quest2x8-decode"):
        patterns = PatternMap.uniform(Pattern.from_label(label), 3, 4)
        at_prompt, at_end = (
            cost(patterns, length, 8, recurrence=True, bytes_per_element=2, kv_heads=2, prompt=40)
            for length in (40, 50)
        )
        counts = {name: found["value"] for name, found in efficiency_counts(config, patterns, 40, 10, 0.01).items()}
        cache = KVCache.empty(config, patterns, 1, 50, "meta", torch.bfloat16).bytes()
        assert counts == {
            "prefill_attention_flops": at_prompt.attention_flops + at_prompt.selection_flops,
            "decode_attention_flops": at_prompt.decode_flops + at_prompt.decode_selection_flops,
            "decode_kv_bytes": at_end.kv_bytes, "decode_read_bytes": at_end.decode_bytes, "decode_cache_bytes": cache,
            "state_bytes": at_end.state_bytes, "max_batch": (10_000_000 - 2 * parameters(config)) // cache,
        }  # fmt: skip
        assert at_prompt.selection_flops + at_prompt.decode_selection_flops > 0
    assert efficiency_counts(config, patterns, 40, 10, 1e-6)["max_batch"]["value"] == 0


def test_times_are_the_patterns_and_dense_ones_stand_beside_them(monkeypatch):
    asked = []

    class Pretended:
        def __init__(self, name, model, settings, ceilings, found):
            self.found = found
            asked.append(settings)

        def at(self, prompt, batch, maps):
            asked.append((prompt, batch, list(maps)))
            for add, label in ((0, "D1"), (100, "D4-W3-I2")):
                times = {f"{name}_ms_{key}": add + 10 * i + j for i, name in enumerate(("prefill", "decode"))
                         for j, key in enumerate(("p20", "p50", "p80"))}  # fmt: skip
                peaks = {"prefill_peak_bytes": add + 30, "decode_peak_bytes": add + 31}
                self.found["rows"].append({"pattern": label, "tokens_per_second": add + 40, "decode_path": label}
                                          | times | peaks)  # fmt: skip

    monkeypatch.setattr("ratplus.evaluation.efficiency.Measuring", Pretended)
    section = EfficiencySection(True, batch=3, prompt_tokens=20, new_tokens=5, repeats=9, memory_gb=1.0)
    _, timing = measure_efficiency(RATPlus(CONFIG), MAPS[1], section, "cpu")
    assert timing == {
        "tokens_per_second": 140, "prefill_ms": 101, "prefill_ms_p20": 100, "prefill_ms_p80": 102,
        "dense_prefill_ms": 1, "decode_ms_per_token": 111, "decode_ms_per_token_p20": 110,
        "decode_ms_per_token_p80": 112, "dense_decode_ms_per_token": 11,
        "prefill_peak_bytes": 130, "decode_peak_bytes": 131, "decode_path": "D4-W3-I2",
    }  # fmt: skip
    settings, call = asked
    assert call == (20, 3, ["D1", "D4-W3-I2"])
    assert (settings.new_tokens, settings.repeats, settings.prefill_tokens) == (5, 9, 60)


def test_dense_is_its_own_baseline():
    _, timing = measure_efficiency(RATPlus(CONFIG), MAPS[0], EfficiencySection(True, new_tokens=3, repeats=3), "cpu")
    assert timing["prefill_ms"] == timing["dense_prefill_ms"]


def test_only_an_enabled_section_enters_the_id():
    def evaluate(**values):
        config = Config(eval=EvalSection(efficiency=EfficiencySection(**values)))
        return plan(config, {"sha": "x"}, 257).evaluate

    off = evaluate()
    assert "efficiency" not in off.config["eval"]
    assert evaluate(batch=7).id == off.id
    assert evaluate(enabled=True).id != off.id
    assert evaluate(enabled=True, batch=7).id != evaluate(enabled=True).id


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "eval.efficiency.batch: got 0; it must be ≥ 1"),
        ({"new_tokens": 2}, "eval.efficiency.new_tokens: got 2"),
        ({"memory_gb": 0.0}, "eval.efficiency.memory_gb: got 0.0"),
        ({"enabled": True, "prompt_tokens": 512}, "prompt_tokens: got 512; with eval.efficiency.new_tokens=16"),
        ({"enabled": True, "new_tokens": 600}, "it must fit train.context=512"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Config(eval=EvalSection(efficiency=EfficiencySection(**values)))
