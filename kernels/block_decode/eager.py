"""One decoding step over selected blocks in PyTorch: reads the blocks that are chosen, not the cache."""

import torch
import torch.nn.functional as F
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
    state: Pair | None, positions: Tensor, settings: list[HeadSetting], blocks: Blocks, heads: Tensor, slots: int,
    rope: Pair | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `block_decode_attention`: out [B, H, d] and ids int32 [B, H_kv, slots]."""
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    at = positions.tolist()
    longest = max(at)
    # Where all sequences stand at one position, it is a plain number, and what it decides needs no tensors.
    now = longest if min(at) == longest else None
    q, k, v = take_token(q, k, v, logit, state, positions, rope, dtype, now)
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

    q = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [B, H_kv, G, d]
    groups = group_settings(settings)
    if len(groups) == 1:
        (setting,) = groups
        out = _attend(q, keys, values, ids[:, :, : setting.top], positions, longest, now, setting, blocks)
        return out.flatten(1, 2), ids
    out = torch.empty_like(q)
    for setting, found in groups.items():
        part = slice(found[0], found[-1] + 1) if found[-1] - found[0] + 1 == len(found) else found
        chosen = ids[:, part, : setting.top]
        out[:, part] = _attend(
            q[:, part], keys[:, part], values[:, part], chosen, positions, longest, now, setting, blocks
        )
    return out.flatten(1, 2), ids


def complete_blocks(keys: Tensor, metadata: Tensor, at: list[int], blocks: Blocks) -> None:
    """Writes the metadata of the blocks that the tokens at positions `at` [B] have completed."""
    completed: dict[int, list[int]] = {}
    for row, position in enumerate(at):
        if (position + 1) % blocks.span == 0:
            completed.setdefault(position // blocks.span, []).append(row)
    for block, found in completed.items():
        rows = slice(None) if len(found) == len(at) else found
        members = keys[rows, :, block * blocks.span : (block + 1) * blocks.span]
        metadata[rows, :, block] = summarise(members, blocks)[:, :, 0]


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, chosen: Tensor, positions: Tensor, longest: int, now: int | None,
    setting: HeadSetting, blocks: Blocks,
) -> Tensor:  # fmt: skip
    """Heads of one setting: q [B, H', G, d] scaled, keys, values [B, H', S, d], chosen [B, H', top]; as q.

    now: the position of all sequences, None where they differ.
    """
    if now is not None and blocks.stride == 1 and setting.top and setting.pattern.is_nothing:
        tokens, hidden = _tokens_of_blocks(chosen, now, blocks), None
    else:
        tokens, seen = _tokens(chosen, positions, longest, setting, blocks, keys.shape[2])
        hidden = ~seen.flatten(0, 1).unsqueeze(1)
    heads, d = keys.shape[:2], keys.shape[3]
    index = _rows(keys, tokens)
    value_index = index if values.stride() == keys.stride() else _rows(values, tokens)
    keys, values = _table(keys), _table(values)
    q = q.flatten(0, 1)  # [n, G, d]
    straight = q.device.type == "cpu" and q.shape[1] == 1 and keys.dtype == values.dtype == q.dtype == torch.float32
    if straight:
        scores = _products(q.squeeze(1), keys, index).unsqueeze(1)
    else:
        count = index.shape[1]
        chunk = max(1, GATHERED_BYTES // (count * d * q.element_size())) if q.device.type == "cpu" else q.shape[0]
        parts = [slice(first, first + chunk) for first in range(0, q.shape[0], chunk)]
        scores = q.new_empty(*q.shape[:2], count)
        for part in parts:
            torch.bmm(q[part], _read(keys, index[part], q.dtype).transpose(1, 2), out=scores[part])
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    if straight:
        out = F.embedding_bag(value_index, values, mode="sum", per_sample_weights=weights.squeeze(1))
        return out.unsqueeze(1).unflatten(0, heads)
    out = torch.empty_like(q)
    for part in parts:
        torch.bmm(weights[part], _read(values, value_index[part], q.dtype), out=out[part])
    return out.unflatten(0, heads)


def _products(q: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Products [n, m] of queries q [n, d] with rows `index` [n, m] of a table [rows, d], which are not copied for it.

    They are the gradient that `embedding_bag` has for its weights where q is its result's; there is no other operation
    of PyTorch that multiplies chosen rows where they lie. It takes two thirds of the time of copying them first.
    """
    n, m = index.shape
    of_row = torch.arange(n, dtype=index.dtype).repeat_interleave(m)
    begins = torch.arange(0, n * m, m, dtype=index.dtype)
    sums = 0  # the mode of embedding_bag
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        q, table, index.flatten(), begins, of_row, sums
    )
    return products.view(n, m)


def _tokens_of_blocks(chosen: Tensor, now: int, blocks: Blocks) -> Tensor:
    """Tokens [B, H', n] of the past blocks in `chosen` [B, H', top] and of the own block, all queries being at `now`.

    All heads then read equally many blocks, so that nothing needs a mask.
    """
    past = min(chosen.shape[2], now // blocks.block + 1) - 1
    firsts = torch.cat((chosen[..., 1 : past + 1], chosen[..., :1]), dim=2) * blocks.block
    within = torch.arange(blocks.block, dtype=chosen.dtype, device=chosen.device)
    return (firsts.unsqueeze(3) + within).flatten(2)[..., : past * blocks.block + now % blocks.block + 1]


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
    d = cache.shape[3]
    count = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape[:3], cache.stride()[:3])) // d
    return cache.as_strided((count, d), (d, 1), cache.storage_offset())


def _rows(cache: Tensor, tokens: Tensor) -> Tensor:
    """[B * H', n]: the rows of the cache's table in which tokens [B, H', n] lie."""
    batch, heads, _, d = cache.shape
    step = cache.stride(1) // d
    starts = torch.arange(0, heads * step, step, dtype=tokens.dtype, device=cache.device)
    if batch > 1:
        starts = starts + torch.arange(batch, device=cache.device).unsqueeze(1) * (cache.stride(0) // d)
    return (tokens + starts.unsqueeze(-1)).flatten(0, 1)


def _read(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """[n', n, d]: rows `index` [n', n] of a table [rows, d]."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1).to(dtype)
