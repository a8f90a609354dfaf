"""Attention over a static pattern and selected blocks in PyTorch: cost follows the keys that are read, not T x T.

What a query sees falls into two parts that never share a key: its own block and the static pattern (`tiles.py`, in
tiles of queries), and the past blocks that it chose (`pairs.py`, block by block). Each part gives an output and a
log-sum-exp, from which one softmax over both follows exactly.

The forward pass returns the blocks that were chosen; the backward pass takes them, and chooses nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import HeadPattern
from ratplus.kernels.blocks.pairs import Pairs, attend, pairs_of_rows
from ratplus.kernels.blocks.selection import blocks_of_forward
from ratplus.kernels.blocks.settings import Blocks, HeadSetting, group_settings, head_settings
from ratplus.kernels.blocks.tiles import TileGradient, TileKeys, TilePlan

Part = tuple[HeadSetting, int, Tensor | slice, Tensor | slice, Tensor | slice]


def forward(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, top: Tensor, heads: Tensor,
    start: Tensor, metadata: Tensor | None, blocks: Blocks, slots: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q [B, H, T, d] of positions start[b] + 0 .. T - 1, k, v [B, H_kv, S, d]; int32 [H_kv] settings.

    Returns out [B, H, T, d], lse [B, H, T] float32 and ids int32 [B, H_kv, T, slots].
    """
    batch, count, length, d_head = q.shape
    ids = blocks_of_forward(q, k, metadata, start, top, blocks, slots, heads)
    out = q.new_empty(batch, length, count, d_head).transpose(1, 2)
    lse = q.new_empty(batch, count, length, dtype=_dtype(q))
    settings = head_settings(dilation, window, sinks, top, k.shape[1], blocks)
    for setting, begin, rows, of_keys, of_queries in _parts(settings, start, count // k.shape[1], q.device):
        args = q[rows][:, of_queries], k[rows][:, of_keys], v[rows][:, of_keys], ids[rows][:, of_keys]
        # Head by head, and copied to its place at the end: parts of a head would be added there to rows far apart.
        some_out, some_lse = (
            x.new_empty(args[0].flatten(0, 1).shape[: x.dim() - 1], dtype=lse.dtype) for x in (out, lse)
        )
        _forward(*args, setting, blocks, begin, some_out, some_lse)
        _put(out, rows, of_queries, some_out.unflatten(0, (-1, args[0].shape[1])))
        _put(lse, rows, of_queries, some_lse.unflatten(0, (-1, args[0].shape[1])))
    return out, lse, ids


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, top: Tensor,
    start: Tensor, out: Tensor, lse: Tensor, ids: Tensor, blocks: Blocks,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, each stored [B, T, H, d], under the choice `ids` of the forward pass."""
    gradients = [torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v)]
    dq, dk, dv = (x.transpose(1, 2) for x in gradients)
    settings = head_settings(dilation, window, sinks, top, k.shape[1], blocks)
    delta = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(dim=-1)
    for setting, begin, rows, of_keys, of_queries in _parts(settings, start, q.shape[1] // k.shape[1], q.device):
        of_q = [x[rows][:, of_queries] for x in (d_out, q, lse, delta)]
        of_k = [x[rows][:, of_keys] for x in (k, v, ids)]
        values = _backward(*of_q, *of_k, setting, blocks, begin)
        for target, heads, value in zip((dq, dk, dv), (of_queries, of_keys, of_keys), values, strict=True):
            _put(target, rows, heads, value)
    return dq, dk, dv


def _parts(settings: list[HeadSetting], start: Tensor, group: int, device: torch.device) -> Iterator[Part]:
    """(setting, first position, sequences, key heads, query heads) of what is computed together."""
    starts = start.tolist()
    for begin in dict.fromkeys(starts):
        found = [b for b, own in enumerate(starts) if own == begin]
        rows = slice(None) if len(found) == len(starts) else torch.tensor(found, device=device)
        groups = group_settings(settings)
        for setting, heads in groups.items():
            if len(groups) == 1:
                yield setting, begin, rows, slice(None), slice(None)
                continue
            of_keys = torch.tensor(heads, device=device)
            of_queries = (of_keys[:, None] * group + torch.arange(group, device=device)).flatten()
            yield setting, begin, rows, of_keys, of_queries


def _put(target: Tensor, rows: Tensor | slice, heads: Tensor | slice, value: Tensor) -> None:
    if isinstance(rows, Tensor) and isinstance(heads, Tensor):
        target[rows[:, None], heads] = value.to(target.dtype)
    else:
        target[rows, heads] = value.to(target.dtype)


def _dtype(q: Tensor) -> torch.dtype:
    """The dtype that products accumulate in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, ...] -> [B * H, ...], contiguous."""
    return x.flatten(0, 1).to(dtype).contiguous()


def _as_pattern(setting: HeadSetting, end: int, blocks: Blocks) -> HeadSetting:
    """A dense setting as a window over everything, which needs no blocks."""
    return HeadSetting(HeadPattern(-1, end - 1, 0), 0) if setting.is_dense(end, blocks) else setting


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, setting: HeadSetting, blocks: Blocks, start: int, out: Tensor,
    lse: Tensor,
) -> None:  # fmt: skip
    """One setting for all heads, one first position for all sequences: fills out [B * H, T, d] and lse [B * H, T]."""
    _, heads, length, d_head = q.shape
    group, dtype, end = heads // k.shape[1], _dtype(q), start + length
    setting = _as_pattern(setting, end, blocks)
    plan = TilePlan(setting, blocks, start, length, q.device, own_elsewhere=blocks.stride == 1)
    # Of one sequence these are views: nothing is copied.
    q_rows, k_rows, v_rows = (x.flatten(0, 1).to(dtype) for x in (q, k[:, :, :end], v[:, :, :end]))
    q_rows, out, lse = (x.unflatten(0, (-1, group)) for x in (q_rows, out, lse))  # [N, G, T, d], [N, G, T]
    past = _rows(_past(ids, setting), torch.int32)  # [N, T, slots]
    filled = plan.first_whole - start if setting.top and blocks.stride == 1 else length
    out[:, :, :filled], lse[:, :, :filled] = 0.0, float("-inf")
    if filled < length:
        _own_blocks(out, lse, q_rows, k_rows, v_rows, blocks.block, start, plan.first_whole)
    chunk = plan.row_chunk(group)
    for first in range(0, q_rows.shape[0] if plan.tiles else 0, chunk):
        part = slice(first, first + chunk)
        keys, values = TileKeys(plan, k_rows[part]), TileKeys(plan, v_rows[part])
        for tile in plan.tiles:
            queries = tile.local(start)
            block = (q_rows[part, :, queries] * d_head**-0.5).flatten(1, 2)
            scores = torch.bmm(block, keys.seen(tile).transpose(1, 2)).unflatten(1, (group, -1))
            scores.masked_fill_(plan.hidden(tile, past[part, queries]).unsqueeze(1), float("-inf"))
            some_lse = torch.logsumexp(scores, dim=-1)
            # A query may see nothing here: exp(-inf - 0) is 0.
            scores.sub_(some_lse.masked_fill(some_lse == float("-inf"), 0.0).unsqueeze(-1)).exp_()
            mixed = torch.bmm(scores.flatten(1, 2), values.seen(tile)).unflatten(1, (group, -1))
            _merge(out[part, :, queries], lse[part, :, queries], mixed, some_lse)
    if past.shape[2]:
        for n, pairs in pairs_of_rows(past, blocks, group):
            _add_pairs(out[n], lse[n], q_rows[n], k_rows[n], v_rows[n], pairs)


def _merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Takes the attention to other keys into out [..., d] and lse [...], in place; one of the two has seen some."""
    total = torch.logaddexp(lse, more_lse)
    out.mul_((lse - total).exp_().unsqueeze(-1)).addcmul_(more, (more_lse - total).exp_().unsqueeze(-1))
    lse.copy_(total)


def _own_blocks(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, block: int, start: int, first: int
) -> None:  # fmt: skip
    """Attention within the blocks that begin at positions first, first + block, ..., the last of which may be short.

    Fills out, lse; they and q: [N, G, T, ...] of positions from `start` on; k, v [N, end, d].
    """
    end = k.shape[1]
    whole = max(first, end - end % block)  # where the short one begins
    for low, high, size in ((first, whole, block), (whole, end, end - whole)):
        if low >= high:
            continue

        def cut(x: Tensor, low: int, high: int, size: int) -> Tensor:
            """[N, T, ...] -> [blocks, N, size, ...], a view."""
            return x[:, low:high].unflatten(1, (-1, size)).transpose(0, 1)

        keys, values = (cut(x, low, high, size) for x in (k, v))
        queries = low - start, high - start, size
        for g in range(q.shape[1]):
            some_out, some_lse = attend(cut(q[:, g], *queries), keys, values, causal=True)
            cut(out[:, g], *queries).copy_(some_out)
            cut(lse[:, g], *queries).copy_(some_lse)


def _past(ids: Tensor, setting: HeadSetting) -> Tensor:
    """The past blocks among ids [B, H, T, slots]: all but slot 0, which holds a query's own block."""
    return ids[..., 1 : max(1, setting.top)]


def _add_pairs(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs) -> None:
    """Takes the pairs into out [N, G, T, d] and lse [N, G, T], which hold the rest, in place."""
    if not pairs.count:
        return
    some_out, some_lse = pairs.attend(pairs.rows(q), k, v)
    of_pairs = pairs.by_query(some_lse)
    total = torch.logaddexp(lse, of_pairs.logsumexp(dim=-1))
    out *= (lse - total).exp_().unsqueeze(-1)
    pairs.add_to_queries(out, some_out, (of_pairs - total.unsqueeze(-1)).exp_())
    lse.copy_(total)


def _backward(
    d_out: Tensor, q: Tensor, lse: Tensor, delta: Tensor, k: Tensor, v: Tensor, ids: Tensor, setting: HeadSetting,
    blocks: Blocks, start: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v. Scores are computed anew, tile by tile and block by block; nothing T x T is kept."""
    _, heads, length, d_head = q.shape
    group, dtype, end, scale = heads // k.shape[1], _dtype(q), start + length, d_head**-0.5
    setting = _as_pattern(setting, end, blocks)
    plan = TilePlan(setting, blocks, start, length, q.device)
    q_rows, g_rows, lse_rows, delta_rows = (_rows(x, dtype).unflatten(0, (-1, group)) for x in (q, d_out, lse, delta))
    q_rows = q_rows * scale  # in float32: not every scale is a power of two
    k_rows, v_rows = _rows(k, dtype), _rows(v, dtype)
    past = _rows(_past(ids, setting), torch.int32)
    dq, dk, dv = torch.empty_like(q_rows), torch.zeros_like(k_rows), torch.zeros_like(v_rows)
    chunk = plan.row_chunk(group)
    for first in range(0, q_rows.shape[0], chunk):
        part = slice(first, first + chunk)
        keys, values = TileKeys(plan, k_rows[part, :end]), TileKeys(plan, v_rows[part, :end])
        k_grad, v_grad = TileGradient(plan, dk[part]), TileGradient(plan, dv[part])
        for tile in plan.tiles:
            queries = tile.local(start)
            q_tile, g_tile = (x[part, :, queries].flatten(1, 2).contiguous() for x in (q_rows, g_rows))
            key, value = keys.seen(tile), values.seen(tile)
            scores = torch.bmm(q_tile, key.transpose(1, 2)).unflatten(1, (group, -1))
            scores.masked_fill_(plan.hidden(tile, past[part, queries]).unsqueeze(1), float("-inf"))
            weights = (scores - lse_rows[part, :, queries, None]).exp_().flatten(1, 2)
            v_grad.add_(weights, g_tile, tile)
            ahead = torch.bmm(g_tile, value.transpose(1, 2))
            d_scores = weights * (ahead - delta_rows[part, :, queries].reshape(-1, q_tile.shape[1], 1))
            dq[part, :, queries] = torch.bmm(d_scores, key).unflatten(1, (group, -1))
            k_grad.add_(d_scores, q_tile, tile)
        k_grad.finish()
        v_grad.finish()
    if past.shape[2]:
        for n, pairs in pairs_of_rows(past, blocks, group):
            of_queries = (q_rows[n], g_rows[n], lse_rows[n], delta_rows[n])
            _add_gradients_of_pairs(*of_queries, k_rows[n], v_rows[n], dq[n], dk[n], dv[n], pairs)
    return [(dq * scale).view(q.shape), dk.view(k.shape), dv.view(v.shape)]


def _add_gradients_of_pairs(
    q: Tensor, d_out: Tensor, lse: Tensor, delta: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    pairs: Pairs,
) -> None:  # fmt: skip
    """Adds what the pairs of a few rows give to dq [N, G, T, d] and dk, dv [N, S, d]."""
    if not pairs.count:
        return
    q_rows, g_rows, lse_rows, delta_rows = (pairs.rows(x) for x in (q, d_out, lse[..., None], delta[..., None]))
    weights = pairs.forget_unused(pairs.products(q_rows, k).sub_(lse_rows).exp_())
    pairs.add_to_keys(dv, weights, g_rows)
    d_scores = pairs.products(g_rows, v).sub_(delta_rows).mul_(weights)
    pairs.add_to_keys(dk, d_scores, q_rows)
    pairs.add_to_queries(dq, pairs.mix(d_scores, k))
