"""Dilated attention in PyTorch, block-wise: cost and memory follow the visible keys, not T x T.

For a block of queries the visible keys are a *band* (the window and the block itself) and a prefix of the *far list*
(sinks and dilated keys, sorted). Far keys count only once they have left the window (p < t - W), so the two never
overlap and one softmax over their concatenation is exact. Without a window the band is the query's own key alone,
which is one column of scores and needs no matrix product.

Query heads that share keys (grouped-query attention) stand one below the other as more rows of the same products: a row
of keys is [T, d] of one (batch, key head), its queries [G, T, d], and a block's products take [G * rows, d] of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.attention.patterns import HeadPattern, group_heads, grouping, head_patterns

# Queries a block. With a band, that is this much wider than the window: small where scores are written out (backward
# pass), larger where a fused call keeps them in cache and only the number of calls counts.
BAND_BLOCK, WIDE_BAND_BLOCK = (64, 128), (64, 256)  # window <= 64, and above
SELF_BLOCK = 256  # no band
SCORES_LIMIT = 1 << 23  # elements of one score buffer; rows (batch x key head) are cut to stay below


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

    def __init__(self, pattern: HeadPattern, length: int, device: torch.device, band_block: tuple[int, int]):
        self.pattern = pattern
        self.far_slices = pattern.far_slices(length)
        positions = [torch.arange(s.start, s.stop, s.step, device=device) for s in self.far_slices]
        self.far = torch.cat(positions) if positions else torch.empty(0, dtype=torch.long, device=device)
        self.self_only = pattern.window == 0
        size = SELF_BLOCK if self.self_only else band_block[pattern.window > 64]
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

    def row_chunk(self, group: int) -> int:
        """How many (batch, key head) rows are processed together, each with `group` heads of queries."""
        widest = max((block.stop - block.start) * self.columns(block) for block in self.blocks)
        return max(1, SCORES_LIMIT // (widest * group))

    def bias(self, block: _Block, dtype: torch.dtype, group: int) -> Tensor:
        """[G * rows, columns]: 0 for visible keys, -inf for the others."""
        bias = torch.zeros(1, block.stop - block.start, self.columns(block), dtype=dtype, device=self.far.device)
        self.mask_(bias, block)
        return bias[0].repeat(group, 1) if group > 1 else bias[0]

    def mask_(self, scores: Tensor, block: _Block) -> None:
        """-inf, in place, on the scores [N, G * rows, columns] of keys that a query doesn't see."""
        rows = block.stop - block.start
        scores = scores.unflatten(1, (-1, rows))
        near = self.near_width(block)
        if self.hidden_band is not None:
            first = self.pattern.window - (block.start - block.band)
            hidden = self.hidden_band[:rows, first : first + near]
            scores[..., :near].masked_fill_(hidden, float("-inf"))
        if block.far > block.far_open:
            limit = torch.arange(block.start, block.stop, device=scores.device).unsqueeze(1) - self.pattern.window
            hidden = self.far[block.far_open : block.far].unsqueeze(0) >= limit
            scores[..., near + block.far_open :].masked_fill_(hidden, float("-inf"))


def _times_own(a: Tensor, own: Tensor) -> Tensor:
    """a [N, G * rows, d or 1] times each query's own key or value, own [N, rows, d]: [N, G * rows, d]."""
    if a.shape[1] == own.shape[1]:
        return a * own
    return (a.unflatten(1, (-1, own.shape[1])) * own.unsqueeze(1)).flatten(1, 2)


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
        """a [N, G * rows, d] times every visible key: [N, G * rows, columns]."""
        seen = self.visible(block)
        if not self.plan.self_only:
            return torch.bmm(a, seen.transpose(1, 2))
        out = a.new_empty(a.shape[0], a.shape[1], 1 + block.far)
        torch.sum(_times_own(a, self.x[:, block.start : block.stop]), dim=-1, out=out[:, :, 0])
        if block.far:
            torch.bmm(a, seen.transpose(1, 2), out=out[:, :, 1:])
        return out

    def mix(self, weights: Tensor, block: _Block) -> Tensor:
        """weights [N, G * rows, columns] times visible values: [N, G * rows, d]. After `products` of the same block."""
        seen = self.visible(block)
        if not self.plan.self_only:
            return torch.bmm(weights, seen)
        own = _times_own(weights[:, :, :1], self.x[:, block.start : block.stop])
        return torch.baddbmm(own, weights[:, :, 1:], seen) if block.far else own


class _Gradient:
    """Accumulates the gradient of keys (or values) of a few rows, block by block."""

    def __init__(self, plan: _Plan, x: Tensor):
        self.plan = plan
        self.near = torch.zeros_like(x)
        self.far = x.new_zeros(x.shape[0], plan.far.shape[0], x.shape[2])

    def add_(self, weights: Tensor, a: Tensor, block: _Block) -> None:
        """Adds weights^T a, weights [N, G * rows, columns], a [N, G * rows, d], to the block's visible keys."""
        near = self.plan.near_width(block)
        if self.plan.self_only:
            own, rows = weights[:, :, :1] * a, block.stop - block.start
            self.near[:, block.start : block.stop] += (
                own if own.shape[1] == rows else own.unflatten(1, (-1, rows)).sum(1)
            )
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


def _dtype(q: Tensor) -> torch.dtype:
    """The dtype that products accumulate in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _forward_blocks(q: Tensor, k: Tensor, v: Tensor, pattern: HeadPattern, return_lse: bool) -> tuple[Tensor, Tensor]:
    """One pattern for all heads: out [B, H, T, d] and lse [B, H, T] (empty unless asked for)."""
    batch, heads, length, d_head = q.shape
    group = heads // k.shape[1]
    fused = pattern.window > 0 and not return_lse
    plan = _Plan(pattern, length, q.device, WIDE_BAND_BLOCK if fused else BAND_BLOCK)
    q_rows, k_rows, v_rows = (_rows(x, _dtype(q)) for x in (q, k, v))
    q_rows = q_rows.unflatten(0, (-1, group))  # [N, G, T, d]
    out = torch.empty_like(q_rows)
    lse = q_rows.new_empty(*q_rows.shape[:2], length if return_lse else 0)
    chunk = plan.row_chunk(group)
    for first in range(0, q_rows.shape[0], chunk):
        part = slice(first, first + chunk)
        keys, values = _Keys(plan, k_rows[part]), _Keys(plan, v_rows[part])
        for block in plan.blocks:
            queries = slice(block.start, block.stop)
            if fused:
                q_block = q_rows[part, :, queries].flatten(1, 2)
                seen = (x[None] for x in (q_block, keys.visible(block), values.visible(block)))
                mixed = F.scaled_dot_product_attention(*seen, attn_mask=plan.bias(block, q_rows.dtype, group))[0]
                out[part, :, queries] = mixed.unflatten(1, (group, -1))
                continue
            scores = keys.products((q_rows[part, :, queries] * d_head**-0.5).flatten(1, 2), block)
            plan.mask_(scores, block)
            if return_lse:
                lse[part, :, queries] = torch.logsumexp(scores, dim=-1).unflatten(1, (group, -1))
            out[part, :, queries] = values.mix(torch.softmax(scores, dim=-1), block).unflatten(1, (group, -1))
    return out.view(q.shape), lse.view(batch, heads, -1)


def _backward_blocks(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: HeadPattern) -> list[Tensor]:
    """Gradients of q, k, v. The scores of each block are computed anew; nothing T x T is kept."""
    plan = _Plan(pattern, q.shape[2], q.device, BAND_BLOCK)
    dtype, scale, group = _dtype(q), q.shape[3] ** -0.5, q.shape[1] // k.shape[1]
    q_rows, k_rows, v_rows, g_rows = (_rows(x, dtype) for x in (q, k, v, d_out))
    q_rows, g_rows = (x.unflatten(0, (-1, group)) for x in (q_rows, g_rows))  # [N, G, T, d]
    dq, dk, dv = (torch.empty_like(x) for x in (q_rows, k_rows, v_rows))
    chunk = plan.row_chunk(group)
    for first in range(0, q_rows.shape[0], chunk):
        part = slice(first, first + chunk)
        keys, values = _Keys(plan, k_rows[part]), _Keys(plan, v_rows[part])
        k_grad, v_grad = _Gradient(plan, k_rows[part]), _Gradient(plan, v_rows[part])
        for block in plan.blocks:
            queries = slice(block.start, block.stop)
            q_block = (q_rows[part, :, queries] * scale).flatten(1, 2)
            g_block = g_rows[part, :, queries].flatten(1, 2).contiguous()
            scores = keys.products(q_block, block)
            plan.mask_(scores, block)
            weights = torch.softmax(scores, dim=-1)
            v_grad.add_(weights, g_block, block)
            # d scores = weights * (d weights - sum over keys of weights * d weights)
            d_scores = torch._softmax_backward_data(values.products(g_block, block), weights, -1, dtype)
            dq[part, :, queries] = keys.mix(d_scores, block).mul_(scale).unflatten(1, (group, -1))
            k_grad.add_(d_scores, q_block, block)
        dk[part], dv[part] = k_grad.total(), v_grad.total()
    return [x.view(like.shape) for x, like in ((dq, q), (dk, k), (dv, v))]


def _as_band(pattern: HeadPattern, length: int) -> HeadPattern:
    """The same pattern; a dense one written as a window over everything, which blocks handle as a growing prefix."""
    return HeadPattern(-1, length - 1, 0) if pattern.is_dense(length) else pattern


def _forward_group(q: Tensor, k: Tensor, v: Tensor, pattern: HeadPattern, return_lse: bool) -> tuple[Tensor, Tensor]:
    if pattern.is_dense(q.shape[2]) and not return_lse:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouping(q, k))
        return out, q.new_empty(*q.shape[:2], 0)
    return _forward_blocks(q, k, v, _as_band(pattern, q.shape[2]), return_lse)


def _time_major(like: Tensor) -> Tensor:
    """Uninitialised [B, H, T, d] stored as [B, T, H, d], so that merging the heads afterwards is a view."""
    batch, heads, length, d_head = like.shape
    return like.new_empty(batch, length, heads, d_head).transpose(1, 2)


def _by_group(patterns: list[HeadPattern], *tensors: Tensor):
    """(pattern, of each tensor the heads or None for all, and those heads of it) for every distinct pattern.

    Tensors with more heads than there are patterns have as many more of each.
    """
    groups = group_heads(patterns)
    for pattern, heads in groups.items():
        if len(groups) == 1:
            yield pattern, [None] * len(tensors), tensors
            continue
        of_keys = torch.tensor(heads, device=tensors[0].device)
        indices = []
        for x in tensors:
            group = x.shape[1] // len(patterns)
            within = torch.arange(group, device=x.device)
            indices.append(of_keys if group == 1 else (of_keys[:, None] * group + within).flatten())
        yield pattern, indices, [x.index_select(1, index) for x, index in zip(tensors, indices)]


def _put(target: Tensor, index: Tensor | None, value: Tensor) -> None:
    """Heads `index` of target [B, H, ...] (None: all) = value."""
    if index is None:
        target.copy_(value)
    else:
        target.index_copy_(1, index, value.to(target.dtype))


def forward(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, d], k, v [B, H_kv, T, d]; int32 [H_kv] patterns -> out [B, H, T, d], lse [B, H, T] float32.

    lse has no columns unless it is asked for.
    """
    batch, heads, length, _ = q.shape
    out = _time_major(q)
    lse = q.new_empty(batch, heads, length if return_lse else 0, dtype=torch.float32)
    for pattern, indices, part in _by_group(head_patterns(dilation, window, sinks, k.shape[1]), q, k, v):
        some_out, some_lse = _forward_group(*part, pattern, return_lse)
        _put(out, indices[0], some_out)
        _put(lse, indices[0], some_lse)
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, each stored [B, T, H, d]."""
    gradients = _time_major(q), _time_major(k), _time_major(v)
    for pattern, indices, part in _by_group(head_patterns(dilation, window, sinks, k.shape[1]), d_out, q, k, v):
        values = _backward_blocks(*part, _as_band(pattern, q.shape[2]))
        for target, index, value in zip(gradients, indices[1:], values):
            _put(target, index, value)
    return gradients
