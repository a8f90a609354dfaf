"""fla-core's kernels as `ssd` and `gated_delta_rule` call them, on a CUDA device (`make gpu-check`).

The operators' tests are skipped where fla-core is not installed: there CUDA runs our chunks, which other tests hold.
What the kernels compute is held on CPUs too, in Triton's interpreter (`test_fused_linear_attention.py`).
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from fla_core import load

from ratplus import ModelConfig, RATPlus
from ratplus.kernels import gated_delta_rule, ssd
from ratplus.kernels.linear_attention import no_fused_reason
from ratplus.kernels.linear_attention.fused import HAS_FLA
from ratplus.kernels.linear_attention.reference import recurrent

pytestmark = pytest.mark.gpu
OPS = {"ssd": ssd, "gated_delta_rule": gated_delta_rule}
# With half the precision's rounding where fla-core rounds, the interpreter shows errors of 2e-4 to 6e-4 in fp16, which
# are 2e-3 to 5e-3 in bf16; products of float32 inputs are TF32's.
CASES = [
    pytest.param("ssd", torch.bfloat16, 2e-2, False, id="ssd, bf16"),
    pytest.param("gated_delta_rule", torch.bfloat16, 2e-2, False, id="delta, bf16"),
    pytest.param("gated_delta_rule", torch.float32, 5e-3, True, id="delta, float32 with TF32 products, shared keys"),
]


@pytest.fixture(autouse=True)
def _cuda(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if HAS_FLA:
        load(monkeypatch, 2)
    torch.manual_seed(0)


def inputs(op, length, d_k, d_v, dtype, shared):
    heads = 3
    key_heads = 1 if shared else heads
    q = torch.randn(2, key_heads, length, d_k, device="cuda")
    k = F.normalize(torch.randn(2, key_heads, length, d_k, device="cuda"), dim=-1)
    v = torch.randn(2, heads, length, d_v, device="cuda")
    scalars = [-2.0 * torch.rand(2, heads, length, device="cuda") ** 4]  # most keep nearly everything
    if op == "gated_delta_rule":
        scalars.append(torch.rand(2, heads, length, device="cuda"))
    return [x.requires_grad_() for x in (q.to(dtype), k.to(dtype), v.to(dtype), *scalars)]


def relative(found, exact):
    return ((found.detach().double() - exact.detach()).norm() / exact.detach().norm()).item()


def hold(record_property, names, found, exact, limit):
    """Record every relative error, then say which are too large."""
    errors = {name: relative(x, y) for name, x, y in zip(names, found, exact, strict=True)}
    record_property("relative errors", ", ".join(f"{name} {x:.1e}" for name, x in errors.items()))
    # Written so that NaN is too large.
    wrong = [f"{name}: relative error {x:.1e}, allowed {limit}" for name, x in errors.items() if not x <= limit]
    assert not wrong, "\n".join(wrong)


def prepared(monkeypatch, op, dtype, shared, gradients):
    """Inputs, their start and both in float64; skips where fla-core can't run them."""
    given = inputs(op, 200, 64, 128, dtype, shared)
    if reason := no_fused_reason(op, 64, given[2], gradients):
        pytest.skip(reason)
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    start = torch.randn(2, 3, 64, 128, device="cuda").requires_grad_()
    return given, start, [x.detach().double().requires_grad_() for x in (*given, start)]


@pytest.mark.parametrize(("op", "dtype", "limit", "shared"), CASES)
def test_outputs_and_states(monkeypatch, record_property, op, dtype, limit, shared):
    given, start, exact = prepared(monkeypatch, op, dtype, shared, gradients=False)
    with torch.no_grad():
        found = OPS[op](*given, initial=start)
        want = recurrent(*exact[:-1], initial=exact[-1])
    assert [x.dtype for x in found] == [dtype, torch.float32]
    hold(record_property, ("output", "state"), found, want, limit)


@pytest.mark.parametrize(("op", "dtype", "limit", "shared"), CASES)
def test_gradients(monkeypatch, record_property, op, dtype, limit, shared):
    given, start, exact = prepared(monkeypatch, op, dtype, shared, gradients=True)
    want, last = recurrent(*exact[:-1], initial=exact[-1])
    weights = [torch.randn(x.shape, device="cuda", dtype=torch.float64) for x in (want, last)]

    def slopes(o, final, of):
        return torch.autograd.grad((o.double() * weights[0]).sum() + (final.double() * weights[1]).sum(), of)

    names = ("q", "k", "v", "log_decay", *(["beta"] if len(given) == 5 else []), "initial")
    found = slopes(*OPS[op](*given, initial=start), [*given, start])
    hold(record_property, [f"d {name}" for name in names], found, slopes(want, last, exact), limit)


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
    names = "logits of a forward pass", "logits of a step"
    hold(record_property, names, (found.cpu(), parts[-1].cpu()), (want, want[:, -1]), 5e-3)
