"""The gated recurrence: eager against the float64 definition and against the paper's reference data."""

import numpy as np
import pytest
import torch
from helpers import golden, gradients, projections, rope_tables

from ratplus.kernels import gated_scan
from ratplus.kernels.scan.reference import gated_scan_reference

LENGTHS = [1, 7, 33, 64, 130]


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    """Blocks of 16 steps (batch x heads x d = 48), so that every length crosses some."""
    monkeypatch.setattr("ratplus.kernels.scan.eager.SCRATCH_ELEMENTS", 16 * 48)
    torch.manual_seed(0)


def _inputs(length: int, dtype=torch.float64):
    """logit, k, v as strided views and the initial pair, as leaves; gates to +-15."""
    batch, heads, d_head = 2, 3, 8
    logit, k, v = projections(batch, heads, length, d_head, dtype=dtype)[2:]
    logit = (logit * 6).clamp(-15, 15)
    initial = [torch.randn(batch, heads, d_head, dtype=dtype) for _ in range(2)]
    return [x.detach().requires_grad_() for x in (logit, k, v, *initial)]


def _flat(result):
    k_tilde, v_tilde, final = result
    return [k_tilde, v_tilde, *final]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rope", [None, "shared", "ragged"])
@pytest.mark.parametrize("with_initial", [False, True])
def test_float32_matches_float64_definition(length, rope, with_initial):
    exact = _inputs(length)
    tables = None
    if rope is not None:
        positions = torch.arange(length)
        if rope == "ragged":
            positions = positions + torch.tensor([[5], [1000]])
        tables = rope_tables(positions, 8)
    single = [x.detach().float().requires_grad_() for x in exact]
    used = 5 if with_initial else 3
    expected = _flat(gated_scan_reference(*exact[:3], tuple(exact[3:]) if with_initial else None, tables))
    actual = _flat(gated_scan(*single[:3], tuple(single[3:]) if with_initial else None, tables))
    for x, y in zip(actual, expected):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, atol=1e-5, rtol=0)
    for x, y in zip(gradients(actual, single[:used]), gradients(expected, exact[:used])):
        torch.testing.assert_close(x.double(), y, atol=5e-5, rtol=1e-5)


def test_gradcheck():
    inputs = _inputs(5)
    tables = rope_tables(torch.arange(5), 8)
    assert torch.autograd.gradcheck(
        lambda logit, k, v, *initial: _flat(gated_scan(logit, k, v, initial, tables)), inputs, fast_mode=True
    )


def test_gradient_through_the_final_state_alone():
    exact = _inputs(33)
    expected = gradients(list(gated_scan_reference(*exact[:3], tuple(exact[3:]))[2]), exact)
    actual = gradients(list(gated_scan(*exact[:3], tuple(exact[3:]))[2]), exact)
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_what_a_nearly_closed_gate_lets_in_is_exact_relatively(monkeypatch, implementation):
    """1 - g is as exact at a logit of 18 (1.5e-8) as at 0: sigmoid(-logit), not 1 - sigmoid(logit)."""
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    logit = torch.linspace(10, 18, 40).reshape(5, 1, 1, 8).requires_grad_()
    k, v = (torch.rand(5, 1, 1, 8).add(1).requires_grad_() for _ in range(2))
    exact = [x.detach().double().requires_grad_() for x in (logit, k, v)]
    take = torch.sigmoid(-exact[0])
    expected = [take * exact[1], take * exact[2]]
    actual = gated_scan(logit, k, v)[:2]
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=0)
    for x, y in zip(gradients(list(actual), [logit, k, v]), gradients(expected, exact), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=0)


def test_infinite_logit_holds_the_state_exactly():
    logit, k, v, *initial = (x.detach().float() for x in _inputs(40))
    logit = logit.clone()
    logit[:, :, 25:] = torch.inf
    _, v_tilde, final = gated_scan(logit, k, v, tuple(initial))
    _, _, expected = gated_scan(logit[:, :, :25], k[:, :, :25], v[:, :, :25], tuple(initial))
    assert torch.equal(final[0], expected[0])
    assert torch.equal(final[1], expected[1])
    assert torch.equal(v_tilde[:, :, 25:], expected[1].unsqueeze(2).expand(-1, -1, 15, -1))
    gated_scan(logit[..., :24, :], k[..., :24, :], v[..., :24, :])
    padded = [x.clone().requires_grad_() for x in (logit, k, v)]
    for gradient in gradients(list(gated_scan(*padded)[2]), padded):
        assert gradient.isfinite().all()
        assert (gradient[:, :, 25:] == 0).all()


def test_split_in_two_equals_one_pass():
    logit, k, v, *_ = (x.detach() for x in _inputs(64))
    whole = _flat(gated_scan(logit, k, v))
    first = gated_scan(logit[:, :, :20], k[:, :, :20], v[:, :, :20])
    second = gated_scan(logit[:, :, 20:], k[:, :, 20:], v[:, :, 20:], first[2])
    torch.testing.assert_close(torch.cat((first[0], second[0]), dim=2), whole[0])
    torch.testing.assert_close(second[2][1], whole[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_state(dtype):
    """A bf16 state stops at 0.25 here; a float32 state approaches 1."""
    logit = torch.full((1, 1, 8000, 2), 7.0, dtype=dtype)
    ones = torch.ones(1, 1, 8000, 2, dtype=dtype)
    k_tilde, _, (k_state, _) = gated_scan(logit, ones, ones)
    assert k_tilde.dtype == dtype
    assert k_state.dtype == torch.float32
    assert k_state.min() > 0.999
    assert k_tilde[:, :, -1].float().min() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype):
    exact = _inputs(64)
    half = [x.detach().to(dtype).requires_grad_() for x in exact[:3]]
    exact = [x.detach().double().requires_grad_() for x in half]
    tables = rope_tables(torch.arange(64), 8)
    expected = gradients(_flat(gated_scan_reference(*exact, rope=tables)), exact)
    for x, y in zip(gradients(_flat(gated_scan(*half, rope=tables)), half), expected):
        assert x.dtype == dtype
        assert (x.double() - y).norm() / y.norm() < 1e-2


def test_layout_is_time_major_and_inputs_stay_as_they_are():
    logit, k, v, *_ = (x.detach() for x in _inputs(33))
    before = k.clone()
    k_tilde, v_tilde, _ = gated_scan(logit, k, v)
    assert k_tilde.transpose(1, 2).is_contiguous()
    assert v_tilde.transpose(1, 2).is_contiguous()
    assert torch.equal(k, before)


def test_golden_scan():
    data = golden("scan")
    cases = sorted({key.split("_")[0] for key in data})
    assert cases
    for case in cases:
        get = {
            name: torch.from_numpy(data[f"{case}_{name}"])
            for name in ("g", "k", "v", "dK", "dV", "K", "V", "gg", "gk", "gv")
        }
        gate = get["g"].double()
        # The file gives the gate after the sigmoid, in float32; saturated gates become infinite logits.
        logit = torch.log(gate / (1 - gate)).float().requires_grad_()
        k, v = get["k"].requires_grad_(), get["v"].requires_grad_()
        k_tilde, v_tilde, _ = gated_scan(logit, k, v)
        torch.testing.assert_close(k_tilde, get["K"], atol=1e-5, rtol=0)
        torch.testing.assert_close(v_tilde, get["V"], atol=1e-5, rtol=0)
        d_logit, dk, dv = torch.autograd.grad((k_tilde * get["dK"]).sum() + (v_tilde * get["dV"]).sum(), (logit, k, v))
        torch.testing.assert_close(d_logit.double(), get["gg"] * gate * (1 - gate), atol=1e-5, rtol=0)
        torch.testing.assert_close(dk, get["gk"], atol=1e-5, rtol=0)
        torch.testing.assert_close(dv, get["gv"], atol=1e-5, rtol=0)


def test_golden_rope():
    data = golden("rope")
    for case in sorted({key.split("_")[0] for key in data}):
        x, y, cos, sin = (torch.from_numpy(data[f"{case}_{name}"]) for name in ("x", "y", "cos", "sin"))
        open_gate = torch.full_like(x, -torch.inf)  # g = 0: the state is the input
        k_tilde, v_tilde, _ = gated_scan(open_gate, x, x, rope=(cos[: x.shape[2]], sin[: x.shape[2]]))
        torch.testing.assert_close(k_tilde, y, atol=5e-5, rtol=0)
        assert np.array_equal(v_tilde, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "v": a["v"][:, :, :3]}, r"v has shape .* must equal k's"),
        (lambda a: {**a, "k": a["k"][0]}, r"must be \[batch, heads, length >= 1, d_head\]"),
        (lambda a: {**a, "v": a["v"].half()}, "of one dtype"),
        (lambda a: {**a, "initial": (a["k"], a["v"])}, "initial k state has shape"),
        (lambda a: {**a, "rope": (torch.ones(3, 8), torch.ones(3, 8))}, "rope cos has shape"),
    ],
)
def test_clear_errors(change, message):
    logit, k, v, *_ = (x.detach() for x in _inputs(4))
    with pytest.raises(ValueError, match=message):
        gated_scan(**change({"logit": logit, "k": k, "v": v}))


def test_unknown_implementation_is_refused(monkeypatch):
    logit, k, v, *_ = (x.detach() for x in _inputs(4))
    monkeypatch.setenv("RATPLUS_KERNELS", "fast")
    with pytest.raises(ValueError, match="RATPLUS_KERNELS='fast' is unknown: use one of reference, eager, fused"):
        gated_scan(logit, k, v)
    monkeypatch.setenv("RATPLUS_KERNELS", "reference")
    assert torch.equal(gated_scan(logit, k, v)[0], gated_scan_reference(logit, k, v)[0])
