"""Other ways to compute what our operators compute, to be timed beside them.

The paper's formulation, written from its description: a generic associative scan in float32 over gates repeated for k
and v, then two FlexAttention passes (dilated keys; window and sinks) merged by their log-sum-exps. Peers from other
packages are optional; one that isn't installed, or can't take a shape, is reported as skipped with the reason.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

Run = Callable[[], object]


@lru_cache
def compiled(function: Callable, **options) -> Callable:
    """torch.compile on CUDA happens once a process and function, not once a shape list."""
    return torch.compile(function, dynamic=False, **options)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], left[1] * right[0] + right[1]


def paper_scan(logit: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """k_tilde (rotated) and v_tilde [B, H, T, d] by `associative_scan`."""
    from torch._higher_order_ops.associative_scan import associative_scan

    gate = torch.sigmoid(logit.float()).repeat(1, 1, 1, 2)
    inputs = (1 - gate) * torch.cat((k, v), dim=-1).float()
    mode = "pointwise" if k.is_cuda else "generic"
    _, state = associative_scan(_combine, (gate, inputs), dim=2, combine_mode=mode)
    k_tilde, v_tilde = state.chunk(2, dim=-1)
    return _rotate(k_tilde, cos, sin).to(k.dtype), v_tilde.to(v.dtype)


class PaperAttention:
    """Two FlexAttention passes and their merge. The block masks are made once here; the paper makes them every time."""

    def __init__(self, dilation: int, window: int, sinks: int, length: int, device: str, compile_it: bool):
        from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

        self.request = AuxRequest(lse=True)
        self.dilation, self.first = dilation, (sinks // dilation) * dilation + dilation - 1
        kept = len(range(self.first, length, dilation))

        def dilated(b, h, t, n):
            return self.first + n * dilation < t - window

        def local(b, h, t, p):
            return ((t - p <= window) | (p < sinks)) & (p <= t)

        make = compiled(create_block_mask) if compile_it else create_block_mask
        self.far_mask = make(dilated, None, None, length, kept, device=device) if kept else None
        self.near_mask = make(local, None, None, length, length, device=device)
        self.flex = compiled(flex_attention) if compile_it else flex_attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near, near_lse = self._attend(q, k, v, self.near_mask)
        if self.far_mask is None:
            return near
        k, v = (x[:, :, self.first :: self.dilation] for x in (k, v))
        far, far_lse = self._attend(q, k, v, self.far_mask)
        weight = torch.sigmoid(far_lse.float() - near_lse.float()).unsqueeze(-1).to(q.dtype)  # exactly 0 at -inf
        return near + weight * (far - near)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask) -> tuple[Tensor, Tensor]:
        out, extra = self.flex(q, k, v, block_mask=mask, return_aux=self.request)
        assert extra.lse is not None  # it is what `request` asks for
        return out, extra.lse


class OneMaskAttention:
    """One FlexAttention pass over the whole pattern: its blocks are dense as soon as D is below the block size."""

    def __init__(self, dilation: int, window: int, sinks: int, length: int, device: str, compile_it: bool):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b, h, t, p):
            return ((t - p <= window) | (p < sinks) | ((p + 1) % dilation == 0)) & (p <= t)

        make = compiled(create_block_mask) if compile_it else create_block_mask
        self.mask = make(visible, None, None, length, length, device=device)
        self.flex = compiled(flex_attention) if compile_it else flex_attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.flex(q, k, v, block_mask=self.mask)


def fla_hgrn(logit: Tensor, k: Tensor, v: Tensor) -> Run:
    """flash-linear-attention's chunked HGRN, [B, T, channels], once for k and v side by side; no rotation."""
    chunk_hgrn = import_module("fla.ops.hgrn").chunk_hgrn
    batch, heads, length, d_head = k.shape

    def run():
        flat = [x.transpose(1, 2).reshape(batch, length, heads * d_head) for x in (logit, k, v)]
        gate = torch.nn.functional.logsigmoid(flat[0].float()).repeat(1, 1, 2)
        inputs = torch.cat(flat[1:], dim=-1) * (1 - gate.exp()).to(k.dtype)
        return chunk_hgrn(inputs.contiguous(), gate.to(k.dtype).contiguous())

    return run


def accelerated_scan(logit: Tensor, k: Tensor, v: Tensor) -> Run:
    """accelerated-scan's warp kernel: time-contiguous [B, channels, T], T a power of two up to 65536; no rotation."""
    scan = import_module("accelerated_scan.warp").scan
    batch, heads, length, d_head = k.shape
    if length & (length - 1) or length > 65536:
        raise ValueError(f"it takes powers of two up to 65536 time steps, not {length}")

    def run():
        flat = [x.transpose(2, 3).reshape(batch, heads * d_head, length) for x in (logit, k, v)]
        gate = torch.sigmoid(flat[0].float()).repeat(1, 2, 1).to(k.dtype)
        return scan(gate.contiguous(), ((1 - gate) * torch.cat(flat[1:], dim=1)).contiguous())

    return run
