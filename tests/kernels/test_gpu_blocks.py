"""The Triton kernels of block attention, compiled, on a CUDA device (`make gpu-check`).

Choices are compared by their scores: near ties may fall differently in another order of summation.
"""

import pytest
import torch

from ratplus.kernels import block_attention, block_decode_attention
from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.reference import visible_mask
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


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("static", [(None, 0, 0), (64, 0, 0), (16, 100, 4)])
@pytest.mark.parametrize(("dtype", "d_head", "limit"), [(BF16, 128, 2e-2), (BF16, 64, 2e-2), (torch.float32, 64, 1e-4)])
def test_attention_under_its_own_choice(record_property, dtype, d_head, limit, static, group):
    heads, length, choice = 2, 700, {"top": 4, "block": 64, "score": "bounds"}
    (q,) = _views(1, heads * group, length, d_head, 1, dtype)
    k, v = _views(1, heads, length, d_head, 2, dtype)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out, ids = block_attention(*inputs, *static, **choice, return_blocks=True)
    blocks = Blocks(64, "bounds")
    settings = head_settings(*static, 4, heads, blocks)
    chosen = [[[x for x in row if x >= 0] for row in ids[0, h].tolist()] for h in range(heads)]
    masks = [visible_mask(rows, setting, blocks, 0, length) for rows, setting in zip(chosen, settings, strict=True)]
    mask = torch.stack(masks).cuda().repeat_interleave(group, dim=0)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q64, k64, v64 = exact[0], *(x.repeat_interleave(group, dim=1) for x in exact[1:])
    scores = (q64 @ k64.transpose(-1, -2) * d_head**-0.5).masked_fill(~mask, float("-inf"))
    expected = torch.softmax(scores, dim=-1) @ v64
    weight = torch.randn(expected.shape, device="cuda", dtype=torch.float64)
    pairs = [(out, expected)]
    gradients = (torch.autograd.grad((x.double() * weight).sum(), y) for x, y in ((out, inputs), (expected, exact)))
    pairs += zip(*gradients, strict=True)
    errors = [float((x.double() - y).norm() / y.norm()) for x, y in pairs]
    record_property("relative errors of output and gradients", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= limit for error in errors), errors


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


def test_results_are_bitwise_repeatable():
    inputs = [x.detach().requires_grad_() for x in _views(1, 4, 4096, 128, 3)]

    def run():
        out = block_attention(*inputs, 64, 0, 0, top=8, block=64)
        return out.detach()

    first = run()
    for turn in range(10):
        assert torch.equal(first, run()), turn
