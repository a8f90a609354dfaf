"""Tile sizes of the kernels of attention to selected blocks, side by side on a GPU, as `variants.py` has the others.

The tables are `TILES` of `blocks/fused.py` and `WALKS` of `block_decode/fused.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import int_tensor, pattern_tensors
from ratplus.kernels.bench.block_cases import alike, selected_pairs
from ratplus.kernels.bench.cases import SELECTIONS, Selection, Shapes, gate_views, rope_tables
from ratplus.kernels.bench.timing import Run
from ratplus.kernels.bench.variants import Entry, Group
from ratplus.kernels.block_decode import fused as block_decode
from ratplus.kernels.blocks import block_metadata, fused, fused_scores
from ratplus.kernels.blocks.settings import Blocks


def block_entries(d_head: int) -> dict[str, Entry]:
    """What is tried: all of it compiles for sm_90 without spills, in seconds a kernel."""
    tiles, walk, scores, key = fused.Tiles, block_decode.Walk, fused_scores.ScoreTiles, max(64, d_head)
    listed = (
        Entry("blocks forward", fused.TILES["forward"], key, (tiles(64, 64, 4, 2), tiles(64, 64, 4, 3))),
        Entry("blocks dq", fused.TILES["dq"], key, (tiles(32, 32, 4, 2), tiles(32, 32, 8, 2))),
        Entry("blocks dkv", fused.TILES["dkv"], key, (tiles(64, 32, 4, 2), tiles(32, 32, 4, 2))),
        Entry("blocks static dkv", fused.TILES["static dkv"], key, (tiles(32, 32, 8, 2), tiles(32, 32, 4, 2))),
        Entry(
            "blocks scores", fused_scores.TILES, key,
            (scores(128, 64, 8, 2), scores(64, 64, 4, 2), scores(128, 128, 8, 1)),
        ),
        Entry("blocks decode", block_decode.WALKS, "half", (walk(64, 4, 3, 528, 2), walk(32, 4, 3, 528, 2))),
    )  # fmt: skip
    return {entry.kernel: entry for entry in listed}


def block_groups(shapes: Shapes, small: bool = False) -> Iterator[Group]:
    """As `variants.groups`."""
    found, (top, quest, dilated) = block_entries(shapes.d_head), SELECTIONS

    def length(full: int) -> int:
        return min(full, shapes.tokens // 64) if small else full

    for batch, full, selection in (
        (4, 16384, top), (4, 16384, dilated), (1, 65536, top), (1, 65536, dilated),
    ):  # fmt: skip
        rows = 1 if small else batch
        yield _attention_group(found["blocks forward"], shapes, rows, length(full), selection)
        if selection is top:
            yield _attention_group(found["blocks scores"], shapes, rows, length(full), selection)
        if full == 16384:
            of_lists = selection.static[0] is not None  # else the far list and the band are empty
            for name in ("blocks static dkv",) if of_lists else ("blocks dq", "blocks dkv"):
                yield _attention_group(found[name], shapes, rows, length(full), selection)
    for batch, full in ((1, 65536), (32, 16384)):
        # One sequence is split among programs, which is another kernel than many.
        yield _decode_group(found["blocks decode"], shapes, batch, length(full), quest)


def _attention_group(entry: Entry, shapes: Shapes, batch: int, length: int, selection: Selection) -> Group:
    d_model, backward = shapes.d_models[0], entry.kernel in ("blocks dq", "blocks dkv", "blocks static dkv")
    size = batch * length * d_model * shapes.dtype.itemsize
    flops = 4.0 * batch * d_model * sum(selected_pairs(t, selection) for t in range(length))
    blocks = Blocks(selection.block, selection.score)

    def make() -> Run:
        q, k, v = gate_views(shapes, batch, length, d_model, 3)
        alike(q)
        heads = k.shape[1]
        settings = pattern_tensors(*selection.static, heads, q.device)
        top, numbers = int_tensor(selection.top, heads, q.device), torch.arange(heads, device=q.device)
        start = torch.zeros(batch, dtype=torch.int64, device=q.device)
        choose = partial(fused.choose, q, k, None, start, top, blocks, selection.top, numbers)
        if entry.kernel == "blocks scores":
            return choose
        ids = choose()

        def forward() -> tuple[Tensor, Tensor]:
            size = fused.tiles(shapes.d_head, q.dtype)
            lists = fused.tile_lists(ids, size.BM, blocks.reach(length))
            return fused.attend(q, k, v, *settings, start, ids, *lists, blocks)

        if not backward:
            return forward
        out, lse = forward()
        return partial(
            fused.backward, torch.randn_like(out), q, k, v, *settings, top, start, out, lse, ids, blocks
        )  # fmt: skip

    least, work = (8 * size, 2.5 * flops) if backward else (4 * size, flops)
    return Group(entry, f"B{batch} T{length} d{d_model}", selection.label, least, work, make)


def _decode_group(entry: Entry, shapes: Shapes, batch: int, length: int, selection: Selection) -> Group:
    d_model, item = shapes.d_models[0], shapes.dtype.itemsize
    heads, blocks = d_model // shapes.d_head, Blocks(selection.block, selection.score)
    least = 2 * batch * d_model * item * selected_pairs(length - 1, selection)

    def make() -> Run:
        def random(*size: int) -> Tensor:
            return torch.empty(*size, device=shapes.device, dtype=shapes.dtype).normal_()

        token = [random(batch, heads, shapes.d_head) for _ in range(4)]
        keys, values = (random(batch, heads, length, shapes.d_head) for _ in range(2))
        metadata = block_metadata(keys, selection.block, selection.score)
        state = [torch.zeros(batch, heads, shapes.d_head, device=shapes.device) for _ in range(2)]
        positions = torch.full((batch,), length - 1, device=shapes.device)
        settings = pattern_tensors(*selection.static, heads, keys.device)
        top, numbers = int_tensor(selection.top, heads, keys.device), torch.arange(heads, device=keys.device)
        return partial(
            block_decode.step, *token, keys, values, metadata, *state, positions, *settings, top, numbers,
            *rope_tables(shapes, length), blocks, selection.top,
        )  # fmt: skip

    return Group(
        entry, f"B{batch} T{length} d{d_model}", selection.label, least, 2.0 * least / item, make,
        capture=shapes.device == "cuda",
    )  # fmt: skip
