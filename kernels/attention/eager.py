"""Dilated attention in PyTorch, block-wise: cost and memory follow the visible keys, not T x T.

For a block of queries the visible keys are a *band* (the window and the block itself) and a prefix of the *far list*
(sinks and dilated keys, sorted). Far keys count only once they have left the window (p < t - W), so the two never
overlap and one softmax over their concatenation is exact. Without a window the band is the query's own key alone,
which is one column of scores and needs no matrix product.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ratplus.kernels.attention.patterns import Pattern, group_heads

BLOCK_WITH_BAND = (64, 128)  # queries a block, window <= 64 and above: the band is this much wider than the window
BLOCK_WITHOUT_BAND = 256
SCORES_LIMIT = 1 << 23  # elements of one score buffer; rows (batch x head) are cut to stay below


def dilated_attention_eager(
    q: Tensor, k: Tensor, v: Tensor, patterns: list[Pattern], return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """q, k, v [B, H, T, d], one pattern a head -> out [B, H, T, d] and, on request, lse [B, H, T] float32."""
    groups = group_heads(patterns)
    if len(groups) == 1:
        return _attend_group(q, k, v, patterns[0], return_lse)
    # Sort heads by group once: `split` then gives views, and its gradient is one concatenation.
    order = torch.tensor([head for heads in groups.values() for head in heads], device=q.device)
    sizes = [len(heads) for heads in groups.values()]
    parts = zip(*(x.index_select(1, order).split(sizes, dim=1) for x in (q, k, v)))
    done = [_attend_group(*part, pattern, return_lse) for pattern, part in zip(groups, parts)]
    back = order.argsort()
    out = torch.cat([out for out, _ in done], dim=1).index_select(1, back)
    lse = torch.cat([lse for _, lse in done], dim=1).index_select(1, back) if return_lse else None
    return out, lse


def _attend_group(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    if pattern.is_dense(q.shape[2]):
        if not return_lse:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True), None
        pattern = Pattern(dilation=-1, window=q.shape[2] - 1, sinks=0)  # dense, written as one band
    out, lse = _DilatedAttention.apply(q, k, v, pattern, return_lse)
    return out, lse if return_lse else None


@dataclass(frozen=True)
class _Block:
    """Queries [start, stop) and what they see: band keys [band, stop), the first `far` list entries.

    The first `far_open` of these are visible to every query of the block, the others need a mask.
    """

    start: int
    stop: int
    band: int
    far: int
    far_open: int


class _Plan:
    """Everything about one pattern and length that doesn't depend on the data."""

    def __init__(self, pattern: Pattern, length: int, device: torch.device):
        self.pattern, self.length = pattern, length
        self.far_slices = pattern.far_slices(length)
        positions = [torch.arange(s.start, s.stop, s.step, device=device) for s in self.far_slices]
        self.far = torch.cat(positions) if positions else torch.empty(0, dtype=torch.long, device=device)
        self.self_only = pattern.window == 0
        size = BLOCK_WITHOUT_BAND if self.self_only else BLOCK_WITH_BAND[pattern.window > 64]
        self.blocks = [self._block(start, min(start + size, length)) for start in range(0, length, size)]
        rows = torch.arange(size, device=device).unsqueeze(1)
        offset = torch.arange(-pattern.window, size, device=device).unsqueeze(0)  # key position minus block start
        self.hidden_band = None if self.self_only else (offset > rows) | (offset < rows - pattern.window)

    def _block(self, start: int, stop: int) -> _Block:
        window = self.pattern.window
        return _Block(
            start=start,
            stop=stop,
            band=max(0, start - window),
            far=self._far_before(stop - 1 - window),
            far_open=self._far_before(start - window),
        )

    def _far_before(self, position: int) -> int:
        """How many list entries stand before `position`."""
        return sum(len(range(s.start, min(s.stop, max(position, s.start)), s.step)) for s in self.far_slices)

    def gather(self, x: Tensor) -> Tensor:
        """[N, T, d] -> [N, n_far, d], contiguous."""
        if not self.far_slices:
            return x[:, :0]
        return torch.cat([x[:, s] for s in self.far_slices], dim=1)

    def near_width(self, block: _Block) -> int:
        """Columns of scores that the band takes."""
        return 1 if self.self_only else block.stop - block.band

    def columns(self, block: _Block) -> int:
        return self.near_width(block) + block.far

    def row_chunk(self) -> int:
        """How many (batch, head) rows are processed together."""
        widest = max((block.stop - block.start) * self.columns(block) for block in self.blocks)
        return max(1, SCORES_LIMIT // widest)

    def mask_(self, scores: Tensor, block: _Block) -> None:
        """-inf, in place, on the scores [N, rows, columns] of keys that a query doesn't see."""
        rows = block.stop - block.start
        near = self.near_width(block)
        if not self.self_only:
            first = self.pattern.window - (block.start - block.band)
            hidden = self.hidden_band[:rows, first : first + near]
            scores[:, :, :near].masked_fill_(hidden, float("-inf"))
        if block.far > block.far_open:
            limit = torch.arange(block.start, block.stop, device=scores.device).unsqueeze(1) - self.pattern.window
            hidden = self.far[block.far_open : block.far].unsqueeze(0) >= limit
            scores[:, :, near + block.far_open :].masked_fill_(hidden, float("-inf"))


class _Keys:
    """Keys (or values) of a few rows, arranged so that a block's visible ones are one contiguous slice.

    The buffer holds [band | far list]; the band's end stays in place, so only the band is rewritten for each block.
    """

    def __init__(self, plan: _Plan, x: Tensor):
        self.plan, self.x = plan, x
        self.far = plan.gather(x)
        if not plan.self_only:
            self.width = max(plan.near_width(block) for block in plan.blocks)
            self.buffer = x.new_empty(x.shape[0], self.width + self.far.shape[1], x.shape[2])
            self.buffer[:, self.width :] = self.far

    def visible(self, block: _Block) -> Tensor:
        """[N, columns, d]; without a window the far part alone."""
        if self.plan.self_only:
            return self.far[:, : block.far]
        near = self.plan.near_width(block)
        self.buffer[:, self.width - near : self.width] = self.x[:, block.band : block.stop]
        return self.buffer[:, self.width - near : self.width + block.far]

    def products(self, a: Tensor, block: _Block) -> Tensor:
        """a [N, rows, d] times every visible key: [N, rows, columns]."""
        seen = self.visible(block)
        if not self.plan.self_only:
            return torch.bmm(a, seen.transpose(1, 2))
        out = a.new_empty(a.shape[0], a.shape[1], 1 + block.far)
        torch.sum(a * self.x[:, block.start : block.stop], dim=-1, out=out[:, :, 0])
        if block.far:
            torch.bmm(a, seen.transpose(1, 2), out=out[:, :, 1:])
        return out

    def mix(self, weights: Tensor, block: _Block) -> Tensor:
        """weights [N, rows, columns] times the visible values: [N, rows, d]. After `products` of the same block."""
        seen = self.visible(block)
        if not self.plan.self_only:
            return torch.bmm(weights, seen)
        own = weights[:, :, :1] * self.x[:, block.start : block.stop]
        return torch.baddbmm(own, weights[:, :, 1:], seen) if block.far else own


class _Gradient:
    """Accumulates the gradient of keys (or values) of a few rows, block by block."""

    def __init__(self, plan: _Plan, x: Tensor):
        self.plan = plan
        self.near = torch.zeros_like(x)
        self.far = x.new_zeros(x.shape[0], plan.far.shape[0], x.shape[2])

    def add_(self, weights: Tensor, a: Tensor, block: _Block) -> None:
        """Adds weights^T a, weights [N, rows, columns], a [N, rows, d], to the block's visible keys."""
        near = self.plan.near_width(block)
        if self.plan.self_only:
            self.near[:, block.start : block.stop] += weights[:, :, :1] * a
        else:
            self.near[:, block.band : block.stop] += torch.bmm(weights[:, :, :near].transpose(1, 2), a)
        if block.far:
            self.far[:, : block.far] += torch.bmm(weights[:, :, near:].transpose(1, 2), a)

    def total(self) -> Tensor:
        """[N, T, d]"""
        start = 0
        for s in self.plan.far_slices:
            count = len(range(s.start, s.stop, s.step))
            self.near[:, s] += self.far[:, start : start + count]
            start += count
        return self.near


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, T, d] -> [B * H, T, d] in the dtype that the products accumulate in."""
    return x.reshape(-1, *x.shape[2:]).to(dtype)


class _DilatedAttention(torch.autograd.Function):
    """One pattern for all heads. The backward pass computes the scores of each block anew; nothing T x T is kept."""

    @staticmethod
    def forward(ctx, q, k, v, pattern: Pattern, return_lse: bool):
        batch, heads, length, d_head = q.shape
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        plan = _Plan(pattern, length, q.device)
        q_rows, k_rows, v_rows = (_rows(x, dtype) for x in (q, k, v))
        # Memory order [B, T, H, d], so that merging the heads afterwards is a view.
        out = q.new_empty(batch, length, heads, d_head).transpose(1, 2)
        out_rows = torch.empty_like(q_rows)
        lse = q_rows.new_empty(q_rows.shape[0], length if return_lse else 0)
        chunk = plan.row_chunk()
        for first in range(0, batch * heads, chunk):
            part = slice(first, first + chunk)
            keys, values = _Keys(plan, k_rows[part]), _Keys(plan, v_rows[part])
            for block in plan.blocks:
                queries = slice(block.start, block.stop)
                scores = keys.products(q_rows[part, queries] * d_head**-0.5, block)
                plan.mask_(scores, block)
                if return_lse:
                    lse[part, queries] = torch.logsumexp(scores, dim=-1)
                out_rows[part, queries] = values.mix(torch.softmax(scores, dim=-1), block)
        out.copy_(out_rows.view(batch, heads, length, d_head))
        ctx.save_for_backward(q, k, v)
        ctx.plan = plan
        lse = lse.view(batch, heads, -1).to(torch.float32)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, _grad_lse):
        q, k, v = ctx.saved_tensors
        plan = ctx.plan
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        scale = q.shape[3] ** -0.5
        q_rows, k_rows, v_rows, g_rows = (_rows(x, dtype) for x in (q, k, v, grad_out))
        dq, dk, dv = (torch.empty_like(q_rows) for _ in range(3))
        chunk = plan.row_chunk()
        for first in range(0, q_rows.shape[0], chunk):
            part = slice(first, first + chunk)
            keys, values = _Keys(plan, k_rows[part]), _Keys(plan, v_rows[part])
            k_grad, v_grad = _Gradient(plan, k_rows[part]), _Gradient(plan, v_rows[part])
            for block in plan.blocks:
                queries = slice(block.start, block.stop)
                q_block, g_block = q_rows[part, queries] * scale, g_rows[part, queries].contiguous()
                scores = keys.products(q_block, block)
                plan.mask_(scores, block)
                weights = torch.softmax(scores, dim=-1)
                v_grad.add_(weights, g_block, block)
                # d scores = weights * (d weights - sum over keys of weights * d weights)
                d_scores = torch._softmax_backward_data(values.products(g_block, block), weights, -1, dtype)
                dq[part, queries] = keys.mix(d_scores, block).mul_(scale)
                k_grad.add_(d_scores, q_block, block)
            dk[part], dv[part] = k_grad.total(), v_grad.total()
        return (*(x.view(q.shape).to(q.dtype) for x in (dq, dk, dv)), None, None)
