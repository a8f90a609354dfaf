"""The Triton kernels compiled, on a CUDA device (`make gpu-check`): bf16 accuracy, repeatability, gates, graphs.

An error is judged by the one that plain bf16 arithmetic makes: the eager path on the same bf16 inputs, both against the
reference in float64 (on the same inputs). Both errors are recorded as properties of the test, on passes too.
Inputs that take much memory: test_gpu_large.py.
"""

import pytest
import torch

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.attention.patterns import head_patterns, pattern_tensors
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


def _no_worse_than_eager(monkeypatch, record_property, run, exact):
    """run(): [outputs, gradients] on the default path and forced eager; exact: the same in float64."""
    fused = run()
    monkeypatch.setenv("RATPLUS_KERNELS", "eager")
    eager = run()
    monkeypatch.delenv("RATPLUS_KERNELS")
    for kind, factor in ((0, 2), (1, 3)):
        name = ("outputs", "gradients")[kind]
        errors = [
            [float((x.double() - truth).norm() / truth.norm()) for x in (ours, theirs)]
            for ours, theirs, truth in zip(fused[kind], eager[kind], exact[kind], strict=True)
        ]
        record_property(f"{name}: ours, plain bf16", " ".join(f"{ours:.1e},{theirs:.1e}" for ours, theirs in errors))
        for ours, theirs in errors:
            assert ours <= factor * theirs + 1e-4, (name, ours, theirs)


def _with_gradients(outputs, inputs):
    generator = torch.Generator("cuda").manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator, device="cuda", dtype=torch.float64) for x in outputs]
    loss = sum((x.double() * w).sum() for x, w in zip(outputs, weights))
    return list(outputs), list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize(
    ("batch", "heads", "length", "d_head"), [(2, 4, 500, 128), (1, 2, 2048, 64), (64, 16, 129, 128)]
)
def test_scan_in_bf16(monkeypatch, record_property, batch, heads, length, d_head):
    logit, k, v = (x.detach().requires_grad_() for x in _views(batch, heads, length, d_head, 3))
    tables = _tables(length, d_head)
    exact = [x.detach().double().requires_grad_() for x in (logit, k, v)]
    k_tilde, v_tilde, final = gated_scan_reference(*exact, rope=tables)
    exact = _with_gradients([k_tilde, v_tilde, *final], exact)

    def run():
        k_tilde, v_tilde, final = gated_scan(logit, k, v, rope=tables)
        return _with_gradients([k_tilde, v_tilde, *final], [logit, k, v])

    _no_worse_than_eager(monkeypatch, record_property, run, exact)


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_gates_at_their_extremes(record_property, dtype, splits):
    """Logits up to 15 and infinite ones, values near the ends of bf16's range: a gate is accurate where it is small."""
    from ratplus.kernels.scan import fused as scan  # needs Triton, which not every machine that collects this has

    length, d_head = 700, 64
    logit, k, v = _views(2, 4, length, d_head, 3, dtype)
    logit = (8 * logit).clamp(-15, 15)
    logit[:, :, ::7] = torch.inf  # holds the state
    logit[:, :, 3::50] = -torch.inf  # replaces it
    if dtype == BF16:
        k, v = k * 1e30, v * 1e-30
    exact = [x.double() for x in (logit, k, v)]
    *expected, final = gated_scan_reference(*exact)
    actual = scan.forward(logit, k, v, None, None, None, None, splits=splits)
    limit = {torch.float32: 2e-6, torch.float16: 1e-3, BF16: 8e-3}[dtype]
    errors = [float((x.double() - y).norm() / y.norm()) for x, y in zip(actual, (*expected, *final), strict=True)]
    record_property("relative errors of k, v and the two states", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= limit for error in errors[:2]), errors
    assert all(error <= 2e-6 for error in errors[2:]), errors
    # An infinite logit holds the state exactly.
    assert torch.equal(actual[1][:, :, 7], actual[1][:, :, 6])
    assert torch.equal(actual[1][:, :, 3 + 150], v[:, :, 3 + 150])


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("d_head", [64, 128])
@pytest.mark.parametrize("pattern", [(16, 256, 4), (64, 0, 0), (4, 0, 0), (None, 100, 4), "mixed"])
def test_attention_in_bf16(monkeypatch, record_property, pattern, d_head, group):
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
    run = lambda: _with_gradients([dilated_attention(q, k, v, *pattern)], [q, k, v])  # noqa: E731
    _no_worse_than_eager(monkeypatch, record_property, run, exact)


@pytest.mark.parametrize("kernel", ["attention dq", "attention dkv", "attention dkv, band"])
def test_gradients_by_other_tiles(record_property, monkeypatch, kernel):
    """Variants of dQ, or of dK and dV: as accurate as what ships, the same bits again, and in a CUDA graph."""
    from ratplus.kernels.attention import fused as attention
    from ratplus.kernels.bench.variants import entries

    heads, length, d_head = 4, 1508, 128  # no multiple of any tile
    columns = ([16, 16, -1, 64], [0, 256, 300, 0], [0, 4, 4, 130])
    patterns = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in columns]
    q, k, v = _views(2, heads, length, d_head, 3)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = attention.forward(q, k, v, *patterns, length)
    d_out = torch.randn_like(out)
    truth, _ = dilated_attention_reference(*exact, head_patterns(*columns, heads))
    truth = torch.autograd.grad((truth * d_out.double()).sum(), exact)

    def gradients(splits):
        return attention.backward(d_out, q, k, v, *patterns, out, lse, length // 16 + 130, 300, splits=splits)

    def errors(found):
        return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, truth, strict=True)]

    entry = entries(d_head)[kernel]
    shipped = errors(gradients(1))
    tried = entry.values
    for value in tried:
        monkeypatch.setitem(entry.table, entry.key, value)
        for splits in (1, 3) if value == tried[0] else (1,):
            found = gradients(splits)
            ours = errors(found)
            record_property(f"{value}, {splits} parts", " ".join(f"{x:.1e}" for x in ours))
            assert all(x <= 1.5 * y + 1e-4 for x, y in zip(ours, shipped, strict=True)), (value, ours, shipped)
            for _ in range(5):
                assert all(torch.equal(x, y) for x, y in zip(found, gradients(splits), strict=True)), value
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = gradients(1)
        for _ in range(2):
            graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(captured, gradients(1), strict=True)), value


@pytest.mark.parametrize("d_head", [16, 64, 128])
@pytest.mark.parametrize("kind", ["forward, long list", "forward, very long list"])
def test_far_list_by_descriptors(monkeypatch, kind, d_head):
    """The tiles of long lists, beside the short ones': eager, in a graph, of views that TMA can't read."""
    from ratplus.kernels.attention import fused as attention

    columns = ([1, 16, -1, 3], [0, 256, 300, 0], [0, 4, 4, 130])
    columns = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in columns]
    longest = {"forward": 0, "forward, long list": attention.LONG_LIST + 1}

    def forward(kind, q, k, v):
        return attention.forward(q, k, v, *columns, longest.get(kind, attention.VERY_LONG_LIST + 1))

    for length in (1, 63, 1500, 5003):
        q = _views(2, 8, length, d_head, 1)[0]
        k, v = _views(2, 4, length, d_head, 2)
        expected, actual = forward("forward", q, k, v), forward(kind, q, k, v)
        torch.testing.assert_close(actual[0].float(), expected[0].float(), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(actual[1], expected[1], atol=1e-4, rtol=1e-4)
        for _ in range(20):
            assert all(map(torch.equal, forward(kind, q, k, v), actual))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(kind, q, k, v)
    for _ in range(2):
        captured[0].zero_()
        graph.replay()
        assert all(map(torch.equal, captured, actual))
    # Rows of an odd number of elements are read by addresses.
    odd = [torch.randn(1, heads, 700, d_head + 1, device="cuda").to(BF16)[..., :d_head] for heads in (8, 4, 4)]
    expected, actual = forward("forward", *odd), forward(kind, *odd)
    torch.testing.assert_close(actual[0].float(), expected[0].float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("length", [1508, 1507])  # of 1,507 no descriptors can be made
@pytest.mark.parametrize("d_head", [16, 64, 128])
def test_gradients_of_long_lists(monkeypatch, record_property, d_head, length):
    """dK and dV of more far keys than LONG_KEY_LIST, in one part and in three, and the band."""
    from ratplus.kernels.attention import fused as attention

    heads = 4
    q, k, v = _views(2, heads, length, d_head, 3)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    columns = ([1, 2, -1, 2], [0, 256, 300, 0], [0, 4, 4, 130])
    patterns = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in columns]
    assert attention.far_keys_kind(length) == "dkv, long list"
    out, lse = attention.forward(q, k, v, *patterns, length)
    d_out = torch.randn_like(out)
    truth, _ = dilated_attention_reference(*exact, head_patterns(*columns, heads))
    truth = torch.autograd.grad((truth * d_out.double()).sum(), exact)
    for splits in (1, 3):
        found = attention.backward(d_out, q, k, v, *patterns, out, lse, length, 300, splits=splits)
        errors = [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, truth, strict=True)]
        record_property(f"relative errors of dq, dk, dv, {splits} parts", " ".join(f"{x:.1e}" for x in errors))
        assert all(error <= 8e-3 for error in errors), errors
        again = attention.backward(d_out, q, k, v, *patterns, out, lse, length, 300, splits=splits)
        assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("d_head", [32, 64, 128])
def test_attention_in_float32(record_property, d_head):
    """Products of float32 are not rounded to tf32."""
    q, k, v = (x.detach().requires_grad_() for x in _views(1, 2, 700, d_head, 3, torch.float32))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, _ = dilated_attention_reference(*exact, head_patterns(16, 33, 4, 2))
    expected = _with_gradients([out], exact)
    actual = _with_gradients([dilated_attention(q, k, v, 16, 33, 4)], [q, k, v])
    pairs = [pair for kind in (0, 1) for pair in zip(actual[kind], expected[kind], strict=True)]
    errors = [float((x.double() - y).norm() / y.norm()) for x, y in pairs]
    record_property("relative errors", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= 1e-5 for error in errors), errors


@pytest.mark.parametrize("d_head", [16, 32, 256])
def test_other_head_sizes_in_bf16(monkeypatch, record_property, d_head):
    logit, q, k, v = (x.detach().requires_grad_() for x in _views(2, 2, 600, d_head, 4))
    exact = [x.detach().double().requires_grad_() for x in (logit, q, k, v)]

    def reference(logit, q, k, v):
        k_tilde, v_tilde, _ = gated_scan_reference(logit, k, v)
        return dilated_attention_reference(q, k_tilde, v_tilde, head_patterns(4, 40, 2, 2))[0]

    def ours():
        k_tilde, v_tilde, _ = gated_scan(logit, k, v)
        return _with_gradients([dilated_attention(q, k_tilde, v_tilde, 4, 40, 2)], [logit, q, k, v])

    exact = _with_gradients([reference(*exact)], exact)
    _no_worse_than_eager(monkeypatch, record_property, ours, exact)


def test_results_are_bitwise_repeatable():
    """Twenty times the same bits at a length where the loops over far keys are long: a missing fence would show."""
    q, k, v, logit = (x.detach().requires_grad_() for x in _views(1, 8, 16384, 128, 4))

    def run():
        k_tilde, v_tilde, _ = gated_scan(logit, k, v)
        out = dilated_attention(q, k_tilde, v_tilde, 16, 256, 4)
        return out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, logit))

    first = run()
    for turn in range(20):
        for x, y in zip(first, run(), strict=True):
            assert torch.equal(x, y), turn


@pytest.mark.parametrize(("batch", "heads", "group"), [(1, 8, 1), (64, 8, 1), (1, 2, 4), (64, 1, 32)])
def test_decoding_in_a_graph_equals_the_full_forward(record_property, batch, heads, group):
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
    worst = torch.zeros((), device="cuda")
    for t in range(length):
        for target, source in zip(token, (q, k, v, logit)):
            target.copy_(source[:, :, t])
        positions.fill_(t)
        graph.replay()
        worst = torch.maximum(worst, (out - full[:, :, t]).abs().max())  # unlike max(), this keeps a NaN
    record_property("worst difference", f"{worst.item():.1e}")
    assert worst.item() < 1e-4  # products are summed in another order; tf32 would be ten times worse


def test_splits_merged_by_the_last_to_arrive():
    """The same bits at each of 200 replays, of two caches at once on two streams, and what one program for all gives.

    A part that was merged before it was visible, or a counter that two launches share, would show.
    """
    from ratplus.kernels.decode import fused as decode

    heads, d_head, length, pattern = 4, 128, 20000, (2, 100, 4)
    tables = _tables(length, d_head)
    slots = slot_counts(*pattern, length)
    assert decode.choose(1, BF16, 1, heads, slots)[1] > 100

    def captured(seed):
        """(graph, what it writes, what it should write about, what must be kept meanwhile)"""
        generator = torch.Generator("cuda").manual_seed(seed)
        random = lambda *shape: torch.randn(shape, generator=generator, device="cuda").to(BF16)  # noqa: E731
        token = [random(1, heads, d_head) for _ in range(4)]
        keys, values = (random(1, heads * slots, d_head) for _ in range(2))
        start = [random(1, heads, d_head).float() for _ in range(2)]
        state = tuple(x.clone() for x in start)
        positions = torch.full((1,), length - 1, device="cuda")
        settings = pattern_tensors(*pattern, heads, keys.device)

        def run(splits=None):
            for x, first in zip(state, start):
                x.copy_(first)
            return decode.step(*token, keys, values, *state, positions, *settings, None, *tables, splits=splits)

        whole = run(splits=1)
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        return graph, out, whole, (token, keys, values, state, start, positions, settings)

    ways = [captured(seed) for seed in (1, 2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    expected = []
    for graph, out, whole, _ in ways:
        graph.replay()
        expected.append(out.clone())
        torch.testing.assert_close(out, whole, rtol=1e-2, atol=1e-4)
    assert not torch.equal(*expected)
    wrong = torch.zeros(2, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(200):
        for n, (graph, out, _, _) in enumerate(ways):
            with torch.cuda.stream(streams[n]):
                out.zero_()
                graph.replay()
                wrong[n] += (out != expected[n]).sum()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0]
    assert all(not counters.any() for counters in decode._counters.values())
