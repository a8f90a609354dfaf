"""fla-core's kernels as `ssd` and `gated_delta_rule` call them, on a CUDA device (`make gpu-check`).

Skipped where fla-core is not installed: there CUDA runs our chunks, which other tests hold.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F

from ratplus import ModelConfig, RATPlus
from ratplus.kernels import gated_delta_rule, ssd
from ratplus.kernels.linear_attention import no_fused_reason
from ratplus.kernels.linear_attention.reference import recurrent

pytestmark = pytest.mark.gpu
OPS = {"ssd": ssd, "delta": gated_delta_rule}


@pytest.fixture(autouse=True)
def _cuda(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    torch.manual_seed(0)


def inputs(op, length, d_k, d_v, dtype, shared):
    heads = 3
    key_heads = 1 if shared else heads
    q = torch.randn(2, key_heads, length, d_k, device="cuda")
    k = F.normalize(torch.randn(2, key_heads, length, d_k, device="cuda"), dim=-1)
    v = torch.randn(2, heads, length, d_v, device="cuda")
    scalars = [-2.0 * torch.rand(2, heads, length, device="cuda") ** 4]  # most keep nearly everything
    if op == "delta":
        scalars.append(torch.rand(2, heads, length, device="cuda"))
    return [x.requires_grad_() for x in (q.to(dtype), k.to(dtype), v.to(dtype), *scalars)]


def relative(found, exact):
    return ((found.detach().double() - exact.detach()).norm() / exact.detach().norm()).item()


@pytest.mark.parametrize("shared", [False, True], ids=["own keys", "shared keys"])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float32, 5e-3)], ids=["bf16", "float32 with TF32 products"]
)
@pytest.mark.parametrize("op", OPS)
def test_outputs_states_and_gradients(record_property, op, dtype, limit, shared):
    reason = no_fused_reason("ssd", 64, torch.empty(0, device="cuda"))
    if reason:
        pytest.skip(reason)
    given = inputs(op, 200, 64, 128, dtype, shared)
    start = torch.randn(2, 3, 64, 128, device="cuda").requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (*given, start)]
    o, final = OPS[op](*given, initial=start)
    want, last = recurrent(*exact[:-1], initial=exact[-1])
    assert (o.dtype, final.dtype) == (dtype, torch.float32)
    weights = (
        torch.randn(want.shape, device="cuda", dtype=torch.float64),
        torch.randn(last.shape, device="cuda").double(),
    )

    def slopes(o, final, of):
        return torch.autograd.grad((o.double() * weights[0]).sum() + (final.double() * weights[1]).sum(), of)

    pairs = [(o, want), (final, last), *zip(slopes(o, final, [*given, start]), slopes(want, last, exact), strict=True)]
    errors = [relative(x, y) for x, y in pairs]
    record_property("relative errors of output, state and gradients", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= limit for error in errors), errors


@pytest.mark.parametrize("mixer", ["mamba2", "gated_deltanet"])
def test_a_model_on_the_gpu_is_that_on_the_cpu(monkeypatch, record_property, mixer):
    """Logits of a prompt and of steps after it, with fla-core where it is installed."""
    config = ModelConfig(61, 2, 96, 32, recurrence=False, mixer=mixer, d_state=32, query_heads=3, max_len=200)
    model = RATPlus(config)
    model.reset_parameters(seed=0, std=0.1)
    tokens = torch.randint(61, (2, 150), generator=torch.Generator().manual_seed(1))
    monkeypatch.setenv("RATPLUS_KERNELS", "reference")
    with torch.no_grad():
        want = model.double()(tokens)
    model = model.float().cuda()
    monkeypatch.delenv("RATPLUS_KERNELS")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "(ssd|gated_delta_rule) runs on the slower eager path: fla-core is not installed"
        )
        found = model(tokens.cuda())
        cache = model.new_cache(2, None, 200)
        parts = [model.prefill(tokens[:, :140].cuda(), cache)]
        parts += [model.step(tokens[:, t].cuda(), cache) for t in range(140, 150)]
    errors = relative(found.cpu(), want), relative(parts[-1].cpu(), want[:, -1])
    record_property("relative errors of a forward pass and of a step", " ".join(f"{x:.1e}" for x in errors))
    assert all(error <= 5e-3 for error in errors), errors
