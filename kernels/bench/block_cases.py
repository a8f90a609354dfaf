"""What the operator benchmark measures of attention to selected blocks."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import block_attention, block_decode_attention
from ratplus.kernels.bench.cases import (
    DENSE,
    Case,
    Plan,
    Selection,
    Shapes,
    add_dense,
    batch_of,
    gate_views,
    graphed,
    rope_tables,
)  # fmt: skip
from ratplus.kernels.bench.timing import Run, available_memory_bytes
from ratplus.kernels.blocks import block_metadata

LONGEST = 65536  # tokens; longer sequences take too long beside all else that is measured


def block_plans(shapes: Shapes) -> Iterator[Plan]:
    """Attention to selected blocks, and decoding with it."""
    for length, selection in product(shapes.lengths, shapes.selections):
        if length > LONGEST or shapes.peers_only:
            continue
        d_model, batch = shapes.d_models[0], batch_of(shapes, length)
        shape = f"B{batch} T{length} d{d_model}"
        make = partial(block_attention_cases, shapes, d_model, length, batch, selection, shape)
        yield Plan("attention", shape, selection.label, make)
        # In a step of a single sequence small operations weigh most.
        for batch in dict.fromkeys((*shapes.decode_batches[:1], 1)):
            shape = f"B{batch} T{length} d{d_model}"
            make = partial(block_decode_cases, shapes, d_model, length, batch, selection, shape)
            yield Plan("decode", shape, selection.label, make)


def selected_pairs(position: int, selection: Selection) -> float:
    """Keys that one query head reads at a position: an upper bound where the static pattern overlaps with blocks."""
    (dilation, window, sinks), block = selection.static, selection.block
    own, chosen = position // block, min(selection.top - 1, position // block)
    pairs = position % block + 1 + block * chosen
    if dilation is not None and block % dilation == 0:
        pairs += (own - chosen) * block // dilation  # those of the blocks that were not chosen
    elif dilation is not None:
        pairs += (position + 1) // dilation
    return min(position + 1, pairs + window + sinks)


def alike(q: Tensor, together: int = 64) -> Tensor:
    """q [B, H, T, d], overwritten so that `together` neighbours differ little, and so choose about the same blocks."""
    length = q.shape[2]
    base = q[:, :, ::together].repeat_interleave(together, dim=2)[:, :, :length]
    return q.mul_(0.1).add_(base)


def block_attention_cases(
    shapes: Shapes, d_model: int, length: int, batch: int, selection: Selection, shape: str
) -> Iterator[Case]:  # fmt: skip
    """Selection and attention of a whole sequence, forward."""
    q, k, v = gate_views(shapes, batch, length, d_model, 3)
    flops = 4.0 * batch * d_model * sum(selected_pairs(t, selection) for t in range(length))
    case = Case("attention forward", shape, selection.label, 4 * q.numel() * q.element_size(), flops)
    dilation, window, sinks = selection.static

    def ours() -> Tensor:
        return block_attention(
            q, k, v, dilation, window, sinks, top=selection.top, block=selection.block, score=selection.score
        )

    case.add("ours", lambda: ours)
    if 4.0 * batch * d_model * length * (length + 1) / 2 > shapes.dense_beside_flops:
        case.skipped[DENSE] = "takes long: timed once for this shape, with the pattern D1"
    else:
        add_dense(case, shapes.device, lambda: partial(F.scaled_dot_product_attention, q, k, v, is_causal=True))
    yield case


def block_decode_cases(
    shapes: Shapes, d_model: int, length: int, batch: int, selection: Selection, shape: str
) -> Iterator[Case]:  # fmt: skip
    """The step at the last position, from a cache that holds every token; in a CUDA graph where there is one."""
    heads, item = d_model // shapes.d_head, shapes.dtype.itemsize
    read = selected_pairs(length - 1, selection)
    summary = 2 * item if selection.score == "bounds" else 4  # bytes a block and channel
    summaries = length // selection.block * summary if length // selection.block >= selection.top else 0
    least = batch * d_model * (2 * item * read + summaries + 5 * item + 16)
    case = Case("decode", shape, selection.label, least, 4.0 * batch * d_model * read)
    cache_bytes = 2 * batch * d_model * length * item
    free = available_memory_bytes(shapes.device)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, device=shapes.device, dtype=shapes.dtype)

    def cache() -> list[Tensor]:
        return [random(batch, heads, length, shapes.d_head) for _ in range(2)]

    def ours() -> Run:
        token = [random(batch, heads, shapes.d_head) for _ in range(4)]
        keys, values = cache()
        metadata = block_metadata(keys, selection.block, selection.score)
        zeros = torch.zeros(batch, heads, shapes.d_head, device=shapes.device)
        state = zeros, zeros.clone()
        positions = torch.full((batch,), length - 1, device=shapes.device)
        (q, k, v, logit), (dilation, window, sinks) = token, selection.static
        rope = rope_tables(shapes, length)

        def step() -> Tensor:
            return block_decode_attention(
                q, k, v, logit, keys, values, metadata, state, positions, dilation, window, sinks, top=selection.top,
                block=selection.block, score=selection.score, rope=rope,
            )  # fmt: skip

        return graphed(step) if shapes.device == "cuda" else step

    def dense() -> Run:
        attend = partial(F.scaled_dot_product_attention, random(batch, heads, 1, shapes.d_head), *cache())
        return graphed(attend) if shapes.device == "cuda" else attend

    for name, copies in (("ours", 1), (f"{DENSE}, one query", 2)):  # a cache for each of torch's kernels
        if free is not None and copies * cache_bytes > 0.8 * free:
            case.skipped[name] = f"its cache takes {copies * cache_bytes / 1e9:.0f} GB"
        elif name == "ours":
            case.add(name, ours)
        else:
            add_dense(case, shapes.device, dense, ", one query")
    yield case
