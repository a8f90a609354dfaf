"""One decoding step over selected blocks in PyTorch: reads the blocks that are chosen, not the cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.selection import ABSENT, select_blocks
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
    q, k, v = take_token(q, k, v, logit, state, positions, rope, dtype)
    q = q.to(keys.dtype).to(dtype)
    rows = torch.arange(q.shape[0], device=q.device)
    keys[rows, :, positions], values[rows, :, positions] = k.to(keys.dtype), v.to(values.dtype)
    longest = int(positions.max())
    complete_blocks(keys, metadata, positions, blocks)
    top = torch.tensor([setting.top for setting in settings], device=q.device)
    rivals = metadata[:, :, : longest // blocks.span]
    ids = select_blocks(q.unsqueeze(2), rivals, positions, top, blocks, slots, heads).squeeze(2)

    q = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [B, H_kv, G, d]
    out = torch.empty_like(q)
    for setting, found in group_settings(settings).items():
        part = slice(found[0], found[-1] + 1) if found[-1] - found[0] + 1 == len(found) else found
        chosen = ids[:, part, : setting.top]
        out[:, part] = _attend(q[:, part], keys[:, part], values[:, part], chosen, positions, longest, setting, blocks)
    return out.flatten(1, 2), ids


def complete_blocks(keys: Tensor, metadata: Tensor, positions: Tensor, blocks: Blocks) -> None:
    """Writes the metadata of the blocks that the tokens at `positions` have completed."""
    done = ((positions + 1) % blocks.span == 0).nonzero().flatten()
    own = positions[done] // blocks.span
    for block in own.unique().tolist():
        rows = done[own == block]
        rows = slice(None) if rows.shape[0] == keys.shape[0] else rows
        members = keys[rows, :, block * blocks.span : (block + 1) * blocks.span]
        metadata[rows, :, block] = summarise(members, blocks)[:, :, 0]


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, chosen: Tensor, positions: Tensor, longest: int, setting: HeadSetting,
    blocks: Blocks,
) -> Tensor:  # fmt: skip
    """Heads of one setting: q [B, H', G, d] scaled, keys, values [B, H', S, d], chosen [B, H', top]; as q."""
    past = chosen[..., 1:].long()  # slot 0 is the own block
    within = torch.arange(blocks.stride - 1, blocks.span, blocks.stride, device=q.device)
    now = positions[:, None, None]
    tokens, seen = static_tokens(positions, longest, setting, blocks)
    tokens = tokens.unsqueeze(1).expand(-1, q.shape[1], -1)
    seen = seen.unsqueeze(1) & ~_covered(tokens, past, blocks) if tokens.shape[2] else tokens.bool()
    run, firsts, in_runs = 1, past[..., :0], seen[..., :0]
    if setting.top:
        own = (now // blocks.span).expand(-1, q.shape[1], -1)
        ids = torch.cat((own, past), dim=2)
        if blocks.stride == 1:
            # Each block is a run of tokens; that of the last block begins earlier where the cache would end before it.
            run = min(blocks.block, keys.shape[2])
            firsts = (ids * blocks.span).clamp_(min=0, max=keys.shape[2] - run)
            token = firsts[:, :1, :1] + torch.arange(run, device=q.device)
            of_own = (token >= own[:, :1] * blocks.span) & (token <= now)
            of_past = (past != ABSENT).unsqueeze(3).expand(-1, -1, -1, run).flatten(2)
            in_runs = torch.cat((of_own.expand(-1, past.shape[1], -1), of_past), dim=2)
        else:
            token = (ids.unsqueeze(3) * blocks.span + within).flatten(2)
            seen = torch.cat((seen, (token >= 0) & (token <= now)), dim=2)
            tokens = torch.cat((tokens, token.clamp(min=0, max=keys.shape[2] - 1)), dim=2)
    hidden = ~torch.cat((in_runs, seen), dim=2).flatten(0, 1).unsqueeze(1)
    key_rows, value_rows = (_Rows(x, firsts, run, tokens) for x in (keys, values))
    q = q.flatten(0, 1)
    width = max(1, hidden.shape[2] * q.shape[2] * q.element_size())
    chunk = max(1, GATHERED_BYTES // width) if q.device.type == "cpu" else q.shape[0]
    parts = [slice(first, first + chunk) for first in range(0, q.shape[0], chunk)]
    scores = q.new_empty(*q.shape[:2], hidden.shape[2])
    for part in parts:
        torch.bmm(q[part], key_rows.read(part, q.dtype).transpose(1, 2), out=scores[part])
    weights = torch.softmax(scores.masked_fill_(hidden, float("-inf")), dim=-1)
    if q.device.type == "cpu" and q.shape[1] == 1 and values.dtype == q.dtype == torch.float32:
        # Weighted sums straight from the cache, without a copy of the values: half the time of the other way.
        out = F.embedding_bag(value_rows.every(), value_rows.single, mode="sum", per_sample_weights=weights[:, 0])
        return out.view_as(q).unflatten(0, keys.shape[:2])
    out = torch.empty_like(q)
    for part in parts:
        out[part] = torch.bmm(weights[part], value_rows.read(part, q.dtype))
    return out.unflatten(0, keys.shape[:2])


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


class _Rows:
    """Reads chosen tokens of a cache [B, H', S, d], whose tokens are `d` numbers side by side.

    firsts: [B, H', slots], first tokens of runs of `run` tokens. tokens: [B, H', n], single tokens.
    """

    def __init__(self, cache: Tensor, firsts: Tensor, run: int, tokens: Tensor):
        batch, heads, _, d = cache.shape
        self.d = d
        starts = (
            torch.arange(batch, device=cache.device)[:, None] * cache.stride(0)
            + torch.arange(heads, device=cache.device) * cache.stride(1)
        ) // d
        count = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape[:3], cache.stride()[:3])) // d
        offset = cache.storage_offset()
        self.single = cache.as_strided((count, d), (d, 1), offset)
        self.run = run
        # Rows that overlap: the run that begins at each token.
        self.runs = cache.as_strided((count - run + 1, run * d), (d, 1), offset)
        self.firsts = (firsts + starts[..., None]).flatten(0, 1)
        self.tokens = (tokens + starts[..., None]).flatten(0, 1)

    def every(self) -> Tensor:
        """[n, slots * run + n_tokens]: where the tokens lie in `single`, in the order of `read`."""
        in_runs = self.firsts.unsqueeze(2) + torch.arange(self.run, device=self.firsts.device)
        return torch.cat((in_runs.flatten(1), self.tokens), dim=1)

    def read(self, part: slice, dtype: torch.dtype) -> Tensor:
        """[n, slots * run + n_tokens, d] of rows `part`: the runs, then the single tokens."""
        firsts, tokens = self.firsts[part], self.tokens[part]
        found = []
        if firsts.shape[1]:
            found.append(self.runs.index_select(0, firsts.flatten()).view(firsts.shape[0], -1, self.d))
        if tokens.shape[1]:
            found.append(self.single.index_select(0, tokens.flatten()).view(*tokens.shape, self.d))
        return (found[0] if len(found) == 1 else torch.cat(found, dim=1)).to(dtype)
