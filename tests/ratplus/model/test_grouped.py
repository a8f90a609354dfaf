"""Grouped-query and multi-query attention: the same as multi-head attention with repeated keys, at less cache."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.bench.settings import shape_of
from ratplus.checkpoint import load, save
from ratplus.config.cell import Config, PatternSection
from ratplus.config.model import ModelSection
from ratplus.costs.budget import parameters
from ratplus.costs.cost import cost, kv_bytes, state_bytes
from ratplus.stages.stage_ids import plan

HEADS, D_HEAD, LENGTH = 4, 16, 40
PATTERNS = {
    "dense": Pattern(),
    "dilated": Pattern(4),
    "local": Pattern(8, 5, 2),
    "streaming": Pattern(None, 6, 2),
    "layers": PatternMap.per_layer([Pattern(), Pattern(8, 4)], HEADS),
    "heads": PatternMap.per_head([Pattern(), Pattern(), Pattern(4, 3), Pattern(4, 3)], 2),  # two key heads
}


def grouped(kv_heads: int, recurrence: bool = True) -> RATPlus:
    shape = {"layers": 2, "d_model": HEADS * D_HEAD, "d_head": D_HEAD, "max_len": 64, "recurrence": recurrence}
    model = RATPlus(ModelConfig(vocab_size=50, kv_heads=kv_heads, **shape))
    model.reset_parameters(seed=0, std=0.1)
    return model


def repeated(weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """in_proj's rows as a model without sharing has them: those of each key head once for each of its query heads."""
    first = (1 + config.output_gate) * config.d_model
    of_keys = weight[first:].unflatten(0, (-1, config.key_heads, config.d_head))
    return torch.cat((weight[:first], of_keys.repeat_interleave(config.group, dim=1).flatten(0, 2)))


def without_sharing(model: RATPlus) -> RATPlus:
    """The multi-head model that computes the same."""
    full = RATPlus(replace(model.config, kv_heads=None))
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith("in_proj.weight"):
            weights[name] = repeated(weight, model.config)
    full.load_state_dict(weights)
    return full


@pytest.mark.parametrize(
    ("kv_heads", "recurrence", "kind"),
    [(2, True, kind) for kind in PATTERNS]
    + [(1, True, kind) for kind in PATTERNS if kind != "heads"]
    + [(1, False, "local"), (2, False, "dense")],
)
def test_equals_multi_head_attention_with_repeated_keys(kv_heads, recurrence, kind):
    patterns, model = PATTERNS[kind], grouped(kv_heads, recurrence)
    full = without_sharing(model)
    tokens = torch.randint(50, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    results = []
    for each in (model, full):
        logits = each(tokens, patterns)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.roll(1, 1).flatten())
        results.append((logits, dict(zip(dict(each.named_parameters()), torch.autograd.grad(loss, each.parameters())))))
    (logits, gradients), (expected, of_full) = results
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        wanted = of_full[name]
        if name.endswith("in_proj.weight"):  # of a shared row: the sum over those that it stands for
            copied = torch.arange(len(gradient), dtype=torch.float64)[:, None]
            rows = repeated(copied, model.config)[:, 0].long()
            wanted = torch.zeros_like(gradient).index_add_(0, rows, wanted)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)

    caches = [each.new_cache(3, patterns, 60) for each in (model, full)]
    for lengths in ([20, 13, 7], [9, 12, 0]):  # ragged, and a second chunk on what the cache holds
        ours, theirs = (each.prefill(tokens[:, :20], c, lengths) for each, c in zip((model, full), caches))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, equal_nan=True)
    for t in range(8):
        ours, theirs = (each.step(tokens[:, t], c) for each, c in zip((model, full), caches))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert caches[0].kv_bytes() * model.config.group == caches[1].kv_bytes()
    assert caches[0].state_bytes() * model.config.group == caches[1].state_bytes()
    assert torch.equal(model.generate(tokens[:, :10], patterns, 6), full.generate(tokens[:, :10], patterns, 6))


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_other_kernels(monkeypatch, implementation):
    if implementation == "fused":
        pytest.importorskip("triton")
    model, tokens = grouped(2), torch.arange(12)[None]
    with torch.no_grad():
        expected = model(tokens, PATTERNS["heads"])[0]
        monkeypatch.setenv("RATPLUS_KERNELS", implementation)
        torch.testing.assert_close(model(tokens, PATTERNS["heads"])[0], expected, atol=1e-5, rtol=1e-5)
        cache = model.new_cache(1, PATTERNS["heads"], 12)
        model.prefill(tokens[:, :9], cache)
        for t in range(9, 12):
            logits = model.step(tokens[:, t], cache)[0]
            torch.testing.assert_close(logits, expected[t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [None, 1, 2])
def test_cost_counts_key_heads_and_query_heads_apart(kv_heads):
    model = grouped(kv_heads or HEADS)
    config = model.config
    patterns = model.resolve_patterns(PATTERNS["heads" if kv_heads != 1 else "layers"])
    spent = cost(patterns, LENGTH, D_HEAD, recurrence=True, bytes_per_element=4, kv_heads=kv_heads)
    cache = model.new_cache(1, patterns, LENGTH)
    model.prefill(torch.zeros(1, LENGTH, dtype=torch.long), cache)
    held = [entries for row in cache.kv_entries() for (entries,) in row]
    assert len(held) == spent.kv_heads == 2 * config.key_heads
    assert spent.kv_entries == sum(held)
    assert spent.kv_bytes == sum(held) * 2 * D_HEAD * 4 <= cache.kv_bytes()
    assert spent.state_bytes == cache.state_bytes() == state_bytes(D_HEAD, 2 * config.key_heads)
    full = cost(patterns, LENGTH, D_HEAD, recurrence=True, bytes_per_element=4)
    for name in ("heads", "visible_pairs", "attention_flops", "attention_flops_ratio", "decode_flops", "kv_ratio",
                 "kv_entries_per_head"):  # fmt: skip
        assert getattr(spent, name) == getattr(full, name)
    for name in ("kv_bytes", "cache_bytes", "recurrence_flops", "recurrence_bytes"):
        assert getattr(spent, name) * config.group == getattr(full, name)


def test_parameters_on_meta():
    """24 layers of the paper's 1.5B shape: k, v and g lose 12 of 16 heads."""
    config = ModelConfig(32000, 24, 2048, 128, kv_heads=4)
    with torch.device("meta"):
        assert sum(p.numel() for p in RATPlus(config).parameters()) == parameters(config)
    assert parameters(config) == parameters(replace(config, kv_heads=None)) - 24 * 3 * 12 * 128 * 2048


def test_values_that_are_refused():
    for value in (3, 0, -1, 8, True, 2.0, "two"):
        with pytest.raises(ValueError, match=r"model\.kv_heads: got .* must divide the 4 heads .*: 1, 2, 4, or null"):
            ModelSection(d_model=64, d_head=16, kv_heads=value)
    with pytest.raises(ValueError, match="kv_heads: got 2 for one head's Pattern"):
        cost(Pattern(), 8, 8, kv_heads=2)


def test_heads_that_share_keys_need_one_pattern():
    mixed = PatternMap.per_head([Pattern(), Pattern(4), Pattern(8), Pattern(8)], 2)
    message = r"heads 0 to 1 of layer 0 share keys and values \(model\.kv_heads=2\), .* but have D1, D4; give them one"
    for call in (lambda m: m(torch.zeros(1, 4, dtype=torch.long), mixed), lambda m: m.new_cache(1, mixed, 8)):
        with pytest.raises(ValueError, match=message):
            call(grouped(2))
    section = {"pattern": PatternSection(dilation=[1, 4, 8, 8], over="heads")}
    with pytest.raises(ValueError, match=message):
        Config(model=ModelSection(layers=2, d_model=64, d_head=16, kv_heads=2), **section)
    Config(model=ModelSection(layers=2, d_model=64, d_head=16), **section)
    # A window changes nothing where everything is seen.
    same = PatternMap.per_head([Pattern(), Pattern(1, 5), Pattern(8), Pattern(8)], 2)
    assert same.per_kv_head(2).rows[0] == (Pattern(), Pattern(8))
    with pytest.raises(ValueError, match="must divide the 4 heads of the patterns"):
        same.per_kv_head(3)


def test_ids_are_new_only_where_heads_share():
    def ids(**model) -> list[str]:
        return [stage.id for stage in plan(Config(model=ModelSection(**model)), {}, 257)]

    assert ids() == ids(kv_heads=None) == ids(kv_heads=4)
    assert all(a != b for a, b in zip(ids(), ids(kv_heads=2), strict=True))


def test_a_model_folder_of_before_loads(tmp_path):
    config = ModelConfig(11, 1, 32, 16, max_len=8)
    folder = save(RATPlus(config), tmp_path / "m")
    facts = json.loads((folder / "config.json").read_text())
    del facts["model"]["kv_heads"]
    (folder / "config.json").write_text(json.dumps(facts))
    assert load(folder, ModelConfig(11, 1, 32, 16, max_len=8, kv_heads=2)).config == config
    shared = save(grouped(2), tmp_path / "shared")
    assert load(shared).config == grouped(2).config
    with pytest.raises(ValueError, match=r"another architecture \(kv_heads=2 there, None asked for\)"):
        load(shared, replace(grouped(2).config, kv_heads=None))


def test_shapes_by_name():
    assert shape_of("ratplus-24x2048x128-kv4", None, 8).kv_heads == 4
    assert shape_of("attention-24x2048x128-kv16", None, 8) == shape_of("attention-24x2048x128", None, 8)
    assert shape_of("ratplus-24x2048x128-kv", None, 8) is None
    with pytest.raises(ValueError, match=r"model\.kv_heads: got 5"):
        shape_of("ratplus-24x2048x128-kv5", None, 8)
    # 24 layers, 4 heads of 128, keys and values in bfloat16.
    patterns = PatternMap.uniform(Pattern(), 24, 16).per_kv_head(4)
    assert kv_bytes(patterns, 1000, 128) == 24 * 4 * 128 * 2 * 2 * 1000
