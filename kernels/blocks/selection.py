"""Which blocks a query reads: its own, block 0 if forced, and the best of the complete blocks before its own.

Equal scores go to the block of lower index: they are told apart first (`ranks`), since `topk` breaks ties as it likes.
"""

from typing import Any

import torch
from torch import Tensor

from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.settings import Blocks

ABSENT = -1
SCORES_LIMIT = {"cpu": 1 << 19, "cuda": 1 << 26}  # scores that are held at a time: queries are cut to stay below
SORTED = 1 << 10  # so few scores of all sequences and heads are sorted sooner than a step finds the largest of them
_LOW = 0xFFFFFFFF  # the lower 32 bits
_LEAST = -(1 << 63)  # int64, below every rank


def select_blocks(
    q: Tensor,
    metadata: Tensor,
    start: Tensor | int,
    top: Tensor,
    blocks: Blocks,
    slots: int,
    heads: Tensor | None = None,
) -> Tensor:
    """The blocks that each query reads, int32 [B, H_kv, T, slots]; ABSENT (-1) where there are fewer.

    q: [B, H, T, d], the queries of positions start .. start + T - 1 (start: an int, or int64 [B]).
    metadata: [B, H_kv, n, parts, d] of blocks 0 .. n - 1, n at least the number of complete blocks before any of these
        queries' own; what stands behind is not read. top: int32 [H_kv], blocks a query reads, at most `slots`; 0: none.
    heads: [H_kv], which key heads these are, for random scores (None: 0, 1, 2, ...).

    Slot 0 holds the query's own block, slot 1 block 0 if it is forced (ABSENT where that is the own one), the others
    the best of the rest, best first. Runs without gradients and without waiting for the device.
    """
    with torch.no_grad():
        batch, kv_heads, count = metadata.shape[:3]
        length = q.shape[2]
        limit = SCORES_LIMIT["cpu" if q.device.type == "cpu" else "cuda"]
        rows = max(1, limit // max(1, batch * kv_heads * count))
        start = start if isinstance(start, int) else start[:, None]
        parts = []
        for begin in range(0, length, rows):
            t = begin + torch.arange(min(rows, length - begin), device=q.device)
            positions = (t + start).expand(batch, -1)
            # Blocks that no query of these can choose are left out where asking costs nothing.
            rivals = metadata[:, :, : int(positions.max()) // blocks.span] if q.device.type == "cpu" else metadata
            scores = score_blocks(q[:, :, begin : begin + rows], rivals, positions, blocks, heads)
            parts.append(choose(scores, positions, top, blocks, slots))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def select_at(
    q: Tensor, metadata: Tensor, position: int, tops: list[int], blocks: Blocks, slots: int, heads: Tensor | None
) -> Tensor:
    """`select_blocks` of one query a sequence, q [B, H, d], all at one `position`: [B, H_kv, slots].

    The position being a number, only blocks that may be chosen are scored, and nothing has to be masked.
    """
    own, forced = position // blocks.span, 1 + blocks.first
    ids = torch.empty(*metadata.shape[:2], slots, dtype=torch.int32, device=q.device)
    if slots == 0:
        return ids
    ids[..., 0] = own
    if blocks.first and slots > 1:
        ids[..., 1] = 0 if own > 0 else ABSENT
    least = int(blocks.first)
    best = max(0, min(slots - forced, own - least))
    if best > 0:
        scores = score_blocks(q.unsqueeze(2), metadata[:, :, least:own], position, blocks, heads, least)
        torch.add(_largest(scores.squeeze(2), best), least, out=ids[..., forced : forced + best])
    if forced + best < slots:
        ids[..., forced + best :] = ABSENT
    if min(tops) < slots:
        allowed = torch.arange(slots, device=q.device) < torch.tensor(tops, device=q.device).unsqueeze(1)
        ids.masked_fill_(~allowed, ABSENT)
    return ids


def score_blocks(
    q: Tensor, metadata: Tensor, positions: Tensor | int, blocks: Blocks, heads: Tensor | None, begin: int = 0
) -> Tensor:
    """Scores [B, H_kv, T, n] of all blocks, summed over the queries that share a key head.

    positions: [B, T], or that of all queries. heads: as of `select_blocks`. begin: the first of the blocks.
    """
    if blocks.score == "random":
        index = torch.arange(begin, begin + metadata.shape[2], device=q.device)
        heads = torch.arange(metadata.shape[1], device=q.device) if heads is None else heads
        if isinstance(positions, int):
            positions = torch.full((q.shape[0], q.shape[2]), positions, device=q.device)
        return random_scores(blocks.seed, heads[:, None, None], positions[:, None, :, None], index)
    dtype = torch.promote_types(metadata.dtype, torch.float32)
    q = q.to(dtype)
    if blocks.score == "mean":
        return _sum_of_group(q, metadata.shape[1]) @ metadata.squeeze(3).to(dtype).transpose(-1, -2)
    # max(q min, q max) is q max where q is positive and q min where it is negative: one product of twice the width.
    signed = [_sum_of_group(x, metadata.shape[1]) for x in (q.clamp(max=0), q.clamp(min=0))]
    return torch.cat(signed, dim=-1) @ metadata.flatten(-2).to(dtype).transpose(-1, -2)


def _sum_of_group(q: Tensor, kv_heads: int) -> Tensor:
    """[B, H, T, d] -> [B, H_kv, T, d]"""
    return q if q.shape[1] == kv_heads else q.unflatten(1, (kv_heads, -1)).sum(dim=2)


def random_scores(seed: int, head: Tensor | int, position: Tensor, block: Tensor) -> Tensor:
    """float32 in [0, 1), multiples of 2^-24, that look independent for different (seed, head, position, block).

    A function of these four alone (all at least 0): the same for every prefix, batch and device. The last three
    broadcast. `layer_seed` gives layers of a model seeds of their own.
    """
    state = _mix(_mix(_mix(seed, head), position), block)
    return (state >> 8).to(torch.float32) * 2.0**-24


def layer_seed(seed: int, layer: int) -> int:
    """The seed that `random_scores` is given in a layer, so that layers of one seed draw differently."""
    return int(_mix(_mix(0, seed), layer))


def _mix(state: Any, number: Any) -> Any:
    """A hash of two whole numbers below 2^32, or of tensors of them."""
    x = (state + number + 0x9E3779B9) & _LOW  # keeps zeros apart: 2^32 divided by the golden ratio
    # The finalizer "lowbias32" of Chris Wellons' search for integer hashes (public domain).
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def choose(scores: Tensor, positions: Tensor, top: Tensor, blocks: Blocks, slots: int) -> Tensor:
    """`select_blocks` from scores [B, H_kv, T, n] and positions [B, T]."""
    count = scores.shape[-1]
    own = (positions // blocks.span)[:, None, :, None]
    index = torch.arange(count, device=scores.device)
    rival = index < own
    forced = [own.expand(*scores.shape[:3], 1)]
    if blocks.first:
        rival = rival & (index > 0)
        forced.append(torch.where(own > 0, 0, ABSENT).expand(*scores.shape[:3], 1))
    free = slots - len(forced)
    best = min(free, count)
    chosen = [x.to(torch.int32) for x in forced]
    if best > 0:
        chosen.append(_best(scores, rival, best))
    ids = torch.cat(chosen, dim=-1)
    ids = torch.nn.functional.pad(ids, (0, slots - ids.shape[-1]), value=ABSENT)[..., :slots]
    allowed = torch.arange(slots, device=scores.device) < top[:, None]
    return ids.masked_fill_(~allowed[:, None, :], ABSENT)


def _best(scores: Tensor, rival: Tensor, count: int) -> Tensor:
    """int32 [..., count]: indices of the largest scores among `rival`, largest first, ABSENT where there are fewer."""
    if scores.dtype == torch.float64:
        ranked = scores.masked_fill(~rival, float("-inf")).sort(dim=-1, descending=True, stable=True)
        index, missing = ranked.indices[..., :count], ranked.values[..., :count] == float("-inf")
    else:
        values, index = ranks(scores).masked_fill_(~rival, _LEAST).topk(count, dim=-1)
        missing = values == _LEAST
    return index.masked_fill_(missing, ABSENT).to(torch.int32)


def _largest(scores: Tensor, count: int) -> Tensor:
    """int64 [..., count]: indices of the largest of scores [..., n], largest first."""
    if scores.dtype == torch.float64 or scores.numel() <= SORTED:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return ranks(scores).topk(count, dim=-1).indices


def ranks(scores: Tensor) -> Tensor:
    """int64 [..., n], ordered like float32 scores [..., n], where of equal ones the first is the largest.

    No two in a row are equal, and `topk` finds the largest of whole numbers sooner than those of others.
    """
    # A float32 is a sign and a magnitude; 0.0 is added since -0.0 equals 0.0.
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))
    ahead = torch.arange(scores.shape[-1], 0, -1, device=scores.device)
    return torch.add(ahead, ordered, alpha=1 << 32)


def blocks_of_forward(
    q: Tensor, k: Tensor, metadata: Tensor | None, start: Tensor | int, top: Tensor, blocks: Blocks, slots: int,
    heads: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`select_blocks`, with the metadata made from the keys where none is given."""
    with torch.no_grad():
        metadata = summarise(k, blocks) if metadata is None else metadata
        return select_blocks(q, metadata, start, top, blocks, slots, heads)
