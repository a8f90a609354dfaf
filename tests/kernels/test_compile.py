"""The operators as `torch.library` operators: registration, and `torch.compile` in one graph."""

import os

import pytest
import torch
from helpers import projections, rope_tables
from torch.library import opcheck

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.attention.ops import attention_op
from ratplus.kernels.decode.ops import decode_op
from ratplus.kernels.scan.ops import scan_op

LENGTH, D_HEAD = 6, 16
IMPLEMENTATIONS = [
    "eager",
    pytest.param(
        "fused",
        marks=pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
    ),
]


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
    opcheck(attention_op, (*_leaves(3), *_patterns(), LENGTH, False, implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decode_opcheck(implementation):
    token = [torch.randn(2, 2, D_HEAD) for _ in range(4)]
    cache = [torch.zeros(2, 16, D_HEAD) for _ in range(2)]
    state = [torch.zeros(2, 2, D_HEAD) for _ in range(2)]
    tables = rope_tables(torch.arange(8), D_HEAD)
    arguments = (*token, *cache, *state, torch.tensor([3, 4]), *_patterns(), None, *tables, implementation)
    opcheck(decode_op, arguments)


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
