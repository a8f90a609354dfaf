"""Full forward and training with heads that select blocks, against the definition `Pattern.visible_from`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.model import network
from ratplus.model.head_parts import head_parts
from ratplus.model.network import Mixer
from ratplus.model.rope import rope_tables, rotate

GOLDEN = Path(__file__).parents[2] / "golden" / "topk"
CASES = json.loads((GOLDEN / "topk_golden_public.json").read_text())["cases"]
WHOLE = [n for n, case in CASES.items() if case["method"] == "topk" and "phase" not in case["settings"]]
BLOCKS = [Pattern(top=3, block=4), Pattern(4, 2, 1, top=2, block=4), Pattern(top=3, block=4, score="bounds")]
# Static heads, blocks of two kinds, and different tops side by side.
MIXED = PatternMap(
    (
        (Pattern(4), BLOCKS[0], BLOCKS[1], Pattern(), BLOCKS[2], Pattern(top=5, block=4), Pattern(None, 3), BLOCKS[0]),
        (Pattern(2, top=3, block=3, score="random"),) * 4 + (Pattern(4, top=2, block=3, over="kept"),) * 4,
    )
)


def tiny(**shape) -> RATPlus:
    torch.manual_seed(0)
    config = ModelConfig(**{"vocab_size": 23, "layers": 2, "d_model": 32, "d_head": 4, "max_len": 64} | shape)
    model = RATPlus(config)
    model.reset_parameters(seed=1, std=0.3)
    return model


def masked(q, k, v, mask) -> torch.Tensor:
    """Attention of q [B,H,T,d] over k, v [B,G,T,d] under bool masks [B,H,T,T]."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def defined(self, q, k, v, parts) -> torch.Tensor:
    """`Mixer._attend` by the definition, a head of keys at a time."""
    group = q.shape[1] // k.shape[1]
    rows = {head: p for part in parts for head, p in zip(part.heads, part.row, strict=True)}
    mask = np.stack([
        np.concatenate([
            rows[h].visible_from(q[b, h * group : (h + 1) * group], k[b, h : h + 1], layer=self.layer, head=h)
            for h in range(k.shape[1])
        ])
        for b in range(q.shape[0])
    ])  # fmt: skip
    return masked(q, k, v, torch.from_numpy(mask))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kernels", ["eager", "reference"])
def test_the_oracle_through_a_mixer(name, kernels, monkeypatch):
    monkeypatch.setenv("RATPLUS_KERNELS", kernels)
    arrays, case = np.load(GOLDEN / "topk_golden_public.npz"), CASES[name]
    settings = {{"kind": "score"}.get(key, key): value for key, value in case["settings"].items()}
    pattern = Pattern(**{"dilation": None} | settings)
    q, k, v = (torch.from_numpy(arrays[f"public/{name}/{x}"])[None] for x in "qkv")
    width, heads, groups = case["d_head"], case["heads"], case["kv_heads"]
    mixer = Mixer(
        ModelConfig(vocab_size=2, layers=1, d_model=width * heads, d_head=width, kv_heads=groups, recurrence=False)
    )
    if case["raw_projections"]:
        rope = rope_tables(torch.arange(case["length"]), width, 10000.0)
        k, v, _ = mixer._recur(torch.from_numpy(arrays[f"public/{name}/logit"])[None], k, v, rope)
        q = rotate(q, *rope)
    out = mixer._attend(q, k, v, head_parts((pattern,) * groups))
    expected = torch.from_numpy(arrays[f"public/{name}/out"]).float()
    assert (out[0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [{}, {"recurrence": False}, {"kv_heads": 2}])
def test_logits_are_those_of_the_definition(shape, monkeypatch):
    model = tiny(**shape)
    tokens = torch.randint(0, 23, (2, 29), generator=torch.Generator().manual_seed(2))
    if "kv_heads" in shape:
        pair = (BLOCKS[0],) * 4 + (BLOCKS[1],) * 4
        patterns = PatternMap((pair, (Pattern(4),) * 4 + (Pattern(top=3, block=3, score="random"),) * 4))
    else:
        patterns = MIXED
    with torch.no_grad():
        logits = model(tokens, patterns)
        assert (logits - model(tokens)).abs().max() > 0.1
        monkeypatch.setattr(Mixer, "_attend", defined)
        torch.testing.assert_close(logits, model(tokens, patterns), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
def test_all_blocks_are_dense(score):
    model, tokens = tiny(), torch.randint(0, 23, (2, 29))
    with torch.no_grad():
        found = model(tokens, Pattern(top=1 << 40, block=4, score=score))  # no memory for blocks that are not there
        torch.testing.assert_close(found, model(tokens), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(tokens, Pattern(1, top=2, block=4, score=score)), model(tokens))


def gradients(model, run, tokens, patterns) -> list[torch.Tensor]:
    model.zero_grad()
    logits = run(tokens, patterns)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_gradients_are_those_of_the_definition(monkeypatch):
    model, tokens = tiny(), torch.randint(0, 23, (2, 29))
    found = gradients(model, model, tokens, MIXED)
    monkeypatch.setattr(Mixer, "_attend", defined)
    for a, b in zip(found, gradients(model, model, tokens, MIXED), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_one_graph_and_checkpointing_change_no_gradient():
    model, tokens = tiny(), torch.randint(0, 23, (2, 29))
    plain = gradients(model, model, tokens, MIXED)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for a, b in zip(plain, gradients(model, compiled, tokens, MIXED), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    model.activation_checkpointing = True
    for a, b in zip(plain, gradients(model, model, tokens, MIXED), strict=True):
        torch.testing.assert_close(a, b)


def test_layers_draw_different_random_blocks(monkeypatch):
    seeds = []
    true = network.block_attention
    monkeypatch.setattr(network, "block_attention", lambda *x, **how: seeds.append(how["seed"]) or true(*x, **how))
    with torch.no_grad():
        tiny()(torch.randint(0, 23, (1, 20)), Pattern(top=3, block=3, score="random"))
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ("random3x4", 1), ("random5x4", 1), ("D8-W2-I1-random3x4", 1),  # only `top` and the static part
        ("random3x8", 2), ("top3x4", 2), ("random3x4-nofirst", 2), ("random3x4-seed1", 2), ("random3x4-decode", 2),
        ("D2-krandom3x4", 2), ("D2", 2), ("snap64x8", 2),
    ],
)  # fmt: skip
def test_heads_that_select_in_different_ways_are_computed_apart(other, parts):
    row = tuple(Pattern.from_label(label) for label in ("random3x4", other, "random3x4"))
    found = head_parts(row)
    assert len(found) == parts
    assert sorted(head for part in found for head in part.heads) == [0, 1, 2]
    assert all(part.row == tuple(row[head] for head in part.heads) for part in found)


@pytest.mark.parametrize("label", ["top3x4-decode", "top3x4-prefill", "snap8x4"])
def test_what_depends_on_a_prompt_has_no_logits_of_a_whole_text(label):
    model, pattern = tiny(), Pattern.from_label(label)
    row = (Pattern(),) * 7 + (pattern,)
    with pytest.raises(ValueError, match=rf"what {label} shows depends on where a prompt ends.*eval.niah.tasks"):
        model(torch.zeros(1, 9, dtype=torch.long), PatternMap((row, row)))


def test_heads_that_share_keys_must_agree():
    with pytest.raises(ValueError, match=r"share keys and values .*have top2x4, top3x4"):
        tiny(kv_heads=4)(torch.zeros(1, 9, dtype=torch.long), PatternMap.per_head(
            [Pattern(top=2, block=4), Pattern(top=3, block=4)] * 4, 2))  # fmt: skip
