"""The Triton kernels compiled, on a CUDA device (`pytest -m gpu`): bf16 accuracy, repeatability, long inputs, graphs.

An error is judged by the one that plain bf16 arithmetic makes: the eager path on the same bf16 inputs, both against the
reference in float64 (on the same inputs).
"""

import pytest
import torch

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.attention.patterns import head_patterns
from ratplus.kernels.attention.reference import dilated_attention_reference
from ratplus.kernels.decode.layout import slot_counts
from ratplus.kernels.scan.reference import gated_scan_reference

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


def _tables(length, d_head):
    frequency = 10000.0 ** (-torch.arange(0, d_head, 2, device="cuda", dtype=torch.float64) / d_head)
    angle = torch.arange(length, device="cuda").unsqueeze(-1) * frequency
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)


def _no_worse_than_eager(monkeypatch, run, exact):
    """run(): [outputs, gradients] on the default path and forced eager; exact: the same in float64."""
    fused = run()
    monkeypatch.setenv("RATPLUS_KERNELS", "eager")
    eager = run()
    monkeypatch.delenv("RATPLUS_KERNELS")
    for kind, factor in ((0, 2), (1, 3)):
        for ours, theirs, truth in zip(fused[kind], eager[kind], exact[kind]):
            ours, theirs = ((x.double() - truth).norm() / truth.norm() for x in (ours, theirs))
            assert ours <= factor * theirs + 1e-4, (kind, float(ours), float(theirs))


def _with_gradients(outputs, inputs):
    generator = torch.Generator("cuda").manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator, device="cuda", dtype=torch.float64) for x in outputs]
    loss = sum((x.double() * w).sum() for x, w in zip(outputs, weights))
    return list(outputs), list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize(
    ("batch", "heads", "length", "d_head"), [(2, 4, 500, 128), (1, 2, 2048, 64), (64, 16, 129, 128)]
)
def test_scan_in_bf16(monkeypatch, batch, heads, length, d_head):
    logit, k, v = (x.detach().requires_grad_() for x in _views(batch, heads, length, d_head, 3))
    tables = _tables(length, d_head)
    exact = [x.detach().double().requires_grad_() for x in (logit, k, v)]
    k_tilde, v_tilde, final = gated_scan_reference(*exact, rope=tables)
    exact = _with_gradients([k_tilde, v_tilde, *final], exact)

    def run():
        k_tilde, v_tilde, final = gated_scan(logit, k, v, rope=tables)
        return _with_gradients([k_tilde, v_tilde, *final], [logit, k, v])

    _no_worse_than_eager(monkeypatch, run, exact)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("d_head", [64, 128])
@pytest.mark.parametrize("pattern", [(16, 256, 4), (64, 0, 0), (4, 0, 0), (None, 100, 4), "mixed"])
def test_attention_in_bf16(monkeypatch, pattern, d_head, group):
    """group: query heads that share each of the heads of keys."""
    heads, length = 4, 1500
    if pattern == "mixed":
        columns = ([1, 16, -1, 64], [0, 256, 300, 0], [0, 4, 4, 130])
        pattern = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in columns]
    k, v = (x.detach().requires_grad_() for x in _views(2, heads, length, d_head, 2))
    q = _views(2, heads * group, length, d_head, 1)[0].detach().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, _ = dilated_attention_reference(*exact, head_patterns(*pattern, heads))
    exact = _with_gradients([out], exact)
    _no_worse_than_eager(monkeypatch, lambda: _with_gradients([dilated_attention(q, k, v, *pattern)], [q, k, v]), exact)


def test_results_are_bitwise_repeatable():
    q, k, v, logit = (x.detach().requires_grad_() for x in _views(2, 8, 3000, 128, 4))

    def run():
        k_tilde, v_tilde, _ = gated_scan(logit, k, v)
        out = dilated_attention(q, k_tilde, v_tilde, 16, 256, 4)
        return out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, logit))

    for x, y in zip(run(), run()):
        assert torch.equal(x, y)


def test_quarter_of_a_million_tokens():
    """Strided views of [1, 262144, 5 * 4096]: offsets pass 2^31."""
    heads, d_head, length = 32, 128, 262144
    q, k, v, logit = _views(1, heads, length, d_head, 5)[1:]
    k_tilde, v_tilde, final = gated_scan(logit, k, v)
    tail = slice(length - 4096, length)
    # Gates near 0.5 forget everything within a few dozen steps.
    _, expected, state = gated_scan_reference(*(x[:, :, tail].float() for x in (logit, k, v)))
    torch.testing.assert_close(v_tilde[:, :, -100:].float(), expected[:, :, -100:], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(final[1], state[1], atol=1e-4, rtol=1e-4)
    out = dilated_attention(q, k_tilde, v_tilde, 64, 0, 0)
    seen = torch.cat((torch.arange(63, length, 64), torch.tensor([length - 1]))).unique().cuda()
    scores = torch.einsum("hd,hnd->hn", q[0, :, -1].float(), k_tilde[0, :, seen].float()) * d_head**-0.5
    expected = torch.einsum("hn,hnd->hd", scores.softmax(-1), v_tilde[0, :, seen].float())
    torch.testing.assert_close(out[0, :, -1].float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("batch", "heads", "group"), [(1, 8, 1), (64, 8, 1), (1, 2, 4), (64, 1, 32)])
def test_decoding_in_a_graph_equals_the_full_forward(batch, heads, group):
    """One captured step, replayed at every position: positions are read on the device."""
    d_head, length, pattern = 64, 700, (16, 32, 4)
    k, v, logit = _views(batch, heads, length, d_head, 3, dtype=torch.float32)
    (q,) = _views(batch, heads * group, length, d_head, 1, dtype=torch.float32)
    tables = _tables(length, d_head)
    k_tilde, v_tilde, _ = gated_scan(logit, k, v, rope=tables)
    cos, sin = tables
    first, second = q.chunk(2, dim=-1)
    rotated = q * cos + torch.cat((-second, first), dim=-1) * sin
    full = dilated_attention(rotated, k_tilde, v_tilde, *pattern)

    slots = heads * slot_counts(*pattern, length)
    keys, values = (torch.zeros(batch, slots, d_head, device="cuda") for _ in range(2))
    state = tuple(torch.zeros(batch, heads, d_head, device="cuda") for _ in range(2))
    token = [torch.zeros_like(x[:, :, 0]) for x in (q, k, v, logit)]
    positions = torch.zeros(batch, dtype=torch.int64, device="cuda")

    def step():
        return decode_attention(*token, keys, values, state, positions, *pattern, rope=tables)

    step()  # compiles, and makes the tensors of the pattern
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for x in (keys, values, *state):
        x.zero_()
    worst = 0.0
    for t in range(length):
        for target, source in zip(token, (q, k, v, logit)):
            target.copy_(source[:, :, t])
        positions.fill_(t)
        graph.replay()
        worst = max(worst, (out - full[:, :, t]).abs().max().item())
    assert worst < 5e-3  # tf32 isn't used; products are summed in another order
