"""Attention to selected blocks on a GPU: selection, forward, backward and decoding, beside dense and dilated attention.

Dilated attention stands beside it at about equal reads: with the dilation that shows a query as many keys on average.
Neighbouring queries of a trained model choose alike; where they choose at random ("apart"), a tile of queries reads
about as many blocks as all of them chose together. So both are measured, and how many blocks a tile reads is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import block_attention, decode_attention, dilated_attention
from ratplus.kernels.attention.patterns import int_tensor, pattern_tensors
from ratplus.kernels.bench.block_cases import alike, block_decode_cases, selected_pairs
from ratplus.kernels.bench.cases import (
    Case,
    Plan,
    Selection,
    Shapes,
    add_dense,
    backward_of,
    gate_views,
    graphed,
    rope_tables,
)
from ratplus.kernels.bench.timing import Run, interleaved
from ratplus.kernels.blocks import fused, fused_selection
from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.decode.layout import slot_count

APART = "ours, apart"
OF_SELECTION = ("metadata", "scores", "choice")
PARTS = ("selection", *OF_SELECTION, "lists", "kernel")


def block_phase_plans(shapes: Shapes) -> Iterator[Plan]:
    """Each shape of `block_shapes` with the selections of mean keys, then decoding with those of bounds."""
    d_model = shapes.d_models[0]
    of_means = [selection for selection in shapes.selections if selection.score == "mean"]
    for (batch, length), selection in product(shapes.block_shapes, of_means):
        shape = f"B{batch} T{length} d{d_model}"
        backward = length in shapes.block_backward_lengths
        make = partial(_attention_cases, shapes, batch, length, selection, shape, backward)
        yield Plan("attention", shape, selection.label, make)
    of_bounds = [selection for selection in shapes.selections if selection.score == "bounds"]
    for (batch, length), selection in product(shapes.block_decode_shapes, of_bounds):
        shape = f"B{batch} T{length} d{d_model}"
        yield Plan(
            "decode", shape, selection.label, partial(_decode_cases, shapes, batch, length, selection, shape)
        )  # fmt: skip


def equal_dilation(length: int, selection: Selection) -> int:
    """The dilation whose queries read about as many keys, averaged over a whole sequence."""
    pairs = sum(selected_pairs(t, selection) for t in range(length))
    return max(1, round(length * (length + 1) / 2 / pairs))


def _attention_cases(
    shapes: Shapes, batch: int, length: int, selection: Selection, shape: str, backward: bool
) -> Iterator[Case]:  # fmt: skip
    d_model = shapes.d_models[0]
    apart, k, v = gate_views(shapes, batch, length, d_model, 3)
    q = alike(apart.clone())
    dilation = equal_dilation(length, selection)
    flops = 4.0 * batch * d_model * sum(selected_pairs(t, selection) for t in range(length))
    size, equal = q.numel() * q.element_size(), f"dilated, equal reads (D{dilation})"

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_attention(
            query, key, value, *selection.static, top=selection.top, block=selection.block, score=selection.score
        )

    def dilated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dilated_attention(query, key, value, dilation, 0, 0)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    case = Case("blocks forward", shape, selection.label, 4 * size, flops)
    case.add("ours", lambda: partial(ours, q, k, v))
    case.add(APART, lambda: partial(ours, apart, k, v))
    case.add(equal, lambda: partial(dilated, q, k, v))
    add_dense(case, shapes.device, lambda: partial(dense, q, k, v))
    yield case
    del case
    if not backward:
        return
    leaves, others = ([x.detach().requires_grad_() for x in (query, k, v)] for query in (q, apart))
    case = Case("blocks backward", shape, selection.label, 8 * size, 2.5 * flops)
    case.add("ours", lambda: backward_of((ours(*leaves),), leaves))
    case.add(APART, lambda: backward_of((ours(*others),), others))
    case.add(equal, lambda: backward_of((dilated(*leaves),), leaves))
    add_dense(case, shapes.device, lambda: backward_of((dense(*leaves),), leaves))
    yield case


def _decode_cases(shapes: Shapes, batch: int, length: int, selection: Selection, shape: str) -> Iterator[Case]:
    d_model = shapes.d_models[0]
    (case,) = block_decode_cases(shapes, d_model, length, batch, selection, shape)
    case.op = "blocks decode"
    heads = d_model // shapes.d_head
    dilation = max(1, round(length / selected_pairs(length - 1, selection)))

    def dilated() -> Run:
        def random(*size: int) -> Tensor:
            return torch.empty(*size, device=shapes.device, dtype=shapes.dtype).normal_()

        token = [random(batch, heads, shapes.d_head) for _ in range(4)]
        keys, values = (random(batch, heads * slot_count(dilation, 0, 0, length), shapes.d_head) for _ in range(2))
        zeros = torch.zeros(batch, heads, shapes.d_head, device=shapes.device)
        positions = torch.full((batch,), length - 1, device=shapes.device)
        step = partial(
            decode_attention, *token, keys, values, (zeros, zeros.clone()), positions, dilation, 0, 0,
            rope=rope_tables(shapes, length),
        )  # fmt: skip
        return graphed(step) if shapes.device == "cuda" else step

    case.add(f"dilated, equal reads (D{dilation})", dilated)
    yield case


def split_of_time(shapes: Shapes, batch: int, length: int, selection: Selection, apart: bool) -> dict:
    """Milliseconds of the forward pass's parts, each timed by itself, and the blocks that a tile of queries reads.

    Returns {"shape", "pattern", "queries", "selection_ms", "metadata_ms", "scores_ms", "choice_ms", "lists_ms",
    "kernel_ms", "blocks_a_tile", "blocks_a_query", "queries_a_tile"}; queries: "alike" or "apart". The selection
    consists of the metadata, the scores and the choice, which is what the others leave of it.
    """
    d_model = shapes.d_models[0]
    q, k, v = gate_views(shapes, batch, length, d_model, 3)
    if not apart:
        alike(q)
    heads, blocks = k.shape[1], Blocks(selection.block, selection.score)
    settings = pattern_tensors(*selection.static, heads, q.device)
    top, numbers = int_tensor(selection.top, heads, q.device), torch.arange(heads, device=q.device)
    start = torch.zeros(batch, dtype=torch.int64, device=q.device)
    size, reach = fused.tiles(shapes.d_head, q.dtype).BM, blocks.reach(length)
    select = partial(fused.choose, q, k, None, start, top, blocks, selection.top, numbers)
    ids = select()
    cut = partial(fused.tile_lists, ids, size, reach)
    lists, counts = cut()
    attend = partial(fused.attend, q, k, v, *settings, start, ids, lists, counts, blocks)
    metadata = summarise(k, blocks)

    def score() -> None:
        for _ in fused_selection.scored(q, metadata, start, blocks, selection.top, numbers, length):
            pass

    runs = [select, partial(summarise, k, blocks), score, cut, attend]
    taken = [times.p50 for times in interleaved(runs, shapes.device, shapes.repeats, shapes.budget_s)]
    times = dict(zip(("selection", "metadata", "scores", "lists", "kernel"), taken, strict=True))
    times["choice"] = max(0.0, times["selection"] - times["metadata"] - times["scores"])
    return {
        "shape": f"B{batch} T{length} d{d_model}", "pattern": selection.label, "queries": "apart" if apart else "alike",
        **{f"{name}_ms": ms for name, ms in times.items()},
        "blocks_a_tile": float(counts.float().mean()), "queries_a_tile": size,
        "blocks_a_query": float((ids >= 0).sum(dim=3).float().mean()),
    }  # fmt: skip


def split_line(found: dict) -> str:
    """`split_of_time` in one line."""
    where = f"{'blocks forward, its parts':<26}{found['shape']:<19}{found['pattern']:<13}{found['queries']:<6}"
    part = {name: f"{name} {found[f'{name}_ms']:.3f}" for name in PARTS}
    parts = f"{part['selection']} ({', '.join(part[name] for name in OF_SELECTION)}) {part['lists']} {part['kernel']}"
    read = f"{found['blocks_a_tile']:.1f} blocks for {found['queries_a_tile']} queries"
    return f"{where}{parts} ms; {read}, {found['blocks_a_query']:.1f} for one"
