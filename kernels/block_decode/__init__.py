"""`block_decode_attention`: one decoding step of one layer that reads only the blocks which the query ranks best."""

from typing import Literal, overload

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, int_tensor, on_device, pattern_tensors
from ratplus.kernels.block_decode.eager import block_decode_eager
from ratplus.kernels.block_decode.ops import block_decode_op, run
from ratplus.kernels.blocks.metadata import metadata_dtype
from ratplus.kernels.blocks.settings import Blocks, head_settings
from ratplus.kernels.dispatch import implementation

__all__ = ["block_decode_attention"]

Pair = tuple[Tensor, Tensor]


@overload
def block_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, keys: Tensor, values: Tensor, metadata: Tensor,
    state: Pair | None, positions: Tensor, dilation: Setting, window: Setting, sinks: Setting, *, top: Setting,
    block: int, score: str = "mean", first: bool = True, stride: int = 1, seed: int = 0, heads: Tensor | None = None,
    slots: int | None = None, rope: Pair | None = None, return_blocks: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def block_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, keys: Tensor, values: Tensor, metadata: Tensor,
    state: Pair | None, positions: Tensor, dilation: Setting, window: Setting, sinks: Setting, *, top: Setting,
    block: int, score: str = "mean", first: bool = True, stride: int = 1, seed: int = 0, heads: Tensor | None = None,
    slots: int | None = None, rope: Pair | None = None, return_blocks: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def block_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    metadata: Tensor,
    state: Pair | None,
    positions: Tensor,
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
    slots: int | None = None,
    rope: Pair | None = None,
    return_blocks: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Takes one new token a sequence: steps the recurrence, writes the caches, chooses blocks, attends. No gradients.

    q: [B, H, d], k, v: [B, H_kv, d], projections of the new token, un-rotated; H a multiple of H_kv.
    logit, state: gate logits [B, H_kv, d] and the recurrent state (k, v) [B, H_kv, d] float32, updated IN PLACE; both
        None without a recurrence.
    keys, values: caches [B, H_kv, S, d], updated IN PLACE, finite everywhere: token t of a sequence in row t, rotated.
        They may be views of something larger in which a token's d numbers lie side by side and tokens one after the
        other.
    metadata: [B, H_kv, S // (block * stride), parts, d], as `block_metadata` makes it of keys; a block is written IN
        PLACE when its last token arrives.
    positions: int64 [B], this token's position in each sequence (ragged batches are fine).
    dilation, window, sinks, top, block, score, first, stride, seed, heads, slots: as of `block_attention`, which the
        step at the same position equals.
    rope: (cos, sin) tables [max_len, d], float32, indexed by `positions`; rotates q and the stored key.

    Returns [B, H, d] in q's dtype; with return_blocks also the chosen blocks, int32 [B, H_kv, slots]. The caller sees
    to it that positions stay below S. Raises ValueError for shapes or settings that don't fit.
    """
    blocks = Blocks(block, score, first, stride, seed)
    _check(q, k, v, logit, keys, values, metadata, state, positions, rope, blocks)
    count = k.shape[1]
    chosen = implementation("block_decode_attention", q.shape[2], q, k, keys)
    settings, of_heads = (dilation, window, sinks), None
    if not on_device(*settings, top):
        of_heads = head_settings(*settings, top, count, blocks)
        most = max(setting.top for setting in of_heads)
        slots = most if slots is None else slots
        if slots < most:
            raise ValueError(f"block_decode_attention: slots is {slots}; some head reads {most} blocks")
    elif slots is None:
        raise ValueError("block_decode_attention: give slots, the largest top, where top is a tensor on a device")
    compiling = torch.compiler.is_compiling()
    if chosen == "eager" and of_heads is not None and not compiling:
        # Nothing but this call: a step of one sequence takes little longer than what stands around it.
        with torch.no_grad():
            shared = (q, k, v, logit, keys, values, metadata, state, positions)
            out, ids = block_decode_eager(*shared, of_heads, blocks, heads, slots, rope)
            out = out.to(q.dtype)
        return (out, ids) if return_blocks else out
    k_state, v_state = (None, None) if state is None else state
    cos, sin = (None, None) if rope is None else rope
    heads = torch.arange(count, device=q.device) if heads is None else heads
    if compiling or chosen == "fused":
        settings, top = pattern_tensors(*settings, count, q.device), int_tensor(top, count, q.device)
    # Outside of a traced graph the operator's wrapper would only cost time.
    with torch.no_grad():
        out, ids = (block_decode_op if compiling else run)(
            q, k, v, logit, keys, values, metadata, k_state, v_state, positions, *settings, top, heads, cos, sin,
            block, score, first, stride, seed, slots, chosen,
        )  # fmt: skip
    return (out, ids) if return_blocks else out


def _check(q, k, v, logit, keys, values, metadata, state, positions, rope, blocks: Blocks) -> None:
    def refuse(text: str) -> None:
        raise ValueError(f"block_decode_attention: {text}")

    if q.dim() != 3 or k.dim() != 3 or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        refuse(f"q is {tuple(q.shape)}, k {tuple(k.shape)}; give [batch, heads, d_head], k's heads a divisor of q's")
    batch, heads, d_head = k.shape
    for name, x in (("v", v), ("logit", logit)):
        if x is not None and x.shape != k.shape:
            refuse(f"{name} has shape {tuple(x.shape)}; it must equal k's {tuple(k.shape)}")
    if (logit is None) != (state is None):
        refuse("logit and state go together; give both (recurrence) or neither")
    if state is not None and any(held.shape != k.shape for held in state):
        refuse(f"the state has shapes {[tuple(x.shape) for x in state]}; both must be k's {tuple(k.shape)}")
    fits = keys.dim() == 4 and keys.shape[:2] == k.shape[:2] and keys.shape[3] == d_head
    if not fits or values.shape != keys.shape:
        refuse(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must both be "
            f"[{batch}, {heads}, tokens, {d_head}]"
        )
    for name, x in (("keys", keys), ("values", values)):
        if x.stride(3) != 1 or x.stride(2) != d_head or x.stride(0) % d_head or x.stride(1) % d_head:
            refuse(f"{name} have strides {x.stride()}; a head's tokens must lie one after the other")
    needed = (keys.shape[2] // blocks.span, blocks.parts, d_head)
    found = metadata.shape[:2] == k.shape[:2] and metadata.dim() == 5 and metadata.shape[3:] == needed[1:]
    if not found or metadata.shape[2] < needed[0] or metadata.dtype != metadata_dtype(blocks.score, keys.dtype):
        expected = f"[{batch}, {heads}, {needed[0]}, {needed[1]}, {d_head}]"
        wanted = metadata_dtype(blocks.score, keys.dtype)
        refuse(f"metadata is {metadata.dtype} {tuple(metadata.shape)}; it must be {wanted} {expected}")
    if positions.shape != (batch,) or positions.dtype != torch.int64:
        refuse(f"positions are {positions.dtype} {tuple(positions.shape)}; they must be int64 [{batch}]")
    if rope is not None and any(table.dim() != 2 or table.shape[1] != d_head for table in rope):
        refuse(f"rope tables have shapes {[tuple(x.shape) for x in rope]}; both must be [max_len, {d_head}]")
