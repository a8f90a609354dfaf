"""The Triton kernels, in Triton's interpreter, against the float64 definitions.

Fresh memory is filled with NaN, so an element that a kernel leaves out shows. bf16 isn't tested here: the interpreter
computes it on raw bits. The compiled kernels are tested in test_aot.py and test_gpu.py.
"""

import os
from itertools import accumulate, product

import pytest
import torch
from helpers import projections, rope_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.attention.patterns import head_patterns
from ratplus.kernels.attention.reference import dilated_attention_reference
from ratplus.kernels.decode.layout import slot_counts
from ratplus.kernels.decode.reference import decode_attention_reference
from ratplus.kernels.scan.reference import gated_scan_reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from ratplus.kernels.attention import fused as attention
from ratplus.kernels.decode import fused as decode
from ratplus.kernels.scan import fused as scan

D_HEAD = 16
LIMITS = {torch.float32: 2e-5, torch.float16: 6e-3}


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory(monkeypatch):
    torch.manual_seed(0)
    empty, new_empty, empty_like = torch.empty, torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: _poison(new_empty(self, *a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _poison(empty_like(*a, **k)))


def _poison(x):
    return x.fill_(torch.nan) if x.is_floating_point() else x


def _close(actual, expected, dtype):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), atol=LIMITS[dtype], rtol=LIMITS[dtype])


# The recurrence


def _check_scan(length, splits, heads=2, dtype=torch.float32, rope="shared", initial=True, batch=2):
    logit, k, v = projections(batch, heads, length, D_HEAD, dtype=dtype)[2:]
    logit = (6 * logit).clamp(-15, 15)
    states = [torch.randn(batch, heads, D_HEAD) for _ in range(2)] if initial else [None, None]
    tables, tables_BHTd = None, (None, None)
    if rope:
        positions = torch.arange(length) + (torch.tensor([[3], [500]]) if rope == "ragged" else 0)
        tables = rope_tables(positions, D_HEAD)
        tables_BHTd = tables if rope == "shared" else tuple(x.unsqueeze(1) for x in tables)

    used = [x for x in (logit, k, v, *states) if x is not None]
    exact = [x.double().requires_grad_() for x in used]
    k_tilde, v_tilde, final = gated_scan_reference(*exact[:3], tuple(exact[3:]) or None, tables)
    expected = [k_tilde, v_tilde, *final]
    actual = scan.forward(logit, k, v, *states, *tables_BHTd, splits=splits)
    _close(actual, expected, dtype)

    gradients = [torch.randn(x.shape).to(x.dtype) for x in actual]
    loss = sum((x * g.double()).sum() for x, g in zip(expected, gradients))
    expected = torch.autograd.grad(loss, exact)
    actual = scan.backward(*gradients, logit, k, v, *states, *tables_BHTd, *actual[:2], splits=splits)
    _close(actual[: len(exact)], expected, dtype)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 33])
def test_scan(length, splits):
    _check_scan(length, splits, batch=2 if length < 33 else 1)


@pytest.mark.parametrize(("length", "splits"), [pytest.param(64, 1, marks=pytest.mark.slow), (100, 3)])
def test_scan_long(length, splits):
    _check_scan(length, splits, heads=1, batch=1)


@pytest.mark.parametrize("rope", [None, "ragged"])
@pytest.mark.parametrize("initial", [False, True])
def test_scan_without_rotation_and_ragged(rope, initial):
    _check_scan(7, 2, heads=3, rope=rope, initial=initial)


def test_scan_half_precision():
    _check_scan(33, 2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("longest", "most_splits", "most_heads"), [(9, 3, 3), pytest.param(14, 5, 5, marks=pytest.mark.slow)]
)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_scan_drawn_shapes(longest, most_splits, most_heads, data):
    length, splits, heads = (data.draw(st.integers(1, most)) for most in (longest, most_splits, most_heads))
    _check_scan(length, splits, heads=heads, rope=data.draw(st.sampled_from([None, "shared", "ragged"])))


def test_infinite_logit_holds_the_state_exactly():
    logit, k, v = (x.clone() for x in projections(1, 2, 9, D_HEAD)[2:])
    logit[:, :, 5:] = torch.inf
    short = scan.forward(logit[:, :, :5], k[:, :, :5], v[:, :, :5], None, None, None, None)
    padded = scan.forward(logit, k, v, None, None, None, None, splits=2)
    _close(padded[2:], short[2:], torch.float32)
    assert torch.equal(scan.forward(logit, k, v, None, None, None, None)[3], short[3])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float16, 3e-3)])
def test_gates_near_one_keep_what_is_left_of_them(dtype, bound):
    """1 - sigmoid(18) is 1.5e-8, which subtracting from 1 would lose: relatively, forwards, backwards and in decoding.

    Inputs are positive, so that no sum hides an error, and large, so that float16 holds the products.
    """
    logit = torch.arange(10, 18.5, 0.5).view(1, 17, 1, 1).expand(1, 17, 3, D_HEAD).to(dtype).contiguous()
    k, v = (torch.full((1, 17, 3, D_HEAD), size, dtype=dtype) for size in (2e4, 3e4))
    exact = [x.double().requires_grad_() for x in (logit, k, v)]
    *outputs, state = gated_scan_reference(*exact)
    expected = [*outputs, *state]
    actual = scan.forward(logit, k, v, None, None, None, None)

    def close(actual, expected):
        for x, y in zip(actual, expected, strict=True):
            torch.testing.assert_close(x.double(), y.detach(), atol=0, rtol=bound)

    close(actual, expected)
    ones = [torch.ones_like(x) for x in actual]
    expected = torch.autograd.grad(sum(x.sum() for x in expected), exact)
    found = scan.backward(*ones, logit, k, v, None, None, None, None, *actual[:2])[:3]
    close(found[:1], expected[:1])  # the others hold (1 - g) itself, which float16 has no numbers for
    if dtype == torch.float32:
        close(found[1:], expected[1:])

    held = [torch.zeros(1, 17, D_HEAD) for _ in range(2)]
    columns = [[-1] * 17, [0] * 17, [1] * 17]
    starts = [0, *accumulate(slot_counts(*columns, 1))]
    cache = [torch.zeros(1, starts[-1], D_HEAD, dtype=dtype) for _ in range(2)]
    token = [x[:, :, 0].contiguous() for x in (k, k, v, logit)]
    settings = [torch.tensor(x, dtype=torch.int32) for x in columns]
    tables = rope_tables(torch.arange(1), D_HEAD)
    decode.step(*token, *cache, *held, torch.tensor([0]), *settings, torch.tensor(starts), *tables)
    left = torch.sigmoid(-token[3].double())
    close(held, [left * x.double() for x in token[1:3]])


@pytest.mark.parametrize("held", [False, True])
def test_a_summary_stops_where_the_gates_have_forgotten_everything(monkeypatch, held):
    """Gates near 0: the product of a split's gates is 0 after a few steps, and earlier inputs are never read.

    held: one channel never forgets, so everything must be read.
    """
    monkeypatch.setattr(scan, "CHUNK", 4)
    logit, k, v = (x.clone() for x in projections(1, 2, 60, D_HEAD)[2:])
    logit[:] = -40.0  # exp(-40) three times is below the least float32
    if held:
        logit[0, 1, :, 5] = torch.inf
    exact = [x.double().requires_grad_() for x in (logit, k, v)]
    *outputs, final = gated_scan_reference(*exact)
    expected = [*outputs, *final]
    actual = scan.forward(logit, k, v, None, None, None, None, splits=2)
    _close(actual, expected, torch.float32)
    gradients = [torch.randn(x.shape).to(x.dtype) for x in actual]
    loss = sum((x * g.double()).sum() for x, g in zip(expected, gradients))
    expected = torch.autograd.grad(loss, exact)
    arguments = (*gradients, logit, k, v, None, None, None, None, *actual[:2])
    _close(scan.backward(*arguments, splits=2)[:3], expected, torch.float32)
    # What lies far before the end of the first split can't reach the second: NaN there stays where it is.
    poisoned = v.clone()
    poisoned[:, :, 3] = torch.nan
    second = scan.forward(logit, k, poisoned, None, None, None, None, splits=2)[1][:, :, 30:]
    assert bool(second.isnan().any()) == held


def test_splits_fill_the_gpu_and_stay_long():
    for kind in ("forward", "backward"):
        fill = scan.WALKS[kind].fill
        assert scan.choose_splits(kind, batch=64, heads=32, length=4096, d_head=128) == 1
        assert scan.choose_splits(kind, batch=1, heads=32, length=262144, d_head=128) == fill // 16
        assert scan.choose_splits(kind, batch=1, heads=32, length=200, d_head=128) == 1
    for heads, d_head in ((32, 128), (20, 128), (3, 64), (1, 16)):
        pairs = scan.pairs_per_program(heads, d_head)
        assert heads * (d_head // 2) % pairs == 0
        assert pairs <= scan.PAIRS


# Attention


def _check_attention(length, dilation, window, sinks, heads=2, dtype=torch.float32, splits=(None,), group=1):
    """`heads` of keys, each with `group` query heads."""
    k, v = projections(1, heads, length, D_HEAD, parts=2, dtype=dtype)
    (q,) = projections(1, heads * group, length, D_HEAD, parts=1, dtype=dtype)
    columns = [torch.as_tensor(x, dtype=torch.int32).expand(heads).contiguous() for x in (dilation, window, sinks)]
    patterns = head_patterns(*columns, heads)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    expected = dilated_attention_reference(*exact, patterns)
    longest_far = max(pattern.far_length(length) for pattern in patterns)
    widest_window = max(pattern.window for pattern in patterns)
    actual = attention.forward(q, k, v, *columns, longest_far)
    _close(actual, expected, dtype)

    d_out = torch.randn(actual[0].shape).to(dtype)
    expected = torch.autograd.grad((expected[0] * d_out.double()).sum(), exact)
    for count in splits:
        gradients = attention.backward(d_out, q, k, v, *columns, *actual, longest_far, widest_window, splits=count)
        _close(gradients, expected, dtype)


@pytest.mark.parametrize(
    ("length", "dilation"), [*product([1, 7, 33, 64], [-1, 1, 3, 4, 16]), (130, 3)]
)  # fmt: skip
def test_attention(length, dilation):
    """Four combinations of window and sinks for each of these, as different heads of one call."""
    windows = torch.tensor([0, 1, 5, length])
    sinks = torch.tensor([[0, 3, 4, abs(dilation) + 1], [4, 0, abs(dilation) + 1, 3]])[length % 2]
    _check_attention(length, dilation, windows, sinks, heads=4)


@pytest.mark.parametrize(("length", "group"), [(1, 1), (33, 1), (130, 1), (33, 2)])
def test_attention_without_any_window(length, group):
    """The kernel of dQ then writes what each token itself adds to dK and dV, and the band's kernel is left out."""
    columns = [torch.tensor(x) for x in ([1, 4, -1], [0, 0, 0], [0, 5, 20])]
    _check_attention(length, *columns, heads=3, splits=(1, 3), group=group)


def test_attention_with_a_different_pattern_in_every_head():
    """All dilations over several blocks of queries; far keys' queries whole and in 3 parts."""
    columns = [-1, 16, 3, 4, 1], [5, 40, 0, 1, 0], [4, 17, 0, 3, 2]
    _check_attention(130, *(torch.tensor(x) for x in columns), heads=5, splits=(1, 3))


@pytest.mark.parametrize("length", [1, 7, 33])
def test_attention_with_more_parts_than_queries(length):
    _check_attention(length, torch.tensor([2, -1]), torch.tensor([0, 3]), torch.tensor([1, 4]), splits=(1, 3))


@pytest.mark.parametrize(("heads", "group", "length"), [(2, 3, 33), (1, 4, 70)])
def test_attention_of_query_heads_that_share_keys(heads, group, length):
    """Grouped-query and multi-query, with another pattern for each head of keys."""
    columns = [torch.tensor(x[:heads]) for x in ([4, -1], [5, 3], [1, 4])]
    _check_attention(length, *columns, heads=heads, group=group, splits=(1, 3))


def _with_boxes(monkeypatch, **sizes):
    """Far lists and tiles of queries are read through descriptors; those of queries that a call made."""
    made, original = [], attention.query_boxes
    monkeypatch.setattr(attention, "tiles", lambda *_: attention.Tiles(**sizes, num_warps=1, num_stages=1, boxes=True))
    monkeypatch.setattr(attention, "without_boxes", lambda *_: attention.Tiles(32, 16, 1, 1))
    monkeypatch.setattr(attention, "query_boxes", lambda *a: made.append(original(*a)) or made[-1])
    return made


@pytest.mark.parametrize(
    ("length", "group", "dtype"), [(4, 1, torch.float32), (132, 1, torch.float32), (68, 2, torch.float16)]
)
def test_attention_gradients_through_descriptors(monkeypatch, length, group, dtype):
    """Of all dilations, with windows and without, over tiles of queries that the end of the sequence cuts."""
    made = _with_boxes(monkeypatch, BM=16, BN=32)
    columns = [torch.tensor(x) for x in ([-1, 16, 3, 1], [5, 40, 0, 1], [4, 17, 0, 2])]
    _check_attention(length, *columns, heads=4, dtype=dtype, splits=(1, 3), group=group)
    _check_attention(length, 4, 0, 0, dtype=dtype, group=group)
    assert len(made) == 5  # band and far list, each in one part and in three; without a window the far list alone
    assert all(None not in boxes for boxes in made)


@pytest.mark.parametrize("length", [33, 66])
def test_lengths_that_descriptors_cannot_have(monkeypatch, length):
    """A row of lse would not begin at a multiple of 16 bytes: addresses are used, with tiles that suit them."""
    made = _with_boxes(monkeypatch, BM=16, BN=32)
    _check_attention(length, torch.tensor([4, -1]), torch.tensor([0, 5]), torch.tensor([0, 4]))
    assert made == [(None,) * 4] * 2  # of the band and of the far list


def test_tensors_that_descriptors_cannot_have():
    def made(q):
        batch, heads, length, d_head = q.shape
        d_out = torch.zeros(batch, length, heads, d_head, dtype=q.dtype)
        lse, delta = torch.zeros(2, batch, heads, length)
        return attention.query_boxes(q, d_out, lse, delta, 16)

    q = torch.zeros(2, 3, 8, 16, dtype=torch.float16)
    whole, *_ = made(q)
    assert (whole.shape, whole.strides, whole.block_shape) == ([2, 3, 8, 16], [384, 128, 16, 1], [1, 1, 16, 16])
    assert made(q.transpose(1, 2).contiguous().transpose(1, 2))[0].strides == [384, 16, 48, 1]
    # One sequence, expanded: the stride of a dimension of size 1 says nothing.
    assert made(q[:1, :1].as_strided((1, 1, 8, 16), (0, 7, 16, 1)))[0].strides == [16, 16, 16, 1]
    room = torch.zeros(5000, dtype=torch.float16)
    for why, refused in {
        "heads are one": q[:, :1].expand(2, 3, 8, 16),
        "rows of 20 elements": room.as_strided((2, 3, 8, 16), (480, 160, 20, 1)),
        "begins at 2 bytes": room[1:].as_strided((2, 3, 8, 16), (384, 128, 16, 1)),
        "nothing": q[:0],
    }.items():
        assert made(refused) == (None,) * 4, why


def test_attention_splits_fill_the_gpu_and_stay_long():
    assert attention.choose_splits(programs=32, length=4096) == 8
    assert attention.choose_splits(programs=32, length=262144) == 9
    assert attention.choose_splits(programs=264, length=262144) == 1
    assert attention.choose_splits(programs=1, length=100) == 1


def test_attention_half_precision():
    columns = [torch.tensor(x) for x in ([4, 16], [5, 0], [1, 3])]
    _check_attention(64, *columns, dtype=torch.float16, splits=(1, 3))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 70),
    st.tuples(*[st.sampled_from([-1, 1, 2, 5, 16, 64])] * 2),
    st.tuples(*[st.integers(0, 40)] * 2),
    st.tuples(*[st.integers(0, 40)] * 2),
    st.integers(1, 4),
)
def test_attention_drawn_patterns(length, dilation, window, sinks, splits):
    _check_attention(length, *(torch.tensor(x) for x in (dilation, window, sinks)), splits=(splits,))


# Decoding


@pytest.mark.parametrize(
    ("splits", "gated", "mixed", "dtype", "group"),
    [
        (1, True, True, torch.float32, 1),
        (3, True, True, torch.float32, 1),
        (3, False, False, torch.float32, 1),
        (1, True, False, torch.float16, 1),
        (3, True, True, torch.float32, 2),
        (1, False, False, torch.float16, 17),
    ],
)
def test_decode_equals_the_definition_at_every_step(splits, gated, mixed, dtype, group):
    _check_decode(splits, gated, mixed, dtype, group)


@pytest.mark.parametrize(("group", "most"), [(1, 130), (3, 20)])
def test_decode_split_more_often_than_is_merged_at_a_time(group, most):
    """Most splits are empty; no bit changes from call to call."""
    heads, slots = 2, 150
    (q,) = (x[:, :, 0] for x in projections(1, heads * group, 1, D_HEAD, parts=1))
    token = [q, *(x[:, :, 0] for x in projections(1, heads, 1, D_HEAD, parts=2)), None]
    keys, values = (torch.randn(1, heads * slots, D_HEAD) for _ in range(2))
    settings = [torch.full((heads,), x, dtype=torch.int32) for x in (1, 0, 0)]
    arguments = (*token, keys, values, None, None, torch.tensor([148]), *settings, None, None, None)
    found = {splits: decode.step(*arguments, splits=splits) for splits in (1, 2, most)}
    torch.testing.assert_close(found[2], found[1])
    torch.testing.assert_close(found[most], found[1])
    assert torch.equal(decode.step(*arguments, splits=most), found[most])


def test_splits_are_counted_with_a_counter_of_their_cache():
    caches = [torch.empty(1, 1, D_HEAD) for _ in range(2)]
    counters = [decode.counters_of(cache, 6) for cache in caches]
    assert decode.counters_of(caches[0], 6) is counters[0]
    assert counters[0].data_ptr() != counters[1].data_ptr()
    assert counters[0].tolist() == [0] * 6
    assert all(not counters.any() for counters in decode._counters.values())  # also after the steps of other tests


def test_decode_splits_fill_the_gpu_and_short_parts_have_a_walk_of_their_own():
    paper = {"group": 1, "dtype": torch.bfloat16, "heads": 32}
    short = "single, short parts"
    assert decode.choose(**paper, batch=1, slots=16385) == (short, 41)
    assert decode.choose(**paper, batch=1, slots=256) == (short, 4)
    assert decode.choose(**paper, batch=1, slots=262145) == ("single", 41)
    assert decode.choose(**paper, batch=1, slots=127) == ("single", 1)
    assert decode.choose(**paper, batch=128, slots=262145) == ("single", 1)
    assert decode.choose(**paper, batch=1, slots=2 * decode.SHORT_PART, splits=2) == (short, 2)
    assert decode.choose(**paper, batch=1, slots=2 * decode.SHORT_PART + 1, splits=2) == ("single", 2)
    shared = paper | {"group": 4, "heads": 8}
    assert decode.choose(**shared, batch=1, slots=16385) == ("group", 33)
    assert decode.choose(**shared | {"dtype": torch.float32}, batch=128, slots=16385) == ("group, float32", 1)


def _check_decode(splits, gated, mixed, dtype, group, length=None):
    """Ragged positions; the fused cache starts as NaN where nothing was written, the reference's as zeros."""
    batch, heads = 2, 3 if group < 17 else 1
    length = length or (20 if group == 1 else 12)
    lag = torch.tensor([0, 3])
    columns = [[4, 16, -1], [1, 0, 5], [3, 0, 4]] if mixed else [[3] * heads, [2] * heads, [4] * heads]
    patterns = [torch.tensor(x, dtype=torch.int32) for x in columns]
    counts = slot_counts(*columns, length)
    starts = [0, *accumulate(counts)]
    tables = rope_tables(torch.arange(length), D_HEAD)
    expected_cache = [torch.zeros(batch, starts[-1], D_HEAD, dtype=dtype) for _ in range(2)]
    cache = [torch.full_like(x, torch.nan) for x in expected_cache]
    expected_state = tuple(torch.zeros(batch, heads, D_HEAD) for _ in range(2)) if gated else None
    state = [x.clone() for x in expected_state] if gated else [None, None]
    for step in range(int(lag.max()), length):
        positions = step - lag
        k, v, logit = projections(batch, heads, 1, D_HEAD, parts=3, dtype=dtype)
        (q,) = projections(batch, heads * group, 1, D_HEAD, parts=1, dtype=dtype)
        token = [x[:, :, 0] for x in (q, k, v)]
        logit = 5 * logit[:, :, 0] if gated else None
        if step == int(lag.max()):  # the first sequence begins with a history that both caches share
            for target, source in zip(cache, expected_cache):
                target[0] = source[0].copy_(torch.randn(source[0].shape))
        expected = decode_attention_reference(
            *token, logit, *expected_cache, expected_state, positions, head_patterns(*patterns, heads), starts, tables
        )
        offsets = torch.tensor(starts) if mixed else None
        actual = decode.step(*token, logit, *cache, *state, positions, *patterns, offsets, *tables, splits=splits)
        _close([actual], [expected], dtype)
        if gated:
            _close(state, expected_state, torch.float32)
    written = ~cache[0].isnan()
    _close([cache[0][written], cache[1][written]], [x[written] for x in expected_cache], dtype)
    assert (expected_cache[0][~written] == 0).all()


@settings(max_examples=4, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1, 1, 2, 5]), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), min_size=1, max_size=2),
    st.integers(1, 4),
)
def test_decode_of_drawn_patterns_and_positions(patterns, positions, splits):
    """One step in the middle of a sequence, on a cache that holds anything."""
    batch, heads = len(positions), len(patterns)
    columns = [list(column) for column in zip(*patterns)]
    starts = [0, *accumulate(slot_counts(*columns, 31))]
    token = [x[:, :, 0] for x in projections(batch, heads, 1, D_HEAD, parts=4)]
    expected_cache = [torch.randn(batch, starts[-1], D_HEAD) for _ in range(2)]
    expected_state = [torch.randn(batch, heads, D_HEAD) for _ in range(2)]
    cache, state = ([x.clone() for x in pair] for pair in (expected_cache, expected_state))
    now, tables = torch.tensor(positions), rope_tables(torch.arange(31), D_HEAD)
    found = head_patterns(*columns, heads)
    expected = decode_attention_reference(*token, *expected_cache, expected_state, now, found, starts, tables)
    settings = [torch.tensor(x, dtype=torch.int32) for x in columns]
    actual = decode.step(*token, *cache, *state, now, *settings, torch.tensor(starts), *tables, splits=splits)
    _close([actual, *cache, *state], [expected, *expected_cache, *expected_state], torch.float32)


def test_public_operators_take_the_fused_path(monkeypatch):
    """Prefill, then decode step by step, all fused, equals the eager full forward pass; gradients too."""
    batch, heads, length, prompt = 1, 2, 12, 7
    q, k, v, logit = (x.detach().requires_grad_() for x in projections(batch, heads, length, D_HEAD, parts=4))

    def run():
        k_tilde, v_tilde, final = gated_scan(logit, k, v)
        out = dilated_attention(q, k_tilde, v_tilde, 3, 2, 1)
        gradients = torch.autograd.grad(out.square().sum() + final[1].sum(), (q, k, v, logit))
        return [out, k_tilde, v_tilde, *gradients]

    eager = run()
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    fused = run()
    _close(fused, eager, torch.float32)

    with torch.no_grad():
        _, _, (k_state, v_state) = gated_scan(logit[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt])
        keys, values = (torch.zeros(batch, heads * slot_counts(3, 2, 1, length), D_HEAD) for _ in range(2))
        _, k_tilde, v_tilde, *_ = eager
        for t in range(prompt):  # fills the cache; its state is discarded
            now = torch.tensor([t])
            token = [x[:, :, t] for x in (q, k_tilde, v_tilde)]
            decode_attention(*token, None, keys, values, None, now, 3, 2, 1)
        for t in range(prompt, length):
            token = [x[:, :, t] for x in (q, k, v, logit)]
            out = decode_attention(*token, keys, values, (k_state, v_state), torch.tensor([t]), 3, 2, 1)
            _close([out], [eager[0][:, :, t]], torch.float32)


def test_unsupported_inputs_are_named(monkeypatch):
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    x = torch.randn(1, 1, 4, 24)
    with pytest.raises(ValueError, match=r"gated_scan can't run as a Triton kernel: d_head is 24; .* take 16, 32"):
        gated_scan(x, x, x)
    x = torch.randn(1, 1, 4, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the dtype is torch.float64"):
        dilated_attention(x, x, x, 4, 0, 0)
    token, cache = x[:, :, 0], torch.zeros(1, 8, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"decode_attention can't run as a Triton kernel: the dtype is torch.float64"):
        decode_attention(token, token, token, None, cache, cache, None, torch.tensor([0]), 4, 0, 0)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = x.float()
    with pytest.raises(ValueError, match="the device is cpu; the Triton kernels need CUDA"):
        dilated_attention(x, x, x, 4, 0, 0)
