"""One decoding step over selected blocks as it is defined: plain loops over sequences and heads."""

import torch
from torch import Tensor

from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.reference import block_scores, chosen_blocks, visible_mask
from ratplus.kernels.blocks.selection import ABSENT
from ratplus.kernels.blocks.settings import Blocks, HeadSetting
from ratplus.kernels.scan.reference import rotate

Pair = tuple[Tensor, Tensor]


def block_decode_reference(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, keys: Tensor, values: Tensor, metadata: Tensor,
    state: Pair | None, positions: Tensor, settings: list[HeadSetting], blocks: Blocks, heads: list[int], slots: int,
    rope: Pair | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `block_decode_attention`: out [B, H, d] and ids int32 [B, H_kv, slots]."""
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    batch, kv_heads, d_head = k.shape
    group = q.shape[1] // kv_heads
    if state is not None and logit is not None:
        take, keep = (torch.sigmoid(x.to(state[0].dtype)) for x in (-logit, logit))
        for held, new in zip(state, (k, v)):
            held.copy_(keep * held + take * new.to(held.dtype))
        k, v = state
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if rope is not None:
        cos, sin = (table[positions].unsqueeze(1).to(dtype) for table in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q = q.to(keys.dtype).to(dtype)
    out = torch.empty_like(q)
    ids = torch.full((batch, kv_heads, slots), ABSENT, dtype=torch.int32, device=q.device)
    for b, t in enumerate(positions.tolist()):
        for h, setting in enumerate(settings):
            keys[b, h, t], values[b, h, t] = k[b, h].to(keys.dtype), v[b, h].to(values.dtype)
            own = t // blocks.span
            if (t + 1) % blocks.span == 0:
                metadata[b, h, own] = summarise(keys[b, h, own * blocks.span : t + 1], blocks)[0]
            queries, held = q[b, h * group : (h + 1) * group], keys[b, h, : t + 1].to(dtype)
            scores = block_scores(queries[:, None], held, blocks, heads[h], t)[0]
            chosen = chosen_blocks(scores, t, setting.top, blocks)
            mask = visible_mask([chosen], setting, blocks, t, t + 1)[0]
            if blocks.first and len(chosen) == 1:
                chosen = [*chosen, ABSENT]
            ids[b, h, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
            logits = (queries @ held.T * d_head**-0.5).masked_fill(~mask, float("-inf"))
            out[b, h * group : (h + 1) * group] = torch.softmax(logits, dim=-1) @ values[b, h, : t + 1].to(dtype)
    return out, ids
