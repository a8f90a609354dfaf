"""The Triton kernels on inputs whose offsets pass 2^31, on a CUDA device with 30 GB free (`make gpu-check`)."""

import pytest
import torch

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.decode.layout import slot_counts
from ratplus.kernels.scan.reference import gated_scan_reference

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16
HEADS, D_HEAD, LENGTH = 32, 128, 262144


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip(f"needs 30 GB of free GPU memory; there are {free / 1e9:.0f}")
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


def _views(parts):
    """Strided views of [1, 262144, parts * 4096]."""
    z = torch.randn(1, LENGTH, parts * HEADS * D_HEAD, device="cuda", dtype=BF16)
    return [x.unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def _last_row(q, k, v, seen):
    """What the last query attends to, in float32: [H, d]."""
    scores = torch.einsum("hd,hnd->hn", q[0, :, -1].float(), k[0, :, seen].float()) * D_HEAD**-0.5
    return torch.einsum("hn,hnd->hd", scores.softmax(-1), v[0, :, seen].float())


def test_quarter_of_a_million_tokens():
    """Strided views of [1, 262144, 5 * 4096]: offsets pass 2^31."""
    length = LENGTH
    q, k, v, logit = _views(5)[1:]
    k_tilde, v_tilde, final = gated_scan(logit, k, v)
    tail = slice(length - 4096, length)
    # Gates near 0.5 forget everything within a few dozen steps.
    _, expected, state = gated_scan_reference(*(x[:, :, tail].float() for x in (logit, k, v)))
    torch.testing.assert_close(v_tilde[:, :, -100:].float(), expected[:, :, -100:], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(final[1], state[1], atol=1e-4, rtol=1e-4)
    out = dilated_attention(q, k_tilde, v_tilde, 64, 0, 0)
    seen = torch.cat((torch.arange(63, length, 64), torch.tensor([length - 1]))).unique().cuda()
    expected = _last_row(q, k_tilde, v_tilde, seen)
    torch.testing.assert_close(out[0, :, -1].float(), expected, atol=2e-2, rtol=2e-2)


def test_a_window_and_gradients_at_a_quarter_of_a_million_tokens():
    """The output's last row, and the gradients of a loss that only the last 64 queries enter.

    Those queries' exact gradients need no more than the keys that they see.
    """
    q, k, v = (x.detach().requires_grad_() for x in _views(3))
    dilation, window, last = 64, 256, 64
    out = dilated_attention(q, k, v, dilation, window, 0)
    start = LENGTH - last
    weights = torch.randn(1, HEADS, last, D_HEAD, device="cuda")
    dq, dk, dv = torch.autograd.grad((out[:, :, start:].float() * weights).sum(), (q, k, v))

    near = torch.arange(start - window, LENGTH, device="cuda")
    far = torch.arange(dilation - 1, start - window, dilation, device="cuda")
    seen = torch.cat((far, near))
    t = torch.arange(start, LENGTH, device="cuda")
    visible = ((t[:, None] - seen <= window) | ((seen + 1) % dilation == 0)) & (seen <= t[:, None])
    exact = [x.detach()[0][:, at].float().requires_grad_() for x, at in ((q, t), (k, seen), (v, seen))]
    scores = exact[0] @ exact[1].transpose(1, 2) * D_HEAD**-0.5
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ exact[2]
    gradients = torch.autograd.grad((expected * weights[0]).sum(), exact)
    torch.testing.assert_close(out[0, :, start:].float(), expected, atol=2e-2, rtol=2e-2)
    for x, at, y in ((dq, t, gradients[0]), (dk, seen, gradients[1]), (dv, seen, gradients[2])):
        error = (x[0][:, at].float() - y).norm() / y.norm()
        assert error < 2e-2, float(error)
    assert dq[:, :, :start].count_nonzero() == 0
    unseen = torch.ones(LENGTH, dtype=torch.bool, device="cuda")
    unseen[seen] = False
    assert dk[0][:, unseen].count_nonzero() == 0


def test_decoding_beyond_two_to_the_thirty_one_elements():
    """A cache of 4.3e9 elements: the last sequences' rows lie beyond 2^31, and give what the first ones give."""
    batch, heads, length, dilation = 1024, 8, 65536, 16
    share = slot_counts(dilation, 0, 0, length)
    keys, values = (torch.empty(batch, heads * share, D_HEAD, device="cuda", dtype=BF16) for _ in range(2))
    assert keys.numel() > 2**31
    for cache in (keys, values):
        cache[:1].normal_()
        for begin in range(1, batch, 128):
            cache[begin : begin + 128] = cache[:1]
    one = [torch.randn(1, heads, D_HEAD, device="cuda", dtype=BF16) for _ in ("q", "k", "v", "logit")]
    token = [x.expand(batch, -1, -1).contiguous() for x in one]
    state = tuple(torch.zeros(batch, heads, D_HEAD, device="cuda") for _ in range(2))
    positions = torch.full((batch,), length - 1, dtype=torch.int64, device="cuda")
    out = decode_attention(*token, keys, values, state, positions, dilation, 0, 0)
    assert out.isfinite().all()
    assert torch.equal(out, out[:1].expand_as(out))
    # The token was written to its dilated slot of the last sequence as of the first.
    assert torch.equal(keys[-1], keys[0])
    assert torch.equal(values[-1], values[0])
    few = [x[:1] for x in (*token, keys, values)]
    again = decode_attention(*few, tuple(torch.zeros_like(x[:1]) for x in state), positions[:1], dilation, 0, 0)
    # One sequence is split among programs, so its sums are taken in another order.
    torch.testing.assert_close(again, out[:1], atol=2e-2, rtol=2e-2)
