"""Attention to selected blocks: eager against the float64 definition, its choice, its gradients, what it may read."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from helpers import GOLDEN, golden, gradients, projections, rope_tables

from ratplus.kernels import block_attention, dilated_attention, gated_scan
from ratplus.kernels.bench.timing import peak_bytes
from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.pairs import attend, attend_by_products, pairs_of_rows
from ratplus.kernels.blocks.reference import block_attention_reference, block_scores, visible_mask
from ratplus.kernels.blocks.selection import ABSENT, choose, layer_seed, random_scores, ranks
from ratplus.kernels.blocks.settings import Blocks, head_settings
from ratplus.kernels.blocks.tiles import TilePlan
from ratplus.kernels.scan.reference import rotate

ALL = 1000


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    """Few rows at a time, so that short sequences and few heads meet every border."""
    monkeypatch.setattr("ratplus.kernels.blocks.selection.SCORES_LIMIT", {"cpu": 200})
    monkeypatch.setattr("ratplus.kernels.blocks.tiles.SCORES_LIMIT", 2000)
    monkeypatch.setattr("ratplus.kernels.blocks.tiles.TILE", 8)
    torch.manual_seed(0)


def _inputs(length, heads=2, group=1, batch=2, d_head=8, keys=None):
    """float64 leaves q, k, v; `keys` of them (None: as many as queries)."""
    (q,) = projections(batch, heads * group, length, d_head, parts=1, dtype=torch.float64)
    k, v = projections(batch, heads, keys or length, d_head, parts=2, dtype=torch.float64)
    return [x.detach().requires_grad_() for x in (q, k, v)]


def _check(length, static=(None, 0, 0), *, top, block, heads=2, group=1, start=0, keys=None, **choice):
    """Blocks as the definition chooses them; output and gradients as under them."""
    q, k, v = inputs = _inputs(length, heads, group, keys=keys)
    blocks = Blocks(block, **choice)
    settings = head_settings(*static, top, heads, blocks)
    starts = start.tolist() if isinstance(start, torch.Tensor) else [start] * 2
    slots = max(setting.top for setting in settings)
    expected, _, chosen = block_attention_reference(q, k, v, settings, blocks, list(range(heads)), starts, slots)
    out, ids = block_attention(q, k, v, *static, top=top, block=block, start=start, return_blocks=True, **choice)
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    for x, y in zip(gradients([out], inputs), gradients([expected], inputs), strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=0)


TOPK = golden("topk/topk_golden_public")
CASES = json.loads((GOLDEN / "topk" / "topk_golden_public.json").read_text())["cases"]


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["method"] == "topk"])
def test_cases_of_the_oracle(monkeypatch, name, implementation):
    """Blocks and output of an independent oracle in float64."""
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    settings = dict(CASES[name]["settings"])
    q, k, v, picked, expected = (torch.tensor(TOPK[f"public/{name}/{x}"]) for x in ("q", "k", "v", "picked", "out"))
    if CASES[name]["raw_projections"]:
        tables = rope_tables(torch.arange(q.shape[1]), q.shape[2])
        k, v, _ = (
            x[0] for x in gated_scan(torch.tensor(TOPK[f"public/{name}/logit"])[None], k[None], v[None], rope=tables)
        )
        q = rotate(q, *tables)
    dilation, kept = settings.get("dilation"), settings.get("over") == "kept"
    prompt = settings.get("prompt", 0) if settings.get("phase") == "decode" else 0  # before it everything is visible
    out, ids = block_attention(
        q[None, :, prompt:], k[None], v[None], None if kept else dilation, settings.get("window", 0),
        settings.get("sinks", 0), top=settings["top"], block=settings["block"], score=settings.get("kind", "mean"),
        first=settings.get("first", True), stride=dilation if kept else 1, start=prompt, return_blocks=True,
    )  # fmt: skip
    count = picked.shape[2]
    found = torch.zeros(*ids.shape[1:3], count + 1, dtype=torch.bool).scatter_(2, ids[0].long() % (count + 1), True)
    assert torch.equal(found[..., :count], picked[:, prompt:].bool())
    torch.testing.assert_close(out[0].double(), expected[:, prompt:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_matches_float64_definition(block, score):
    for length in sorted({1, block - 1, block, block + 1, 3 * block + 2} - {0}):
        for top, first in ((1, False), (2, True), (3, False), (ALL, True)):
            _check(length, top=top, block=block, score=score, first=first)


@pytest.mark.parametrize("static", [(4, 0, 0), (3, 5, 0), (None, 0, 3), (None, 9, 2), (2, 40, 5), (1, 0, 0)])
def test_with_a_static_pattern(static):
    for top, first in ((2, True), (3, False), (0, True)):
        _check(37, static, top=top, block=4, first=first)


@pytest.mark.parametrize("stride", [2, 3])
def test_blocks_of_dilated_keys(stride):
    for static in ((None, 0, 0), (None, 5, 3)):
        for score in ("mean", "bounds"):
            _check(41, static, top=2, block=4, first=False, stride=stride, score=score)


@pytest.mark.parametrize(("heads", "group"), [(1, 4), (2, 2)])
def test_query_heads_that_share_keys_choose_together(heads, group):
    for static, score in product(((None, 0, 0), (4, 3, 2)), ("mean", "bounds", "random")):
        _check(30, static, top=3, block=4, heads=heads, group=group, score=score)


def test_settings_of_each_head():
    static = [torch.tensor(x, dtype=torch.int32) for x in ([-1, 4, 1, 4], [5, 0, 0, 0], [4, 0, 0, 0])]
    _check(37, static, top=torch.tensor([0, 3, 2, 5], dtype=torch.int32), block=4, heads=4, group=2)


@pytest.mark.parametrize("start", [5, 8, torch.tensor([3, 17])])
@pytest.mark.parametrize("static", [(None, 0, 0), (4, 6, 2)])
def test_a_chunk_of_queries_over_a_longer_buffer_of_keys(start, static):
    for length in (1, 13):
        _check(length, static, top=3, block=4, start=start, keys=40)


def test_chunks_equal_one_pass_and_take_metadata_of_a_cache():
    q, k, v = (x.detach().float() for x in _inputs(50))
    setting = {"top": 3, "block": 4, "score": "bounds"}
    full, ids = block_attention(q, k, v, 8, 3, 0, **setting, return_blocks=True)
    metadata = block_metadata(k, 4, "bounds")
    assert metadata.shape == (2, 2, 12, 2, 8)
    for first, last in ((0, 7), (7, 8), (8, 31), (31, 50)):
        out, some = block_attention(
            q[:, :, first:last], k, v, 8, 3, 0, **setting, start=first, metadata=metadata, return_blocks=True
        )
        assert torch.equal(some, ids[:, :, first:last])
        torch.testing.assert_close(out, full[:, :, first:last], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("queries", "keys", "causal"), [(5, 5, True), (5, 5, False), (3, 7, False), (1, 1, True)])
def test_products_are_what_the_cpu_has_a_kernel_for(queries, keys, causal):
    """On other devices blocks and tiles are attended to by products; here both ways can be compared."""
    q, k, v = (torch.randn(2, 3, n, 8) for n in (queries, keys, keys))
    for found, expected in zip(attend_by_products(q, k, v, causal), attend(q, k, v, causal), strict=True):
        torch.testing.assert_close(found, expected)


def test_all_blocks_are_dense_attention():
    q, k, v = (x.detach().float() for x in _inputs(50))
    dense = dilated_attention(q, k, v, 1, 0, 0)
    for static in ((None, 0, 0), (4, 3, 2)):
        out = block_attention(q, k, v, *static, top=ALL, block=4)
        torch.testing.assert_close(out, dense, atol=1e-6, rtol=0)
        out = block_attention(q, k, v, *static, top=12, block=4, first=False)  # of 13: one is left out at the end
        assert not torch.allclose(out[:, :, -1], dense[:, :, -1], atol=1e-3)
        torch.testing.assert_close(out[:, :, :48], dense[:, :, :48], atol=1e-6, rtol=0)


@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
def test_the_future_changes_nothing(score):
    q, k, v = (x.detach().float() for x in _inputs(40))
    setting = {"top": 3, "block": 4, "score": score, "return_blocks": True}
    out, ids = block_attention(q, k, v, 8, 0, 0, **setting)
    for last in (1, 7, 8, 22):
        later = [x.clone() for x in (q, k, v)]
        for x in later:
            x[:, :, last:] = 50 * torch.randn_like(x[:, :, last:])
        changed, others = block_attention(*later, 8, 0, 0, **setting)
        assert torch.equal(others[:, :, :last], ids[:, :, :last])
        torch.testing.assert_close(changed[:, :, :last], out[:, :, :last], atol=1e-6, rtol=0)


def test_equal_scores_go_to_the_earlier_block():
    """Keys that are all alike: every score is the same, for every score."""
    q, k, v = (x.detach().float() for x in _inputs(24))
    k = torch.ones_like(k)
    for score in ("mean", "bounds"):
        _, ids = block_attention(q, k, v, None, 0, 0, top=4, block=4, score=score, return_blocks=True)
        assert ids[0, 0, -1].tolist() == [5, 0, 1, 2]
        assert ids[0, 0, 4].tolist() == [1, 0, ABSENT, ABSENT]
        assert ids[0, 0, 0].tolist() == [0, ABSENT, ABSENT, ABSENT]


def test_scores_that_are_told_apart_keep_their_order():
    above = torch.nextafter(torch.tensor(3.0), torch.tensor(4.0)).item()
    extremes = [-0.0, 0.0, 1e-45, -1e-45, 0.0, torch.inf, -torch.inf, 3.4e38, torch.inf, -3.4e38]
    values = torch.tensor(extremes + [3.0, above, 3.0, -above, -3.0, -3.0] * 1000)
    apart = ranks(values)
    assert len(set(apart.tolist())) == len(values)
    assert apart.argsort(descending=True).tolist() == values.argsort(descending=True, stable=True).tolist()


def test_minus_infinity_is_a_score_and_a_missing_block_is_none():
    """A block whose score is -inf may win where nothing better is left; a block of the future never does."""
    scores = torch.full((1, 1, 1, 6), torch.inf)
    scores[..., :3] = -torch.inf
    top = torch.tensor([5], dtype=torch.int32)
    ids = choose(scores, torch.tensor([[3 * 4]]), top, Blocks(4, first=False), slots=5)
    assert ids.flatten().tolist() == [3, 0, 1, 2, ABSENT]


def test_order_of_keys_within_a_past_block_does_not_matter_to_the_choice():
    q, k, v = (x.detach() for x in _inputs(40))
    mixed = k.unflatten(2, (10, 4))[:, :, :, torch.tensor([2, 0, 3, 1])].flatten(2, 3)
    for score in ("mean", "bounds"):
        setting = {"top": 3, "block": 4, "score": score, "return_blocks": True}
        ids = [block_attention(q, x, v, None, 0, 0, **setting)[1] for x in (k, mixed)]
        assert torch.equal(*ids)


def test_bounds_are_bounds():
    q, k, _ = (x.detach() for x in _inputs(40))
    scores = block_scores(q[0, :1], k[0, 0], Blocks(4, "bounds"), 0, 0)
    logits = (q[0, 0] @ k[0, 0].T).unflatten(1, (10, 4)).amax(dim=2)
    assert (scores >= logits - 1e-12).all()


def test_random_scores_are_a_function_of_place():
    t, b = torch.arange(300)[:, None], torch.arange(64)
    scores = random_scores(3, 1, t, b)
    assert torch.equal(random_scores(3, 1, t[70:90], b[:5]), scores[70:90, :5])
    for other in (random_scores(4, 1, t, b), random_scores(3, 2, t, b)):
        assert (other == scores).float().mean() < 1e-3
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.01
    # Neighbours, in time or among blocks, are not alike.
    for x, y in ((scores[1:], scores[:-1]), (scores[:, 1:], scores[:, :-1])):
        assert abs(torch.corrcoef(torch.stack((x.flatten(), y.flatten())))[0, 1]) < 0.03


def test_random_scores_are_those_of_patterns():
    """A pattern's definition, in NumPy, draws what the operators draw."""
    from ratplus.pattern.selection import random_scores as defined

    heads, t, b = np.arange(3), np.arange(20), np.arange(9)
    for seed, layer in ((0, 0), (7, 2)):
        ours = random_scores(
            layer_seed(seed, layer), torch.tensor(heads)[:, None, None], torch.tensor(t)[:, None], torch.tensor(b)
        )
        assert np.array_equal(ours.numpy(), defined(seed, layer, heads, t, 9))


def test_half_precision_scores_and_accumulates_in_float32():
    half = [x.detach().bfloat16().requires_grad_() for x in _inputs(70, d_head=32)]
    exact = [x.detach().float().requires_grad_() for x in half]
    out, ids = block_attention(*half, 8, 0, 0, top=3, block=4, return_blocks=True)
    expected, chosen = block_attention(*exact, 8, 0, 0, top=3, block=4, return_blocks=True)
    assert torch.equal(ids, chosen)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 2e-2
    for x, y in zip(gradients([out], half), gradients([expected], exact), strict=True):
        assert x.dtype == torch.bfloat16
        assert (x - y).norm() / y.norm() < 1e-2


def test_the_backward_pass_keeps_the_choice_of_the_forward_pass(monkeypatch):
    """It neither chooses again nor looks at metadata: it must not matter that both would fail."""
    inputs = [x.detach().float().requires_grad_() for x in _inputs(30)]
    out, ids = block_attention(*inputs, 8, 0, 0, top=3, block=4, return_blocks=True)
    assert not ids.requires_grad
    for place in ("eager.blocks_of_forward", "selection.select_blocks", "selection.summarise"):
        monkeypatch.setattr(f"ratplus.kernels.blocks.{place}", None)
    q, k, v = inputs
    settings = head_settings(8, 0, 0, 3, 2, Blocks(4))
    chosen = [[[x for x in row if x != ABSENT] for row in ids[b, h].tolist()] for b in range(2) for h in range(2)]
    masks = [visible_mask(rows, settings[0], Blocks(4), 0, 30) for rows in chosen]
    mask = torch.stack(masks).view(2, 2, 30, 30)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for x, y in zip(gradients([out], inputs), gradients([expected], inputs), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


def test_gradcheck():
    q, k, v = (x.detach()[:1, :1].requires_grad_() for x in _inputs(14, d_head=4))

    def attend(q, k, v):
        return block_attention(q, k, v, 4, 2, 1, top=2, block=2)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("pattern", [(64, 0, 0), (None, 30, 2)])
def test_no_square_object_at_long_length(monkeypatch, pattern):
    """T = 8000 would need 256 MB for one float32 score matrix, 64 MB for one of booleans."""
    monkeypatch.undo()  # tiles of the size that users have
    q, k, v = (x.detach().requires_grad_() for x in projections(1, 1, 8000, 4, parts=3))

    def both_ways(block):
        out = block_attention(q, k, v, *pattern, top=4, block=block)
        return out, torch.autograd.grad(out.sum(), (q, k, v))

    assert 0 < peak_bytes(lambda: both_ways(64), "cpu") < 40e6


@pytest.mark.parametrize(
    ("static", "choice", "message"),
    [
        ((None, 0, 0), {"top": 1, "block": 4}, "top is 1; it counts every block .* give at least 2, or 0"),
        ((None, 0, 0), {"top": -1, "block": 4, "first": False}, "top is -1; .* give at least 1, or 0"),
        ((None, 0, 0), {"top": 2, "block": 0}, "block is 0; it must be a whole number ≥ 1"),
        ((None, 0, 0), {"top": 2, "block": 4, "stride": 1.5}, "stride is 1.5; it must be a whole number"),
        ((None, 0, 0), {"top": 2, "block": 4, "score": "max"}, "score is 'max'; use one of mean, bounds, random"),
        ((0, 0, 0), {"top": 2, "block": 4}, "dilation is 0; it must be at least 1"),
        ((None, 0, 0), {"top": [2, 2, 2], "block": 4}, "top is .* one int for each of the 2 heads"),
        ((None, 0, 0), {"top": 4, "slots": 3, "block": 4}, "slots is 3; some head reads 4 blocks"),
        ((None, 0, 0), {"top": 4, "block": 4, "start": 1}, "8 queries from position 1 on .* there are 8"),
        (
            (None, 0, 0),
            {"top": 4, "block": 4, "metadata": torch.zeros(1, 2, 2, 2, 4)},
            r"must be \[1, 2, blocks, 1, 4\]",
        ),
    ],
)
def test_clear_errors(static, choice, message):
    q, k, v = projections(1, 2, 8, 4, parts=3)
    with pytest.raises(ValueError, match=message):
        block_attention(q, k, v, *static, **choice)
    with pytest.raises(ValueError, match="q must be .*, k and v .* a number of heads that divides q's"):
        block_attention(q, k[:1, :, :, :2], v, *static, top=2, block=4)


@pytest.mark.parametrize(("group", "pieces"), [(1, [4, 2]), (2, [2, 2, 2]), (3, [1] * 6), (50, [1] * 6)])
def test_rows_whose_pairs_are_joined_stay_below_a_limit(monkeypatch, group, pieces):
    """Six rows of four queries with three slots each; with every row of keys come `group` heads of queries."""
    monkeypatch.setattr("ratplus.kernels.blocks.pairs.PAIRS_AT_ONCE", 4 * 12)
    past = torch.zeros(6, 4, 3, dtype=torch.int32)
    found = list(pairs_of_rows(past, Blocks(4), group))
    assert [len(range(6)[rows]) for rows, _ in found] == pieces
    assert [pairs.count for _, pairs in found] == [12 * many for many in pieces]
    assert list(pairs_of_rows(past[:0], Blocks(4), group)) == []


def test_scores_of_a_tile_stay_below_a_limit(monkeypatch):
    """Of rows that are scored together, each with its heads of queries; one at least, however large it is."""
    monkeypatch.setattr("ratplus.kernels.blocks.tiles.SCORES_LIMIT", 1000)
    (setting,) = head_settings(4, 3, 2, 2, 1, Blocks(8))
    plan = TilePlan(setting, Blocks(8), 0, 40, torch.device("cpu"))
    widest = max((tile.stop - tile.start) * tile.columns for tile in plan.tiles)
    assert 100 < widest < 250
    for group in (1, 2, 3):
        chunk = plan.row_chunk(group)
        assert chunk * widest * group <= 1000 < (chunk + 1) * widest * group
    assert plan.row_chunk(100) == 1
