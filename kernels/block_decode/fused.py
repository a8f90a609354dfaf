"""One decoding step over selected blocks as a few launches, none of which needs the host to know anything.

The token's kernel steps the recurrence, writes the caches and rotates the queries; another writes what stands for a
block where the token completes one; two more score the blocks and choose (kernels/blocks/fused_selection.py); the last
kernel reads the chosen blocks and the static pattern, split among programs where sequences are few, and a tiny one
merges the splits.
Positions, choices and counts stay on the device and shapes are constant, so ragged batches need nothing special and a
captured CUDA graph stays valid for every later step.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ratplus.kernels.block_decode.fused_kernels import attend_kernel, metadata_kernel, token_kernel
from ratplus.kernels.blocks.fused_selection import select
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.decode.fused_kernels import combine_kernel
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride


@dataclass(frozen=True)
class Walk:
    """How a program walks along the keys.

    Attributes:
        keys: of a tile.
        fill: programs that fill the GPU; with fewer, it splits.
        least: tiles of keys a split, at least.
    """

    keys: int
    num_warps: int
    stages: int
    fill: int = 264
    least: int = 4


# Of half precision the fastest on an H100 (2026-11-27) of four that differed by 4%; of float32 not measured.
WALKS = {"half": Walk(64, 4, 3, 528, 2), "float32": Walk(16, 4, 2)}
TOKEN_WARPS = 1
METADATA_KEYS = 32  # keys of a tile of the metadata's kernel


def walk(dtype: torch.dtype) -> Walk:
    """The entry of WALKS for caches of that dtype."""
    return WALKS["float32" if dtype == torch.float32 else "half"]


def choose_splits(batch: int, heads: int, tiles: int, dtype: torch.dtype) -> int:
    """Programs a key head and sequence; depends on shapes only, so that a captured graph stays right."""
    return max(1, min(walk(dtype).fill // (batch * heads), tiles // walk(dtype).least))


def constants(group: int, slots: int, blocks: Blocks, dtype: torch.dtype) -> dict:
    """What the attention's kernel is compiled for."""
    options = {"BN": walk(dtype).keys, "num_warps": walk(dtype).num_warps, "num_stages": walk(dtype).stages}
    if interpreted():
        options = {"BN": 16, "num_warps": 1}
    sizes = {"SLOTS": triton.next_power_of_2(max(1, slots)), "ROWS": max(16, triton.next_power_of_2(group))}
    return {"BLOCK": blocks.block, "STRIDE": blocks.stride, "GROUP": group, **sizes, **options}


@on_its_device
def step(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, keys: Tensor, values: Tensor, metadata: Tensor,
    k_state: Tensor | None, v_state: Tensor | None, positions: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor,
    top: Tensor, heads: Tensor, cos: Tensor | None, sin: Tensor | None, blocks: Blocks, slots: int,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `block_decode_attention`; settings are int32 [H_kv]. splits: None for as many as the GPU needs.

    Returns out [B, H, d] and ids int32 [B, H_kv, slots].
    """
    batch, count, d_head = k.shape
    queries = q.shape[1]
    group = queries // count
    q, k, v = (unit_stride(x) for x in (q, k, v))
    positions, heads = positions.contiguous(), heads.contiguous()
    gated = logit is not None and k_state is not None
    gates = unit_stride(logit) if logit is not None else k
    # Unused pointers must be something.
    held = (k_state, v_state) if gated else (positions, positions)
    tables = (cos, sin) if cos is not None and sin is not None else (positions, positions)
    rotated = torch.empty(batch, queries, d_head, dtype=keys.dtype, device=q.device)
    grid = (count, batch)
    of_caches = [stride for x in (keys, values) for stride in x.stride()[:2]]
    token_kernel[grid](
        q, k, v, gates, keys, values, *held, positions, *tables, rotated, count,
        *(stride for x in (q, k, v, gates) for stride in x.stride()[:2]), *of_caches,
        D=d_head, GATED=gated, ROPE=cos is not None, GROUP=group, num_warps=TOKEN_WARPS,
    )  # fmt: skip
    if blocks.parts:
        metadata_kernel[grid](
            keys, metadata, positions, *keys.stride()[:2], *metadata.stride()[:2], D=d_head, BLOCK=blocks.block,
            STRIDE=blocks.stride, BN=METADATA_KEYS, BOUNDS=blocks.score == "bounds", num_warps=TOKEN_WARPS,
        )  # fmt: skip
    ids = select(rotated.unsqueeze(2), metadata, positions, top, blocks, slots, heads, keys.shape[2]).squeeze(2)

    options = constants(group, slots, blocks, keys.dtype)
    tiles = slots * -(-blocks.block // options["BN"])
    splits = choose_splits(batch, count, tiles, keys.dtype) if splits is None else splits
    out = torch.empty(batch, queries, d_head, dtype=q.dtype, device=q.device)
    parts = [out] * 3
    if splits > 1:
        sizes = ((batch * queries * splits, d_head), (batch * queries * splits,), (batch * queries * splits,))
        parts = [torch.empty(size, dtype=torch.float32, device=q.device) for size in sizes]
    attend_kernel[(count, splits, batch)](
        rotated, keys, values, positions, dilation, window, sinks, ids, out, *parts, count, slots, splits,
        d_head**-0.5, *of_caches, D=d_head, SPLIT=splits > 1, **options,
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(batch * queries,)](*parts, out, splits, D=d_head, num_warps=1)
    return out, ids
