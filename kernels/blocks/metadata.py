"""What stands for a block when a query ranks it: its mean key, or each channel's smallest and largest value.

Prefill and decoding call the same function, on keys as they are cached: after the recurrence and the rotation.
"""

import torch
from torch import Tensor

from ratplus.kernels.blocks.settings import Blocks


def metadata_dtype(score: str, keys: torch.dtype) -> torch.dtype:
    """Of a block's metadata: means need float32 (float64 for float64 keys); bounds are values of the keys."""
    return torch.promote_types(keys, torch.float32) if score == "mean" else keys


def block_metadata(k: Tensor, block: int, score: str = "mean", stride: int = 1) -> Tensor:
    """Metadata of the complete blocks of keys.

    k: [B, H_kv, T, d], position 0 first.
    Returns [B, H_kv, T // (block * stride), parts, d]: for `mean` one part, float32; for `bounds` two, the smallest
    and the largest value of each channel, in k's dtype; for `random` none. (float64 keys: float64.) No gradients.
    """
    blocks = Blocks(block, score, stride=stride)
    with torch.no_grad():
        return summarise(k, blocks)


def summarise(k: Tensor, blocks: Blocks, out: Tensor | None = None) -> Tensor:
    """`block_metadata` of keys [..., T, d]: [..., n, parts, d], written to `out` if it is given."""
    count = k.shape[-2] // blocks.span
    if blocks.score == "random":
        return k.new_empty(*k.shape[:-2], count, 0, k.shape[-1]) if out is None else out
    members = k[..., : count * blocks.span, :][..., blocks.stride - 1 :: blocks.stride, :]
    members = members.unflatten(-2, (count, blocks.block))
    if blocks.score == "mean":
        return torch.mean(members, dim=-2, keepdim=True, dtype=metadata_dtype("mean", k.dtype), out=out)
    if out is None:
        return torch.stack((members.amin(dim=-2), members.amax(dim=-2)), dim=-2)
    torch.amin(members, dim=-2, out=out[..., 0, :])
    torch.amax(members, dim=-2, out=out[..., 1, :])
    return out
