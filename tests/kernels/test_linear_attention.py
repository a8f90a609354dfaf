"""`ssd` and `gated_delta_rule`: the recurrence against plain loops, chunks against the recurrence, and fla-core."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import gradients

from ratplus.kernels import gated_delta_rule, linear_attention_step, ssd
from ratplus.kernels.linear_attention import _implementation, no_fused_reason
from ratplus.kernels.linear_attention import fused as fla_path
from ratplus.kernels.linear_attention.eager import CHUNK, chunked
from ratplus.kernels.linear_attention.reference import recurrent

OPS = {"ssd": ssd, "delta": gated_delta_rule}


def inputs(op: str, length: int, shared: bool = False, dtype=torch.float64, batch: int = 2, heads: int = 3) -> list:
    """q, k, v, log_decay and, with the delta rule, beta; decays from none to almost all."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key_heads = 1 if shared else heads
    q, k = draw(batch, key_heads, length, 5), F.normalize(draw(batch, key_heads, length, 5), dim=-1)
    scalars = [-4 * draw(batch, heads, length).sigmoid()]
    if op == "delta":
        scalars.append(draw(batch, heads, length).sigmoid())
    return [x.to(dtype).requires_grad_() for x in (q, k, draw(batch, heads, length, 7), *scalars)]


def initial(batch: int = 2, heads: int = 3) -> torch.Tensor:
    return torch.randn(batch, heads, 5, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_is_the_papers_recurrence(op):
    """Written once more with matrices of one head in numpy, as the papers have them: S of d_v x d_k."""
    given = [x.detach().numpy() for x in inputs(op, 9)]
    q, k, v, log_decay = given[:4]
    beta = given[4] if op == "delta" else np.ones_like(log_decay)
    start = initial().numpy()
    want, last = np.zeros_like(v), np.zeros_like(start)
    for b, h in np.ndindex(*v.shape[:2]):
        state = start[b, h].T
        for t in range(v.shape[2]):
            key = k[b, h, t][:, None]
            forget = np.eye(5) - beta[b, h, t] * key @ key.T if op == "delta" else np.eye(5)
            state = np.exp(log_decay[b, h, t]) * state @ forget + beta[b, h, t] * v[b, h, t][:, None] @ key.T
            want[b, h, t] = state @ q[b, h, t]
        last[b, h] = state.T
    o, final = recurrent(*map(torch.from_numpy, given), initial=torch.from_numpy(start))
    np.testing.assert_allclose(o, want, atol=1e-12)
    np.testing.assert_allclose(final, last, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 16, 40])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_chunks_against_the_recurrence(op, shared, length):
    given, start = inputs(op, length, shared), initial().requires_grad_()
    results = []
    for way in (recurrent, lambda *x, initial: chunked(*x, initial=initial, chunk=16)):
        o, final = way(*given, initial=start)
        results.append((o, final, *gradients([o, final], [*given, start])))
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_the_shipped_chunk_and_no_state_before(op):
    given = inputs(op, CHUNK + 1)
    for slow, fast in zip(recurrent(*given), OPS[op](*given), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_a_decay_that_forgets_everything_has_finite_gradients(op):
    given = inputs(op, 20)
    with torch.no_grad():
        given[3][:, :, ::3] = -1000.0
    o, final = chunked(*given, chunk=16)
    for slow, fast in zip(gradients(list(recurrent(*given)), given), gradients([o, final], given), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_low_precision_keeps_a_float32_state(op):
    """Also under autocast, which would put products into bfloat16."""
    given = [x.detach() for x in inputs(op, 50, dtype=torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        o, final = OPS[op](*given)
    want, last = recurrent(*(x.double() for x in given))
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(final.double(), last, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(o.double(), want, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("op", OPS)
def test_steps_are_the_recurrence(op):
    given, state = [x.detach() for x in inputs(op, 6, shared=True)], initial()
    want, last = recurrent(*given, initial=state.clone())
    for t in range(6):
        q, k, v, log_decay, *beta = (x[:, :, t] for x in given)
        o = linear_attention_step(q, k, v, log_decay, beta[0] if beta else None, state)
        torch.testing.assert_close(o, want[:, :, t], atol=1e-12, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=0)


@pytest.mark.parametrize("op", OPS)
def test_the_environment_forces_the_reference(op, monkeypatch):
    given = inputs(op, 3)
    called = []
    monkeypatch.setattr("ratplus.kernels.linear_attention.recurrent", lambda *x: called.append(x))
    monkeypatch.setenv("RATPLUS_KERNELS", "reference")
    OPS[op](*given)
    assert len(called) == 1
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    with pytest.raises(ValueError, match=r"RATPLUS_KERNELS=fused: .*cpu; fla-core's kernels need cuda"):
        OPS[op](*given)


def test_what_does_not_fit_is_refused():
    q, k, v, log_decay, beta = (x.detach() for x in inputs("delta", 4))
    with pytest.raises(ValueError, match=r"ssd: v has shape \(2, 3, 0, 7\)"):
        ssd(q, k, v[:, :, :0], log_decay)
    with pytest.raises(ValueError, match=r"ssd: q has shape .* \[batch, heads or 1, length, d_k\]"):
        ssd(q[:, :2], k[:, :2], v, log_decay)
    with pytest.raises(ValueError, match="gated_delta_rule: log_decay has shape"):
        gated_delta_rule(q, k, v, log_decay[..., None], beta)
    with pytest.raises(ValueError, match="gated_delta_rule: beta has shape"):
        gated_delta_rule(q, k, v, log_decay, beta[:, :1])
    with pytest.raises(ValueError, match="must be one floating-point type"):
        ssd(q.float(), k, v, log_decay)
    with pytest.raises(ValueError, match=r"initial state has shape .* = \(2, 3, 5, 7\)"):
        ssd(q, k, v, log_decay, initial=initial().mT)


# ---- fla-core -----------------------------------------------------------------------------------------------------


def theirs(q, k, v, g, beta=None, scale=None, initial_state=None, output_final_state=False):
    """fla-core 0.6.0's calling convention, and what it computes: [B, T, H, d], and q scaled unless told otherwise."""
    assert all(x.is_contiguous() for x in (q, k, v, g))
    assert k.shape[2] == v.shape[2]
    assert g.dtype == torch.float32
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    heads = [None if x is None else x.transpose(1, 2) for x in (q, k, v, g, beta)]
    o, final = recurrent(*heads, initial=initial_state)
    return o.transpose(1, 2), final if output_final_state else None


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_arguments_of_fla_core(op, shared, monkeypatch):
    home, name = {"ssd": ("simple_gla", "chunk_simple_gla"), "delta": ("gated_delta_rule", "chunk_gated_delta_rule")}[
        op
    ]
    for package in ("fla", "fla.ops", f"fla.ops.{home}"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setattr(sys.modules[f"fla.ops.{home}"], name, theirs, raising=False)
    given, start = [x.detach().float() for x in inputs(op, 6, shared)], initial().float()
    for slow, fast in zip(recurrent(*given, initial=start), fla_path.fused(*given, initial=start), strict=True):
        torch.testing.assert_close(fast, slow)
        assert fast.dtype == torch.float32


def there(*shape: int, dtype=torch.float32, device: str = "cuda"):
    """A tensor on CUDA, of which only device, type and shape are looked at."""
    return types.SimpleNamespace(shape=shape, dtype=dtype, device=torch.device(device))


def test_without_fla_core_cuda_runs_in_chunks_and_says_so(monkeypatch):
    k, v = there(2, 3, 4, 5), there(2, 3, 4, 7)
    monkeypatch.setattr(fla_path, "HAS_FLA", False)
    with pytest.warns(UserWarning, match=r"^ssd runs on the slower eager path: fla-core is not installed .*\[peers\]"):
        assert _implementation("ssd", k, v) == "eager"
    monkeypatch.setattr(fla_path, "HAS_FLA", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _implementation("ssd", k, v) == "fused"
        assert _implementation("ssd", k, there(2, 3, 4, 7, device="cpu")) == "eager"
    assert no_fused_reason("ssd", 5, there(1, dtype=torch.float64)).startswith("float64")
    assert no_fused_reason("ssd", 512, v) is None
    assert no_fused_reason("gated_delta_rule", 512, v) == "d_k=512; fla-core's kernel takes at most 256"


@pytest.mark.parametrize(
    ("capability", "triton_version", "refused"),
    [
        ((9, 0), "3.6.0", True), ((9, 0), "3.4.0+git1", True), ((9, 0), "3.3.1", False), ((9, 0), "3.7.1", False),
        ((9, 0), "3.10.0", False), ((8, 0), "3.6.0", False), ((10, 0), "3.6.0", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("op", ["ssd", "gated_delta_rule"])
def test_where_fla_core_has_no_backward_pass_training_runs_in_chunks(
    op, capability, triton_version, refused, monkeypatch
):
    """fla-core raises RuntimeError there, in the backward pass, when the forward pass has run."""
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=triton_version))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(fla_path, "HAS_FLA", True)
    k, v = there(2, 3, 4, 64), there(2, 3, 4, 128, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _implementation(op, k, v) == "fused"
    if not refused:
        assert _implementation(op, k, v, gradients=True) == "fused"
        return
    with pytest.warns(UserWarning, match=rf"^{op} runs on the slower eager path: Triton {triton_version[:5]}.*Hopper"):
        assert _implementation(op, k, v, gradients=True) == "eager"
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    with pytest.raises(ValueError, match=r"^RATPLUS_KERNELS=fused: .*wrongly.*Triton 3.7.1 and later do not"):
        _implementation(op, k, v, gradients=True)


def test_odd_sizes_in_sixteen_bits_have_no_backward_pass_in_fla_core(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(fla_path, "HAS_FLA", True)
    v = there(2, 3, 4, 7, dtype=torch.bfloat16)
    assert no_fused_reason("ssd", 4, v) is None
    assert no_fused_reason("gated_delta_rule", 4, v, gradients=True) is None
    assert no_fused_reason("ssd", 5, there(2, 3, 4, 7), gradients=True) is None
    assert no_fused_reason("ssd", 4, v, gradients=True).startswith("d_k=4, d_v=7; fla-core's backward pass takes even")


def test_a_backward_pass_may_follow_where_anything_has_a_gradient(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ratplus.kernels.linear_attention._implementation", lambda op, k, v, needed: asked.append(needed) or "eager"
    )
    given, start = inputs("delta", 3), initial()
    plain = [x.detach() for x in given]
    gated_delta_rule(*plain, initial=start)
    gated_delta_rule(*plain, initial=start.requires_grad_())
    ssd(*plain[:3], given[3])
    with torch.no_grad():
        ssd(*given[:4])
    assert asked == [False, True, True, False]
