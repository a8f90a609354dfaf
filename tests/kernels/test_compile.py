"""The operators as `torch.library` operators: registration, and `torch.compile` in one graph."""

import os

import pytest
import torch
import torch._dynamo.testing
from helpers import projections, rope_tables
from torch.library import opcheck

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.kernels import (
    block_attention,
    block_decode_attention,
    decode_attention,
    dilated_attention,
    gated_scan,
)  # fmt: skip
from ratplus.kernels.attention.ops import attention_op
from ratplus.kernels.block_decode.ops import block_decode_op
from ratplus.kernels.blocks.ops import block_attention_op
from ratplus.kernels.decode.ops import decode_op
from ratplus.kernels.scan.ops import scan_op

LENGTH, D_HEAD = 6, 16
FUSED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
IMPLEMENTATIONS = ["eager", pytest.param("fused", marks=FUSED)]
# Where the operators' registration is tested with both implementations elsewhere, and Triton's interpreter takes long.
FUSED_SLOWLY = ["eager", pytest.param("fused", marks=[FUSED, pytest.mark.slow])]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """AOTAutograd's cache doesn't notice an edited gradient formula."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch._dynamo.reset()
    torch.manual_seed(0)


def _leaves(parts: int) -> list[torch.Tensor]:
    return [x.detach().requires_grad_() for x in projections(1, 2, LENGTH, D_HEAD, parts=parts)]


def _patterns() -> list[torch.Tensor]:
    return [torch.tensor(x, dtype=torch.int32) for x in ([2, -1], [0, 2], [1, 0])]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("full", [False, True])
def test_scan_opcheck(implementation, full):
    initial = [torch.randn(1, 2, D_HEAD, requires_grad=True) for _ in range(2)] if full else [None, None]
    tables = rope_tables(torch.arange(LENGTH), D_HEAD) if full else (None, None)
    opcheck(scan_op, (*_leaves(3), *initial, *tables, implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_opcheck(implementation):
    opcheck(attention_op, (*_leaves(3), *_patterns(), LENGTH, LENGTH, False, implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decode_opcheck(implementation):
    token = [torch.randn(2, 2, D_HEAD) for _ in range(4)]
    cache = [torch.zeros(2, 16, D_HEAD) for _ in range(2)]
    state = [torch.zeros(2, 2, D_HEAD) for _ in range(2)]
    tables = rope_tables(torch.arange(8), D_HEAD)
    arguments = (*token, *cache, *state, torch.tensor([3, 4]), *_patterns(), None, *tables, implementation)
    opcheck(decode_op, arguments)


@pytest.mark.parametrize("implementation", FUSED_SLOWLY)
def test_query_heads_that_share_keys(monkeypatch, implementation):
    """Registration, and one graph with gradients: two and four query heads to each of the heads of keys."""
    q, k, v = projections(1, 4, LENGTH, D_HEAD, parts=3)
    inputs = [x.detach().requires_grad_() for x in (q, k[:, :2], v[:, :2])]
    opcheck(attention_op, (*inputs, *_patterns(), LENGTH, LENGTH, False, implementation))
    token, *others = (x[:, :, 0].contiguous() for x in (q, k[:, :1], v[:, :1], k[:, :1]))
    held = [torch.zeros(1, n, D_HEAD) for n in (8, 8, 1, 1)]
    settings = [x[:1] for x in _patterns()]
    tables = rope_tables(torch.arange(8), D_HEAD)
    opcheck(decode_op, (token, *others, *held, torch.tensor([3]), *settings, None, *tables, implementation))

    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    results = []
    for function in (dilated_attention, torch.compile(dilated_attention, fullgraph=True, backend="aot_eager")):
        out = function(*inputs, *_patterns())
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("per_head", [False, True])
def test_one_graph_for_prefill_and_its_gradients(monkeypatch, implementation, per_head):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    tables = rope_tables(torch.arange(LENGTH), D_HEAD)
    patterns = _patterns() if per_head else (4, 2, 1)

    def layer(q, k, v, logit):
        k_tilde, v_tilde, final = gated_scan(logit, k, v, rope=tables)
        return dilated_attention(q, k_tilde, v_tilde, *patterns), final[0]

    inputs = _leaves(4)
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        out, state = function(*inputs)
        results.append([out, state, *torch.autograd.grad(out.square().sum() + state.sum(), inputs)])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_graph_for_a_decoding_step(monkeypatch, implementation):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    tables = rope_tables(torch.arange(8), D_HEAD)

    def step(token, keys, values, k_state, v_state, positions):
        return decode_attention(
            token, token + 1, token + 2, token, keys, values, (k_state, v_state), positions, 4, 1, 1, rope=tables
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    caches = [[torch.zeros(2, 16, D_HEAD) for _ in range(2)] for _ in range(2)]
    states = [[torch.zeros(2, 2, D_HEAD) for _ in range(2)] for _ in range(2)]
    for t in range(3):
        token, positions = torch.randn(2, 2, D_HEAD), torch.tensor([t, t + 1])
        outs = [f(token, *caches[i], *states[i], positions) for i, f in enumerate((step, compiled))]
        torch.testing.assert_close(*outs)
    torch.testing.assert_close(*caches)
    torch.testing.assert_close(*states)


def _block_arguments(implementation: str) -> tuple:
    top, start = torch.tensor([0, 2], dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    return (*_patterns(), top, torch.arange(2), start, None, 2, "bounds", True, 1, 0, 2, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_block_attention_opcheck(implementation):
    opcheck(block_attention_op, (*_leaves(3), *_block_arguments(implementation)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_block_decode_opcheck(implementation):
    token = [torch.randn(2, 2, D_HEAD) for _ in range(4)]
    cache = [torch.zeros(2, 2, 8, D_HEAD), torch.zeros(2, 2, 8, D_HEAD), torch.zeros(2, 2, 4, 1, D_HEAD)]
    state = [torch.zeros(2, 2, D_HEAD) for _ in range(2)]
    tables = rope_tables(torch.arange(8), D_HEAD)
    top = torch.tensor([0, 3], dtype=torch.int32)
    arguments = (*token, *cache, *state, torch.tensor([5, 7]), *_patterns(), top, torch.arange(2), *tables)
    opcheck(block_decode_op, (*arguments, 2, "mean", True, 1, 0, 3, implementation))


@pytest.mark.parametrize("implementation", FUSED_SLOWLY)
def test_one_graph_for_block_attention_its_gradients_and_a_step(monkeypatch, implementation):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    inputs = _leaves(3)

    def attend(q, k, v):
        return block_attention(q, k, v, 4, 1, 0, top=2, block=2)

    def step(token, keys, values, metadata, positions):
        return block_decode_attention(
            token, token + 1, token + 2, None, keys, values, metadata, None, positions, 4, 1, 1, top=2, block=2
        )

    results = []
    caches = [
        [torch.zeros(2, 2, 8, D_HEAD), torch.zeros(2, 2, 8, D_HEAD), torch.zeros(2, 2, 4, 1, D_HEAD)] for _ in "ab"
    ]
    for compiled, cache in zip((False, True), caches, strict=True):
        f, g = (torch.compile(x, fullgraph=True, backend="aot_eager") if compiled else x for x in (attend, step))
        out = f(*inputs)
        torch.manual_seed(1)
        outs = [g(torch.randn(2, 2, D_HEAD), *cache, torch.tensor([t, t + 1])) for t in range(4)]
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs), *outs, *cache])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


# The whole model: nothing in it breaks the graph, on either path. One layer, since all are alike.

SPARSE, STREAMING = Pattern(dilation=4, window=2, sinks=1), Pattern(dilation=None, window=3, sinks=1)
PATTERNS = {"dense": Pattern(), "sparse": SPARSE, "hybrid": PatternMap.per_head([SPARSE, STREAMING], layers=1)}


@pytest.fixture
def model():
    model = RATPlus(ModelConfig(vocab_size=11, layers=1, d_model=32, d_head=D_HEAD, max_len=32))
    model.reset_parameters(seed=0, std=0.2)
    return model


# Tracing goes through the cache of `kernel_pattern`, a pure function.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
@pytest.mark.parametrize(
    ("implementation", "kind"),
    [
        pytest.param("eager", "dense", marks=pytest.mark.slow),
        pytest.param("eager", "sparse", marks=pytest.mark.slow),
        ("eager", "hybrid"),
        pytest.param("fused", "hybrid", marks=FUSED),
    ],
)
def test_one_graph_for_the_model_and_its_gradients(monkeypatch, model, implementation, kind):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % 11

    def forward(tokens):
        return model(tokens, PATTERNS[kind])

    results = []
    for function in (forward, torch.compile(forward, fullgraph=True, backend="aot_eager")):
        logits = function(tokens)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
def test_one_graph_for_a_model_whose_heads_share_keys():
    model = RATPlus(ModelConfig(vocab_size=11, layers=1, d_model=32, d_head=D_HEAD, max_len=32, kv_heads=1))
    pattern = PatternMap.per_head([SPARSE, SPARSE], layers=1)
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % 11
    compiled = torch.compile(lambda tokens: model(tokens, pattern), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens, pattern))


@pytest.mark.parametrize(
    ("implementation", "kind"),
    [
        pytest.param("eager", "dense", marks=pytest.mark.slow),
        ("eager", "hybrid"),
        pytest.param("fused", "sparse", marks=[FUSED, pytest.mark.slow]),
    ],
)
def test_one_graph_for_the_models_step(monkeypatch, model, implementation, kind):
    """The second graph takes the sequences' lengths as variables; it serves every later step."""
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    caches = [model.new_cache(2, PATTERNS[kind], max_len=16) for _ in range(2)]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    steps = model.step, torch.compile(model.step, fullgraph=True, backend=counter)
    for cache in caches:
        model.prefill(torch.tensor([[1, 2, 3], [4, 5, 0]]), cache, lengths=[3, 2])
    with torch.no_grad():
        for t in range(5):
            token = torch.tensor([t, 10 - t])
            torch.testing.assert_close(*(step(token, cache) for step, cache in zip(steps, caches)))
    assert counter.frame_count <= 2
    assert caches[1].lengths == caches[1].positions.tolist() == [8, 7]
    for name in ("keys", "values", "state"):
        torch.testing.assert_close(*(getattr(cache.layers[0], name) for cache in caches))
