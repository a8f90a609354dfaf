"""One decoding step over selected blocks in PyTorch: reads the blocks that are chosen, not the cache."""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.selection import select_at, select_blocks
from ratplus.kernels.blocks.settings import Blocks, HeadSetting, group_settings
from ratplus.kernels.decode.eager import take_token

Pair = tuple[Tensor, Tensor]

# Keys that are gathered at a time, in bytes: they should still lie in the processor's cache when they are multiplied.
GATHERED_BYTES = 1 << 20


def block_decode_eager(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, keys: Tensor, values: Tensor, metadata: Tensor,
    state: Pair | None, positions: Tensor, settings: list[HeadSetting], blocks: Blocks, heads: Tensor | None,
    slots: int, rope: Pair | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `block_decode_attention`: out [B, H, d] and ids int32 [B, H_kv, slots]."""
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    at = positions.tolist()
    longest = max(at)
    # Where all sequences stand at one position, it is a plain number, and what it decides needs no tensors.
    now = longest if min(at) == longest else None
    q, k, v = take_token(q, k, v, logit, state, positions, rope, dtype, now)
    if keys.dtype != dtype:
        q = q.to(keys.dtype).to(dtype)
    for cache, new in ((keys, k), (values, v)):
        if now is None:
            cache[torch.arange(q.shape[0], device=q.device), :, positions] = new.to(cache.dtype)
        else:
            cache[:, :, now].copy_(new)
    complete_blocks(keys, metadata, at, blocks)
    tops = [setting.top for setting in settings]
    if now is None:
        top = torch.tensor(tops, device=q.device)
        rivals = metadata[:, :, : longest // blocks.span]
        ids = select_blocks(q.unsqueeze(2), rivals, positions, top, blocks, slots, heads).squeeze(2)
    else:
        ids = select_at(q, metadata, now, tops, blocks, slots, heads)

    q = q.unflatten(1, (k.shape[1], -1))  # [B, H_kv, G, d]
    groups = group_settings(settings)
    if len(groups) == 1:
        (setting,) = groups
        chosen = ids[:, :, : setting.top]
        out = _attend(q, keys, values, range(k.shape[1]), chosen, positions, longest, now, setting, blocks)
        return out.flatten(1, 2), ids
    out = torch.empty_like(q)
    for setting, found in groups.items():
        chosen = ids[:, found, : setting.top]
        out[:, found] = _attend(q[:, found], keys, values, found, chosen, positions, longest, now, setting, blocks)
    return out.flatten(1, 2), ids


def complete_blocks(keys: Tensor, metadata: Tensor, at: list[int], blocks: Blocks) -> None:
    """Writes the metadata of the blocks that the tokens at positions `at` [B] have completed."""
    completed: dict[int, list[int]] = {}
    for row, position in enumerate(at):
        if (position + 1) % blocks.span == 0:
            completed.setdefault(position // blocks.span, []).append(row)
    for block, found in completed.items():
        tokens = slice(block * blocks.span, (block + 1) * blocks.span)
        if len(found) == len(at):
            summarise(keys[:, :, tokens], blocks, out=metadata[:, :, block : block + 1])
        else:
            metadata[found, :, block] = summarise(keys[found, :, tokens], blocks)[:, :, 0]


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, heads: Sequence[int], chosen: Tensor, positions: Tensor, longest: int,
    now: int | None, setting: HeadSetting, blocks: Blocks,
) -> Tensor:  # fmt: skip
    """Key heads of one setting: q [B, H', G, d], keys, values [B, H_kv, S, d], chosen [B, H', top]; as q.

    heads: which H' of the H_kv heads of keys these are. now: the position of all sequences, None where they differ.
    """
    caches = (keys,) if values.stride() == keys.stride() else (keys, values)  # the rows are the same, or not
    if now is not None and blocks.stride == 1 and setting.top and setting.pattern.is_nothing:
        hidden = None
        rows = [_rows_of_blocks(cache, heads, chosen, now, blocks.block) for cache in caches]
    else:
        tokens, seen = _tokens(chosen, positions, longest, setting, blocks, keys.shape[2])
        hidden = ~seen.flatten(0, 1)
        rows = [_rows(cache, heads, tokens) for cache in caches]
    rows, tables, size = (rows[0], rows[-1]), (_table(keys), _table(values)), q.shape[:2]
    q = q.flatten(0, 1)  # [n, G, d]
    straight = q.device.type == "cpu" and q.shape[1] == 1 and keys.dtype == values.dtype == q.dtype == torch.float32
    # A hidden key may stand there twice, so that more are named than there are: no sparse matrix holds so many.
    straight = straight and rows[0].shape[1] <= tables[0].shape[0]
    return (_where_they_lie if straight else _gathered)(q, tables, rows, hidden).unflatten(0, size)


def _gathered(q: Tensor, tables: Pair, rows: Pair, hidden: Tensor | None) -> Tensor:
    """Attention of q [n, G, d] to copies of the rows [n, m] of two tables, keys and values [., d]; as q.

    hidden: bool [n, m], which of the rows are not attended to.
    """
    (keys, values), (index, value_index) = tables, rows
    q = q * q.shape[2] ** -0.5
    count = index.shape[1]
    chunk = max(1, GATHERED_BYTES // (count * q.shape[2] * q.element_size())) if q.device.type == "cpu" else q.shape[0]
    parts = [slice(first, first + chunk) for first in range(0, q.shape[0], chunk)]
    scores = q.new_empty(*q.shape[:2], count)
    for part in parts:
        torch.bmm(q[part], _read(keys, index[part], q.dtype).transpose(1, 2), out=scores[part])
    if hidden is not None:
        scores.masked_fill_(hidden.unsqueeze(1), float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    out = torch.empty_like(q)
    for part in parts:
        torch.bmm(weights[part], _read(values, value_index[part], q.dtype), out=out[part])
    return out


def _where_they_lie(q: Tensor, tables: Pair, rows: Pair, hidden: Tensor | None) -> Tensor:
    """`_gathered` for one query each, in float32 on a CPU: q [n, 1, d]. Keys and values are not copied for it.

    The choice of rows is a sparse matrix: of its product with all keys only the chosen places are computed, and its
    product with all values reads their rows alone. Both took about two thirds of the time of copying first.
    """
    (keys, values), (index, value_index) = tables, rows
    n, m = index.shape
    ends = torch.arange(0, n * m + 1, m, dtype=index.dtype)  # of what belongs to each query
    _silence_sparse()
    zeros = q.new_zeros(n * m)
    places = torch.sparse_csr_tensor(ends, index.flatten(), zeros, (n, keys.shape[0]), check_invariants=False)
    torch.sparse.sampled_addmm(
        places, q.squeeze(1), keys.t(), beta=0.0, alpha=q.shape[2] ** -0.5, out=places
    )  # fmt: skip
    scores = places.values().view(n, m)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1).view(-1)
    # What `F.embedding_bag` calls, which would make `ends` anew.
    out = torch.embedding_bag(values, value_index.flatten(), ends, False, 0, False, weights, True)[0]
    return out.unsqueeze(1)


@lru_cache(maxsize=1)
def _silence_sparse() -> None:
    """PyTorch warns once a process that sparse matrices are in beta; we let it do so where nobody hears it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def _rows_of_blocks(cache: Tensor, heads: Sequence[int], chosen: Tensor, now: int, block: int) -> Tensor:
    """`_rows` of the past blocks in `chosen` [B, H', top] and of the own block, all queries being at `now`.

    All heads then read equally many blocks, so that nothing needs a mask.
    """
    past = min(chosen.shape[2], now // block + 1) - 1
    read = torch.cat((chosen[..., 1 : past + 1], chosen[..., :1]), dim=2)
    rows = torch.add(_first_rows(cache, heads, block), read.unsqueeze(3), alpha=block)
    return rows.flatten(2)[..., : past * block + now % block + 1].flatten(0, 1)


def _tokens(
    chosen: Tensor, positions: Tensor, longest: int, setting: HeadSetting, blocks: Blocks, capacity: int
) -> tuple[Tensor, Tensor]:
    """Tokens [B, H', n] that stand for what the heads of a setting read, and which of them count (each key once)."""
    past = chosen[..., 1:].long()  # slot 0 is the own block
    now = positions[:, None, None]
    tokens, seen = static_tokens(positions, longest, setting, blocks)
    tokens = tokens.unsqueeze(1).expand(-1, chosen.shape[1], -1)
    seen = seen.unsqueeze(1) & ~_covered(tokens, past, blocks) if tokens.shape[2] else tokens.bool()
    if setting.top:
        own = (now // blocks.span).expand(-1, chosen.shape[1], -1)
        within = torch.arange(blocks.stride - 1, blocks.span, blocks.stride, device=chosen.device)
        token = (torch.cat((own, past), dim=2).unsqueeze(3) * blocks.span + within).flatten(2)
        seen = torch.cat((seen, (token >= 0) & (token <= now)), dim=2)
        tokens = torch.cat((tokens, token.clamp_(min=0, max=capacity - 1)), dim=2)
    return tokens, seen


def static_tokens(positions: Tensor, longest: int, setting: HeadSetting, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Tokens [B, n] of the static pattern that lie in no block of their query's own, and whether each counts (once).

    All heads alike: whether a past block that a head chose holds a token is not asked here.
    """
    pattern, device = setting.pattern, positions.device
    now = positions.unsqueeze(1)
    left = now - pattern.window  # tokens before it have left the window
    tokens, counts = [now[:, :0]], [now[:, :0].bool()]

    def add(token: Tensor, counted: Tensor) -> None:
        if setting.top:  # not those of the own block
            own = (token >= now - now % blocks.span) & ((token + 1) % blocks.stride == 0)
            counted = counted & ~own
        tokens.append(token.expand(now.shape[0], -1))
        counts.append((counted & (token >= 0) & (token <= now)).expand(now.shape[0], -1))

    if pattern.window or blocks.stride > 1 or not setting.top:  # else a query's own block holds what this would add
        recent = now - torch.arange(min(pattern.window, longest) + 1, device=device)
        add(recent, torch.ones_like(recent, dtype=torch.bool))
    if pattern.sinks:
        sink = torch.arange(min(pattern.sinks, longest + 1), device=device).unsqueeze(0)
        add(sink, sink < left)
    if pattern.dilation >= 1:
        step = pattern.dilation
        kept = torch.arange(step - 1, max(step, longest + 1), step, device=device).unsqueeze(0)
        add(kept, (kept < left) & (kept >= pattern.sinks))
    token, count = torch.cat(tokens, dim=1), torch.cat(counts, dim=1)
    return torch.where(count, token, 0), count


def _covered(tokens: Tensor, past: Tensor, blocks: Blocks) -> Tensor:
    """[B, H', n] bool: which tokens [B, H', n] a chosen past block [B, H', slots] holds."""
    reach = int(tokens.max()) // blocks.span + 1
    chosen = torch.zeros(*past.shape[:2], reach + 1, dtype=torch.bool, device=past.device)
    # A block behind all tokens covers none of them, and neither does one that is ABSENT.
    chosen.scatter_(2, past.where((past >= 0) & (past < reach), reach), True)
    return chosen.gather(2, tokens // blocks.span) & ((tokens + 1) % blocks.stride == 0)


def _table(cache: Tensor) -> Tensor:
    """A view [rows, d] of all that a cache [B, H', S, d] spans; its tokens are `d` numbers side by side."""
    batch, heads, tokens, d = cache.shape
    of_batch, of_heads, *_ = cache.stride()
    count = ((batch - 1) * of_batch + (heads - 1) * of_heads) // d + tokens
    return cache.as_strided((count, d), (d, 1))


def _rows(cache: Tensor, heads: Sequence[int], tokens: Tensor) -> Tensor:
    """[B * H', n]: the rows of the cache's table in which tokens [B, H', n] of these key heads lie."""
    return (tokens + _first_rows(cache, heads, 1).squeeze(2)).flatten(0, 1)


def _first_rows(cache: Tensor, heads: Sequence[int], count: int) -> Tensor:
    """int32 [B, H', 1, count]: the rows of the cache's table in which the first tokens of these key heads lie."""
    d = cache.shape[3]
    make = _make_first_rows if cache.device.type == "cpu" else _make_first_rows.__wrapped__
    return make(cache.shape[0], cache.stride(0) // d, tuple(heads), cache.stride(1) // d, count, cache.device)


@lru_cache(maxsize=64)  # they are the same at every step
def _make_first_rows(
    batch: int, batch_step: int, heads: tuple[int, ...], head_step: int, count: int, device: torch.device
) -> Tensor:
    of_sequences, tokens = (torch.arange(n, dtype=torch.int32, device=device) for n in (batch, count))
    of_heads = torch.tensor(heads, dtype=torch.int32, device=device) * head_step
    return (of_sequences[:, None] * batch_step + of_heads)[:, :, None, None] + tokens


def _read(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """[n', n, d]: rows `index` [n', n] of a table [rows, d]."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1).to(dtype)
