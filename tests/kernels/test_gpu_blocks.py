"""The Triton kernels of block attention, compiled, on a CUDA device (`make gpu-check`).

Choices are compared by their scores: near ties may fall differently in another order of summation.
"""

import pytest
import torch

from ratplus.kernels import block_attention, block_decode_attention
from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.reference import visible_mask
from ratplus.kernels.blocks.selection import blocks_of_forward
from ratplus.kernels.blocks.settings import Blocks, head_settings

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)


def _views(batch, heads, length, d_head, parts, dtype=BF16):
    z = torch.randn(batch, length, parts * heads * d_head, device="cuda").to(dtype)
    return [x.unflatten(-1, (heads, d_head)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def _mask(ids, static, top, blocks, length, group):
    """bool [B, H, T, S] of what queries may see under the choice `ids` of a whole sequence."""
    batch, heads = ids.shape[:2]
    settings = head_settings(*static, top, heads, blocks)
    rows = [[[x for x in row if x >= 0] for row in ids[b, h].tolist()] for b in range(batch) for h in range(heads)]
    masks = [visible_mask(row, settings[n % heads], blocks, 0, length) for n, row in enumerate(rows)]
    return torch.stack(masks).unflatten(0, (batch, heads)).cuda().repeat_interleave(group, dim=1)


def _errors_under_its_own_choice(inputs, group, static, choice):
    """Relative errors of output and gradients, against masked attention in float64."""
    length, d_head = inputs[0].shape[2:]
    out, ids = block_attention(*inputs, *static, **choice, return_blocks=True)
    blocks = Blocks(**{name: value for name, value in choice.items() if name != "top"})
    mask = _mask(ids, static, choice["top"], blocks, length, group)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q64, k64, v64 = exact[0], *(x.repeat_interleave(group, dim=1) for x in exact[1:])
    scores = (q64 @ k64.transpose(-1, -2) * d_head**-0.5).masked_fill(~mask, float("-inf"))
    expected = torch.softmax(scores, dim=-1) @ v64
    weight = torch.randn(expected.shape, device="cuda", dtype=torch.float64)
    pairs = [(out, expected)]
    gradients = (torch.autograd.grad((x.double() * weight).sum(), y) for x, y in ((out, inputs), (expected, exact)))
    pairs += zip(*gradients, strict=True)
    return [float((x.detach().double() - y.detach()).norm() / y.detach().norm()) for x, y in pairs], ids


def _inputs(dtype, d_head, heads, group, length):
    (q,) = _views(1, heads * group, length, d_head, 1, dtype)
    k, v = _views(1, heads, length, d_head, 2, dtype)
    return [x.detach().requires_grad_() for x in (q, k, v)]


# (dtype, head size, largest error): compiled anew each, so every kind of choice and of sharing is tried with a few.
KINDS = {"bf16": (BF16, 128, 2e-2), "bf16, heads of 64": (BF16, 64, 2e-2), "float32": (torch.float32, 64, 1e-4)}


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("static", [(None, 0, 0), (64, 0, 0), (16, 100, 4)])
@pytest.mark.parametrize(("dtype", "d_head", "limit"), KINDS.values(), ids=KINDS)
def test_attention_under_its_own_choice(record_property, dtype, d_head, limit, static, group):
    inputs = _inputs(dtype, d_head, 2, group, 700)
    errors, _ = _errors_under_its_own_choice(inputs, group, static, {"top": 4, "block": 64, "score": "bounds"})
    record_property("relative errors of output and gradients", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= limit for error in errors), errors


CHOICES = {
    "means in fp16": (torch.float16, 1, (None, 0, 0), {"top": 4, "block": 64}),
    "random blocks": (BF16, 1, (64, 0, 0), {"top": 4, "block": 64, "score": "random", "seed": 3}),
    "each head its own": (BF16, 4, ([64, -1], [0, 40], [0, 3]), {"top": [4, 0], "block": 64}),
    "dilated keys in blocks": (BF16, 1, (None, 20, 2), {"top": 3, "block": 16, "stride": 4, "first": False}),
    "eight heads share keys": (BF16, 8, (None, 0, 0), {"top": 4, "block": 64, "score": "bounds"}),
    "more blocks than registers hold": (BF16, 1, (64, 0, 0), {"top": 40, "block": 16}),
    "blocks that fill no tile": (BF16, 1, (16, 9, 0), {"top": 5, "block": 12}),
}


@pytest.mark.parametrize(("dtype", "group", "static", "choice"), CHOICES.values(), ids=CHOICES)
def test_kinds_of_choices(record_property, dtype, group, static, choice):
    """Output and gradients under its own choice; and that choice beside PyTorch's on the same device."""
    static = [torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x for x in static]
    tops = torch.tensor(choice["top"], dtype=torch.int32).expand(2).contiguous()
    choice = choice | {"top": tops if isinstance(choice["top"], list) else choice["top"]}
    inputs = _inputs(dtype, 64, 2, group, 800)
    errors, ids = _errors_under_its_own_choice(inputs, group, static, choice)
    blocks = Blocks(**{name: value for name, value in choice.items() if name != "top"})
    q, k, _ = (x.detach() for x in inputs)
    expected = blocks_of_forward(q, k, None, 0, tops.cuda(), blocks, ids.shape[3])
    same = float((ids.sort(dim=3).values == expected.sort(dim=3).values).all(dim=3).float().mean())
    record_property("relative errors, share of equal choices", " ".join(f"{x:.1e}" for x in errors) + f" {same:.4f}")
    assert all(error <= 2e-2 for error in errors), errors
    assert same > (0.99 if blocks.score != "random" else 0.9999)  # near ties alone; random numbers are the same


@pytest.mark.parametrize(("dtype", "d_head"), [(BF16, 128), (torch.float16, 128), (BF16, 64), (BF16, 256)])
@pytest.mark.parametrize("group", [1, 4])
def test_scores_on_tensor_cores_are_exact_to_float32(record_property, group, dtype, d_head):
    from ratplus.kernels.blocks import fused_scores
    from ratplus.kernels.blocks.selection import score_blocks

    (q,), (k,) = _views(2, 4 * group, 700, d_head, 1, dtype), _views(2, 4, 1400, d_head, 1, dtype)
    metadata, start = block_metadata(k, 16), torch.tensor([300, 700], device="cuda")
    blocks, heads = Blocks(16), torch.arange(4, device="cuda")
    found = fused_scores.scores(q, fused_scores.factors(metadata, dtype), start, 10, 700, 87, 96, blocks)[..., :87]
    exact, sizes = (
        score_blocks(*x, start[:, None], blocks, heads)[:, :, 10:]
        for x in ((q.double(), metadata.double()), (q.double().abs(), metadata.double().abs()))
    )
    own = (start[:, None] + torch.arange(10, 700, device="cuda")) // 16
    rival = (torch.arange(87, device="cuda") < own[:, :, None])[:, None].expand_as(found)
    worst = float(((found.double() - exact).abs() / sizes)[rival].max())
    record_property("worst error, of the products' sizes", f"{worst:.1e}")
    assert worst < 2e-6


@pytest.mark.parametrize("score", ["mean", "bounds"])
def test_ragged_chunks_equal_the_whole(record_property, score):
    """Chunks at positions of their own for each sequence: within bf16's noise where the choice is the same."""
    choice = {"top": 4, "block": 32, "score": score}
    q, k, v = _views(2, 4, 512, 64, 3)
    whole, ids = block_attention(q, k, v, 32, 8, 0, **choice, return_blocks=True)
    start, width = torch.tensor([64, 229], device="cuda"), 130
    rows = start[:, None] + torch.arange(width, device="cuda")
    of_queries = rows[:, None, :, None].expand(2, 4, width, 64)
    out, chosen = block_attention(
        q.gather(2, of_queries), k, v, 32, 8, 0, **choice, start=start, return_blocks=True
    )  # fmt: skip
    agree = (chosen == ids.gather(2, rows[:, None, :, None].expand_as(chosen))).all(dim=3)
    worst = float((out.float() - whole.gather(2, of_queries).float()).abs().amax(dim=3).where(agree, 0.0).max())
    record_property("worst difference, share of equal choices", f"{worst:.1e} {float(agree.float().mean()):.4f}")
    assert worst < 2e-2
    assert float(agree.float().mean()) > 0.99


def test_equal_scores_go_to_the_earlier_block():
    """Also minus infinity and equal keys throughout."""
    k = torch.ones(1, 2, 1024, 64, device="cuda", dtype=BF16)
    q, v = torch.ones_like(k), torch.randn_like(k)
    _, ids = block_attention(q, k, v, None, 0, 0, top=4, block=16, return_blocks=True)
    assert ids[0, 0, -1].tolist() == [63, 0, 1, 2]
    k[:, :, 16:512] = float("-inf")
    _, ids = block_attention(q, k, v, None, 0, 0, top=4, block=16, return_blocks=True)
    assert ids[0, 1, -1].tolist() == [63, 0, 32, 33]
    assert ids[0, 1, 511].tolist() == [31, 0, 1, 2]


def test_steps_in_a_graph_equal_the_full_forward(record_property):
    """One captured step, replayed at every position of a ragged batch, over the borders of blocks."""
    batch, heads, d_head, length = 2, 4, 64, 300
    static, choice = (32, 8, 2), {"top": 3, "block": 16, "score": "bounds"}
    q, k, v = _views(batch, heads, length, d_head, 3, torch.float32)
    full, ids = block_attention(q, k, v, *static, **choice, return_blocks=True)
    keys, values = (torch.zeros(batch, heads, length, d_head, device="cuda") for _ in range(2))
    metadata = torch.zeros_like(block_metadata(k, 16, "bounds"))
    token = [torch.zeros(batch, heads, d_head, device="cuda") for _ in range(3)]
    positions = torch.zeros(batch, dtype=torch.int64, device="cuda")

    def step():
        return block_decode_attention(
            *token, None, keys, values, metadata, None, positions, *static, **choice, return_blocks=True
        )

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, chosen = step()
    for x in (keys, values, metadata):
        x.zero_()
    worst, same = torch.zeros((), device="cuda"), torch.zeros((), device="cuda")
    rows, lag = torch.arange(batch, device="cuda"), torch.tensor([0, 5], device="cuda")
    for t in range(length):
        positions.copy_((t - lag).clamp(min=0))
        for target, source in zip(token, (q, k, v)):
            target.copy_(source[rows, :, positions])
        graph.replay()
        agree = (chosen == ids[rows, :, positions]).all(dim=2)
        same += agree.float().mean() / length
        difference = (out - full[rows, :, positions]).abs().amax(dim=2)
        worst = torch.maximum(worst, difference.where(agree, 0.0).max())
    record_property("worst difference, share of equal choices", f"{worst.item():.1e} {same.item():.4f}")
    assert worst.item() < 1e-4
    assert same.item() > 0.99  # near ties alone


@pytest.mark.parametrize("score", ["mean", "bounds"])
def test_steps_in_bf16_in_a_graph(record_property, score):
    """A ragged batch whose query heads share keys: one captured step against the full forward pass."""
    batch, heads, group, d_head, length, block = 3, 2, 4, 128, 640, 32
    choice = {"top": 5, "block": block, "score": score}
    (q,) = _views(batch, heads * group, length, d_head, 1)
    k, v = _views(batch, heads, length, d_head, 2)
    full, ids = block_attention(q, k, v, 64, 0, 0, **choice, return_blocks=True)
    lag = torch.tensor([0, 7, 300], device="cuda")
    begin = 600
    # Keys behind a sequence's position are another's, as in a cache that was used before: nothing may see them.
    keys, values = k.contiguous(), v.contiguous()
    for b, n in enumerate(lag.tolist()):
        keys[b, :, begin - n :], values[b, :, begin - n :] = 7.0, 7.0
    metadata = block_metadata(keys, block, score)
    token = [torch.zeros(batch, n, d_head, device="cuda", dtype=BF16) for n in (heads * group, heads, heads)]
    positions = begin - lag
    held = [x.clone() for x in (keys, values, metadata)]

    def step():
        return block_decode_attention(
            *token, None, keys, values, metadata, None, positions, 64, 0, 0, **choice, return_blocks=True
        )

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, chosen = step()
    for x, before in zip((keys, values, metadata), held, strict=True):
        x.copy_(before)
    rows, errors, same = torch.arange(batch, device="cuda"), [], []
    for t in range(begin, length):
        positions.copy_(t - lag)
        for target, source in zip(token, (q, k, v)):
            target.copy_(source[rows, :, positions])
        graph.replay()
        agree = (chosen.sort(dim=2).values == ids[rows, :, positions].sort(dim=2).values).all(dim=2)
        difference = (out - full[rows, :, positions]).float().abs().amax(dim=2).unflatten(1, (heads, group)).amax(dim=2)
        errors.append(difference.where(agree, 0.0).max())
        same.append(agree.float().mean())
    worst, share = float(torch.stack(errors).max()), float(torch.stack(same).mean())
    record_property("worst difference, share of equal choices", f"{worst:.1e} {share:.4f}")
    assert worst < 3e-2
    assert share > 0.97


def test_sixty_five_thousand_tokens(record_property):
    """Finite everywhere; the outputs of some rows and the gradients of their sum in float32, from what they may see."""
    heads, length, d_head, top, block, dilation = 4, 65536, 128, 8, 64, 64
    inputs = [x.detach().requires_grad_() for x in _views(1, heads, length, d_head, 3)]
    out, ids = block_attention(*inputs, dilation, 0, 0, top=top, block=block, return_blocks=True)
    rows = torch.tensor([0, 63, 64, 511, 4097, 32768, 65000, 65535], device="cuda")
    gradients = torch.autograd.grad(out[:, :, rows].float().sum(), inputs)
    assert all(x.isfinite().all() for x in (out, *gradients))
    exact = [torch.zeros(heads, length, d_head, device="cuda") for _ in range(2)]
    errors = []
    q, k, v = (x.detach()[0].float() for x in inputs)
    for t in rows.tolist():
        position = torch.arange(t + 1, device="cuda")
        for h in range(heads):
            seen = torch.isin(position // block, ids[0, h, t]) | ((position + 1) % dilation == 0) | (position == t)
            at = position[seen]
            weights = (k[h, at] @ q[h, t] * d_head**-0.5).softmax(0)
            expected = weights @ v[h, at]
            errors.append((out[0, h, t].float() - expected).norm() / expected.norm())
            d_weights = v[h, at].sum(dim=1)
            d_scores = weights * (d_weights - (weights * d_weights).sum()) * d_head**-0.5
            exact[0][h].index_add_(0, at, d_scores[:, None] * q[h, t])
            exact[1][h].index_add_(0, at, weights[:, None].expand(-1, d_head))
            d_query = d_scores @ k[h, at]
            if t:  # alone, a query's softmax is 1 whatever it is
                errors.append((gradients[0][0, h, t].float() - d_query).norm() / d_query.norm())
    of_keys = [float((x[0].float() - y).norm() / y.norm()) for x, y in zip(gradients[1:], exact, strict=True)]
    worst = float(torch.stack(errors).max())
    record_property("worst row; dK, dV", f"{worst:.1e} " + " ".join(f"{x:.1e}" for x in of_keys))
    assert worst < 3e-2
    assert max(of_keys) < 2e-2


@pytest.mark.parametrize("dilation", [None, 64])
def test_results_are_bitwise_repeatable(dilation):
    """Output, choice and gradients."""
    inputs = [x.detach().requires_grad_() for x in _views(2, 4, 4096, 128, 3)]

    def run():
        out, ids = block_attention(*inputs, dilation, 0, 0, top=8, block=64, return_blocks=True)
        return [out.detach(), ids, *torch.autograd.grad(out, inputs, weight)]

    weight = torch.randn(2, 4, 4096, 128, device="cuda", dtype=BF16)
    first = run()
    for turn in range(10):
        assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True)), turn


def test_compiled_in_one_graph(record_property):
    """`torch.compile(fullgraph=True)` on CUDA: output and gradients are the plain call's."""
    inputs = [x.detach().requires_grad_() for x in _views(1, 2, 512, 64, 3)]
    weight = torch.randn(1, 2, 512, 64, device="cuda", dtype=BF16)

    def layer(q, k, v):
        return block_attention(q * 2, k, v, 32, 8, 0, top=4, block=32) + v

    results = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, weight)])
    errors = [float((x - y).detach().float().norm() / x.detach().float().norm()) for x, y in zip(*results, strict=True)]
    record_property("relative differences", " ".join(f"{x:.1e}" for x in errors))
    assert max(errors) < 1e-2
