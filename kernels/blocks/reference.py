"""Attention over a static pattern and selected blocks as it is defined: dense scores, a mask, one softmax."""

import torch
from torch import Tensor

from ratplus.kernels.attention.reference import visible_mask as static_mask
from ratplus.kernels.blocks.selection import ABSENT, random_scores
from ratplus.kernels.blocks.settings import Blocks, HeadSetting


def block_scores(q: Tensor, k: Tensor, blocks: Blocks, head: int, start: int) -> Tensor:
    """[T, n]: how queries [G, T, d] that share the keys [S, d] rank the complete blocks of these."""
    count = k.shape[0] // blocks.span
    length = q.shape[1]
    if blocks.score == "random":
        t, b = torch.arange(length)[:, None] + start, torch.arange(count)
        return random_scores(blocks.seed, head, t, b).to(q.device)
    members = k[: count * blocks.span][blocks.stride - 1 :: blocks.stride].reshape(count, blocks.block, k.shape[1])
    if blocks.score == "mean":
        return torch.einsum("gtd,nd->tn", q, members.mean(dim=1))
    low, high = members.amin(dim=1), members.amax(dim=1)
    return torch.maximum(q[:, :, None] * low, q[:, :, None] * high).sum(dim=(0, 3))


def chosen_blocks(scores: Tensor, t: int, top: int, blocks: Blocks) -> list[int]:
    """The blocks that the query at position t reads, from its scores [n]; in the order of `select_blocks`."""
    if top == 0:
        return []
    own = t // blocks.span
    forced = [own] + ([0] if blocks.first and own > 0 else [])
    rivals = [b for b in range(own) if b not in forced]
    rivals.sort(key=lambda b: -scores[b].item())  # stable: the lower index first among equals
    return forced + rivals[: top - 1 - blocks.first]


def visible_mask(chosen: list[list[int]], setting: HeadSetting, blocks: Blocks, start: int, keys: int) -> Tensor:
    """[T, keys] bool: what the queries at start, start + 1, ... see that read those blocks."""
    length = len(chosen)
    mask = static_mask(setting.pattern, start + length)[start:]
    mask = torch.nn.functional.pad(mask, (0, keys - start - length))
    position = torch.arange(keys)
    in_a_block = (position + 1) % blocks.stride == 0
    for row, ids in enumerate(chosen):
        of_chosen = torch.isin(position // blocks.span, torch.tensor(ids, dtype=torch.long))
        mask[row] |= of_chosen & in_a_block & (position <= start + row)
    return mask


def block_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: list[HeadSetting],
    blocks: Blocks,
    heads: list[int],
    starts: list[int],
    slots: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, T, d], k, v [B, H_kv, S, d]; a setting and an index a key head, a first position a sequence.

    Returns out in q's dtype, log-sum-exp [B, H, T] and the blocks int32 [B, H_kv, T, slots].
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, _, length, d_head = q.shape
    group = q.shape[1] // k.shape[1]
    ids = torch.full((batch, k.shape[1], length, slots), ABSENT, dtype=torch.int32, device=q.device)
    masks = []
    for b, start in enumerate(starts):
        for h, setting in enumerate(settings):
            queries, keys = q[b, h * group : (h + 1) * group], k[b, h]
            scores = block_scores(queries.detach().to(dtype), keys.detach().to(dtype), blocks, heads[h], start)
            chosen = [chosen_blocks(row, start + i, setting.top, blocks) for i, row in enumerate(scores)]
            for t, found in enumerate(chosen):
                # Slot 1 belongs to block 0 where that is forced: a query in block 0 leaves it empty.
                rest = found[1:] if not blocks.first or len(found) > 1 else []
                ids[b, h, t, : len(found)] = torch.tensor(found[:1] + rest, dtype=torch.int32)
            masks.append(visible_mask(chosen, setting, blocks, start, k.shape[2]))
    mask = torch.stack(masks).to(q.device).view(batch, k.shape[1], length, -1).repeat_interleave(group, dim=1)
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * d_head**-0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ v.to(dtype)
    return out.to(q.dtype), torch.logsumexp(scores, dim=-1).to(torch.float32), ids
