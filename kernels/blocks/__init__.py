"""`block_attention`: causal attention to a static pattern and to the blocks of keys that each query ranks best."""

from typing import Literal, overload

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, int_tensor, on_device, pattern_tensors
from ratplus.kernels.blocks.metadata import block_metadata
from ratplus.kernels.blocks.ops import block_attention_op
from ratplus.kernels.blocks.reference import block_attention_reference
from ratplus.kernels.blocks.settings import Blocks, head_settings
from ratplus.kernels.dispatch import implementation

__all__ = ["block_attention", "block_metadata"]


@overload
def block_attention(
    q: Tensor, k: Tensor, v: Tensor, dilation: Setting, window: Setting, sinks: Setting, *, top: Setting, block: int,
    score: str = "mean", first: bool = True, stride: int = 1, seed: int = 0, heads: Tensor | None = None,
    start: int | Tensor | None = None, metadata: Tensor | None = None, slots: int | None = None,
    return_blocks: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def block_attention(
    q: Tensor, k: Tensor, v: Tensor, dilation: Setting, window: Setting, sinks: Setting, *, top: Setting, block: int,
    score: str = "mean", first: bool = True, stride: int = 1, seed: int = 0, heads: Tensor | None = None,
    start: int | Tensor | None = None, metadata: Tensor | None = None, slots: int | None = None,
    return_blocks: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Setting,
    window: Setting,
    sinks: Setting,
    *,
    top: Setting,
    block: int,
    score: str = "mean",
    first: bool = True,
    stride: int = 1,
    seed: int = 0,
    heads: Tensor | None = None,
    start: int | Tensor | None = None,
    metadata: Tensor | None = None,
    slots: int | None = None,
    return_blocks: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention, scale d^-0.5, where query t sees key p <= t exactly if the static pattern shows it,

        p < sinks  or  t - p <= window  or  (p + 1) % dilation == 0,

    or p lies in a block that the query chose: block p // (block * stride), with (p + 1) % stride == 0. A key that both
    show counts once. Of the `top` blocks the query's own and, with `first`, block 0 are always chosen; the others are
    the best among the complete blocks before its own, ties going to the earlier one.

    q: [B, H, T, d], k, v: [B, H_kv, S, d] of any strides; H a multiple of H_kv, query head h attends to key head
        h // (H / H_kv). Queries that share a key head choose together: their scores are added up.
    start: position of the first query: an int, or int64 [B] where sequences stand at different ones (None: 0). Key 0
        has position 0; S is at least start + T (that nothing behind it is read, the caller sees to if it is a tensor).
    dilation, window, sinks, top: ints, or int32 tensors [H_kv], one value a key head and its queries; dilation None (in
        a tensor: -1) keeps nothing dilated. top: at least 1 + first, or 0: the static pattern alone.
    block, stride: keys of a block, and how far apart they lie (see `Blocks`).
    score: `mean`: sum of q times the block's mean key. `bounds`: sum over channels of max(q * smallest, q * largest).
        `random`: a number drawn from seed, key head, position and block. float32 (float64 for float64).
    seed, heads: of random scores: see `layer_seed` of selection.py; heads int64 [H_kv], which key heads of the layer
        these are (None: 0, 1, 2, ...).
    metadata: of `block_metadata`, for all blocks that are complete before the last query's own (more may follow);
        None: made from k.
    slots: the largest `top`; needed where `top` is a tensor that the host can't read without waiting.

    Returns out [B, H, T, d] in q's dtype; with return_blocks also the chosen blocks, int32 [B, H_kv, T, slots]: own
    block, then block 0 if `first`, then the others, best first; -1 where there is none. The choice has no gradient, and
    the backward pass takes that of the forward pass. Raises ValueError for shapes, dtypes or settings that are not
    allowed.
    """
    blocks = Blocks(block, score, first, stride, seed)
    _check(q, k, v, blocks, start, metadata)
    batch, count = k.shape[:2]
    chosen = implementation("block_attention", q.shape[3], q)
    if not on_device(dilation, window, sinks, top):
        settings = head_settings(dilation, window, sinks, top, count, blocks)
        slots = max(setting.top for setting in settings) if slots is None else slots
        if slots < max(setting.top for setting in settings):
            raise ValueError(
                f"block_attention: slots is {slots}; some head reads {max(s.top for s in settings)} blocks"
            )
    elif slots is None:
        raise ValueError("block_attention: give slots, the largest top, where top is a tensor on a device")
    if not isinstance(start, Tensor):
        start = torch.full((batch,), start or 0, dtype=torch.int64, device=q.device)
    heads = torch.arange(count, device=q.device) if heads is None else heads
    if chosen == "reference":
        settings = head_settings(dilation, window, sinks, top, count, blocks)
        out, _, ids = block_attention_reference(q, k, v, settings, blocks, heads.tolist(), start.tolist(), slots)
        return (out, ids) if return_blocks else out
    tensors = *pattern_tensors(dilation, window, sinks, count, q.device), int_tensor(top, count, q.device)
    out, _, ids = block_attention_op(
        q, k, v, *tensors, heads, start, metadata, block, score, first, stride, seed, slots, chosen
    )  # fmt: skip
    return (out, ids) if return_blocks else out


def _check(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, start: int | Tensor | None, metadata: Tensor | None
) -> None:
    shapes = f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    fits = q.dim() == 4 and k.dim() == 4 and q.shape[2] >= 1 and v.shape == k.shape
    if not fits or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"block_attention: {shapes}; q must be [batch, heads, length >= 1, d_head], k and v [batch, key heads, "
            "keys, d_head] with a number of heads that divides q's"
        )
    if not q.is_floating_point() or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"block_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; use one floating dtype")
    if isinstance(start, Tensor):
        if start.shape != (q.shape[0],) or start.dtype != torch.int64:
            raise ValueError(
                f"block_attention: start is {start.dtype} {tuple(start.shape)}; it must be an int or int64 [batch]"
            )
        first = 0
    else:
        first = start or 0
    if first < 0 or first + q.shape[2] > k.shape[2]:
        raise ValueError(
            f"block_attention: {q.shape[2]} queries from position {first} on need as many keys before and among them; "
            f"there are {k.shape[2]}"
        )
    if metadata is not None:
        expected = (*k.shape[:2], blocks.parts, k.shape[3])
        found = (*metadata.shape[:2], *metadata.shape[3:])
        if metadata.dim() != 5 or found != expected:
            raise ValueError(
                f"block_attention: metadata has shape {tuple(metadata.shape)}; for score {blocks.score!r} it must be "
                f"[{expected[0]}, {expected[1]}, blocks, {expected[2]}, {expected[3]}]"
            )
