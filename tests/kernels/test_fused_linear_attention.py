"""fla-core's real kernels in Triton's interpreter, as `fused` calls them, against the recurrence: forward and backward.

Skipped where fla-core is not installed.
"""

import os
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fla_core import load

from ratplus.kernels.linear_attention.fused import HAS_FLA, fused
from ratplus.kernels.linear_attention.reference import recurrent

if os.environ.get("TRITON_INTERPRET") != "1" or not HAS_FLA:
    pytest.skip("needs TRITON_INTERPRET=1 and fla-core", allow_module_level=True)

import triton.language as tl
from triton.runtime import interpreter


def scalars(*bounds):
    """As `range` when compiled: what it counts has the methods of a scalar, and is not the interpreter's plain int."""
    for i in range(*(int(x.handle.data.item()) if isinstance(x, tl.tensor) else int(x) for x in bounds)):
        yield tl.tensor(interpreter.TensorHandle(np.array([i], dtype=np.int32), tl.int32), tl.int32)


@pytest.fixture
def _fla(monkeypatch):
    load(monkeypatch, 1)
    for name in ("chunk_h", "chunk_delta_h"):
        monkeypatch.setattr(sys.modules[f"fla.ops.common.{name}"], "range", scalars, raising=False)


@pytest.mark.usefixtures("_fla")
@pytest.mark.parametrize(
    ("op", "length", "shared", "dtype", "limit"),
    [
        ("ssd", 130, False, torch.float32, 5e-6), ("ssd", 70, True, torch.float16, 2e-3),
        ("delta", 130, False, torch.float32, 5e-6), ("delta", 70, True, torch.float16, 2e-3),
        ("delta", 1, False, torch.float32, 5e-6),
    ],
)  # fmt: skip
def test_real_kernels(op, length, shared, dtype, limit):
    """Scale, layout, decay, beta, the states, and all gradients; lengths that fill no chunk of 64."""
    torch.manual_seed(0)
    heads, d_k, d_v = 2, 16, 32
    q, k = torch.randn(2, 1, 1 if shared else heads, length, d_k)
    given = [q.to(dtype), F.normalize(k, dim=-1).to(dtype), torch.randn(1, heads, length, d_v).to(dtype)]
    given.append(-2.0 * torch.rand(1, heads, length) ** 4)
    if op == "delta":
        given.append(torch.rand(1, heads, length))
    given.append(torch.randn(1, heads, d_k, d_v))
    exact = [x.double().requires_grad_() for x in given]
    given = [x.requires_grad_() for x in given]
    results = []
    for way, (*inputs, start) in ((fused, given), (recurrent, exact)):
        o, final = way(*inputs, initial=start)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (o, final)]
        loss = (o.double() * weights[0]).sum() + (final.double() * weights[1]).sum()
        results.append([o, final, *torch.autograd.grad(loss, [*inputs, start])])
    names = ("output", "state", "q", "k", "v", "log_decay", *(["beta"] if op == "delta" else []), "initial")
    for name, found, want in zip(names, *results, strict=True):
        error = (found.detach().double() - want.detach()).norm() / want.detach().norm()
        assert error <= limit, f"{name}: relative error {error:.1e}"
