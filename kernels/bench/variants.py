"""Tile sizes and pipeline depths of each Triton kernel, side by side on a GPU: what the tables rest on.

The tables are `WALKS` of `scan/fused.py` and `decode/fused.py` and `TILES` of `attention/fused.py`. A group holds the
variants of one entry at one shape; `fastest` names, for every entry, the variant that loses least over all its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ratplus.kernels.attention import fused as attention
from ratplus.kernels.attention.patterns import pattern_tensors
from ratplus.kernels.bench.cases import Shapes, Triple, gate_views, graphed, label, rope_tables, visible_pairs
from ratplus.kernels.bench.timing import Run
from ratplus.kernels.decode import fused as decode
from ratplus.kernels.decode.layout import slot_count
from ratplus.kernels.scan import fused as scan

Tables = dict
SHARED = 4  # query heads a key head, where heads share keys
# What the forward kernel is told of the far list's length, so that it takes the entry that is measured.
_LISTS = {
    "attention forward": attention.LONG_LIST,
    "attention forward, long list": attention.LONG_LIST + 1,
    "attention forward, very long list": attention.VERY_LONG_LIST + 1,
}
# The same for dK and dV: their grid is made for lists of this length, at least.
_KEY_LISTS = {"attention dkv, long list": attention.LONG_KEY_LIST + 1}


@dataclass(frozen=True)
class Entry:
    """One entry of a table, by name, and the values that are tried for it."""

    kernel: str
    table: Tables
    key: object
    values: tuple


def entries(d_head: int) -> dict[str, Entry]:
    """What is tried. Left out: what spills, or takes a minute to compile (`aot.py` shows both without a GPU)."""
    walk, tiles, step = scan.Walk, attention.Tiles, decode.Walk
    # Both sides of the border between long lists and very long ones, so that it shows too.
    long = (tiles(64, 64, 4, 3, boxes=True), tiles(128, 64, 8, 4, boxes=True), tiles(64, 64, 4, 3))
    # As are these: of lists below and above the other one.
    keys = (
        tiles(32, 64, 4, 3, boxes=True), tiles(64, 64, 4, 2, boxes=True), tiles(64, 128, 8, 3, boxes=True),
        tiles(32, 64, 4, 3),
    )  # fmt: skip
    of_attention = {
        "forward": (tiles(64, 32, 4, 3), tiles(64, 64, 4, 3)),
        "forward, long list": long,
        "forward, very long list": long,
        "dq": (tiles(128, 64, 8, 2), tiles(64, 64, 4, 2)),
        "dkv": keys,
        "dkv, long list": keys[:3],
        "dkv, band": keys[:2],
    }
    listed = (
        Entry(
            "scan forward", scan.WALKS, "forward",
            (walk(4, 3, 256), walk(4, 3, 512), walk(4, 3, 1024), walk(4, 2, 512), walk(2, 3, 512), walk(4, 1, 1024)),
        ),
        Entry(
            "scan backward", scan.WALKS, "backward",
            (walk(2, 3, 256), walk(2, 3, 512), walk(2, 3, 1024), walk(2, 2, 512), walk(2, 1, 1024)),
        ),
        *(
            Entry(f"attention {kind}", attention.TILES, attention.table_key(kind, d_head), values)
            for kind, values in of_attention.items()
        ),
        Entry(
            "decode", decode.WALKS, "single",
            # Half a tile: fewer registers, more programs at a time.
            (step(32, 2, 2, 1320, 64), step(16, 2, 2, 2112, 64), step(16, 2, 1, 2112, 64)),
        ),
        Entry(
            "decode, short parts", decode.WALKS, "single, short parts",
            (
                step(32, 2, 1, 1320, 64, evict_first=True),
                # Programs of one and four warps, as many as registers leave room for: longer and shorter merges.
                step(16, 1, 1, 2640, 64, evict_first=True),
                step(64, 4, 1, 528, 64, evict_first=True),
                # Fewer merges; the parts of 16,384 slots are whole tiles then.
                step(32, 2, 1, 1056, 64, evict_first=True),
                step(32, 2, 1, 1320, 64),
            ),
        ),
        Entry(
            "decode, shared keys", decode.WALKS, "group",
            (step(64, 4, 3, 264, 256), step(64, 4, 3, 264, 64), step(64, 4, 3, 396, 64), step(32, 2, 3, 528, 64)),
        ),
    )  # fmt: skip
    return {entry.kernel: entry for entry in listed}


@dataclass(frozen=True)
class Group:
    """The variants of one entry at one shape.

    make() returns the call that all variants share; it looks the table up anew each time. capture: whether it runs in a
    CUDA graph, one for each variant. least_bytes, flops: of the call. dQ and dK, dV are calls of their own, with all
    products that they compute: 3 and 4, where the backward pass as a whole counts 5.
    """

    entry: Entry
    shape: str
    pattern: str
    least_bytes: float
    flops: float
    make: Callable[[], Run]
    capture: bool = False

    def with_value(self, value: object, run: Run) -> Run:
        """`run`, what `make` returned, with the entry holding `value` while it runs."""
        table, key = self.entry.table, self.entry.key

        def call() -> object:
            before = table[key]
            table[key] = value
            try:
                return run()
            finally:
                table[key] = before

        return graphed(call) if self.capture else call


def groups(shapes: Shapes, small: bool = False) -> Iterator[Group]:
    """At the shapes of the goals; small: the same kernels, as Triton compiles them, at shapes that take no time."""
    d_model, found = shapes.d_models[0], entries(shapes.d_head)

    def length(full: int) -> int:
        return min(full, shapes.tokens // 64) if small else full

    def batch(full: int) -> int:
        return min(full, 2) if small else full

    # The scan's programs hold the same number of channels whatever the head size is.
    for b, full in ((64, 4096), (16, 16384), (1, 262144)) if shapes.d_head == 128 else ():
        arguments = (shapes, d_model, batch(b), length(full))
        yield _scan_group(found["scan forward"], *arguments, backward=False)
        yield _scan_group(found["scan backward"], *arguments, backward=True)
    for kind, b, full, pattern in (
        ("forward", 64, 4096, (64, 0, 0)), ("forward", 64, 4096, (16, 0, 0)), ("forward", 16, 16384, (16, 0, 0)),
        ("forward, long list", 4, 65536, (16, 0, 0)), ("forward, long list", 4, 65536, (16, 256, 0)),
        ("forward, long list", 2, 131072, (16, 0, 0)), ("forward, very long list", 1, 262144, (16, 0, 0)),
        ("dq", 16, 16384, (16, 0, 0)), ("dq", 64, 4096, (64, 0, 0)), ("dq", 64, 4096, (16, 256, 0)),
        ("dkv", 64, 4096, (64, 0, 0)), ("dkv", 64, 4096, (16, 0, 0)), ("dkv", 64, 4096, (16, 256, 0)),
        ("dkv, long list", 64, 4096, (4, 0, 0)), ("dkv, long list", 16, 16384, (16, 0, 0)),
        ("dkv, band", 64, 4096, (16, 256, 0)),
    ):  # fmt: skip
        yield _attention_group(found[f"attention {kind}"], shapes, d_model, batch(b), length(full), pattern)
    for name, b, full, pattern in (
        ("decode, short parts", 1, 262144, (16, 0, 0)), ("decode, short parts", 1, 32768, (16, 0, 0)),
        ("decode, short parts", 1, 4096, (16, 0, 0)), ("decode", 1, 262144, (1, 0, 0)),
        ("decode", 128, 4096, (64, 0, 0)), ("decode", 128, 4096, (16, 0, 0)), ("decode", 128, 65536, (16, 0, 0)),
        ("decode, shared keys", 1, 262144, (16, 0, 0)), ("decode, shared keys", 1, 32768, (16, 0, 0)),
        ("decode, shared keys", 128, 16384, (16, 0, 0)),
    ):  # fmt: skip
        sharing = SHARED if name == "decode, shared keys" else 1
        if d_model < sharing * shapes.d_head:
            continue
        # Small, but the kernel that the full length has.
        tokens = 3 * decode.SHORT_PART if small and pattern[0] == 1 else length(full)
        splits = 2 if small and b == 1 else None
        yield _decode_group(found[name], shapes, d_model, batch(b), tokens, pattern, sharing, splits)


def _scan_group(entry: Entry, shapes: Shapes, d_model: int, batch: int, length: int, backward: bool) -> Group:
    size = batch * length * d_model * shapes.dtype.itemsize

    def make() -> Run:
        logit, k, v = gate_views(shapes, batch, length, d_model, 3)
        forward = partial(scan.forward, logit, k, v, None, None, *rope_tables(shapes, length))
        if not backward:
            return forward
        k_tilde, v_tilde, k_state, v_state = forward()
        gradients = [torch.randn_like(x) for x in (k_tilde, v_tilde, k_state, v_state)]
        tables = rope_tables(shapes, length)
        return partial(scan.backward, *gradients, logit, k, v, None, None, *tables, k_tilde, v_tilde)

    least = (10 if backward else 5) * size
    return Group(entry, f"B{batch} T{length} d{d_model}", "-", least, 0.0, make)


def _attention_group(
    entry: Entry, shapes: Shapes, d_model: int, batch: int, length: int, pattern: Triple
) -> Group:  # fmt: skip
    kind = entry.kernel.split()[1].rstrip(",")
    size = batch * length * d_model * shapes.dtype.itemsize
    flops = 4.0 * batch * d_model * visible_pairs(length, *pattern)

    def make() -> Run:
        q, k, v = gate_views(shapes, batch, length, d_model, 3)
        settings = pattern_tensors(*pattern, q.shape[1], q.device)
        forward = partial(attention.forward, q, k, v, *settings, _LISTS.get(entry.kernel, length))
        if kind == "forward":
            return forward
        out, lse = forward()
        d_out = attention.time_first(torch.randn_like(out))
        queries = partial(
            attention.query_gradients, d_out, q, k, v, *settings, attention.time_first(out), lse, pattern[1] == 0
        )
        if kind == "dq":
            return queries
        assert pattern[0] is not None  # only dilated patterns have variants
        _dq, delta, dk, dv = queries()
        longest_far = max(length // pattern[0], _KEY_LISTS.get(entry.kernel, 0))
        bounds = (longest_far, pattern[1], 1)  # at these batches the tiles of keys alone fill a GPU
        return partial(attention.key_gradients, d_out, q, k, v, *settings, lse, delta, dk, dv, *bounds)

    # Without a window dK and dV of the band are the work of dQ's kernel, and the far list's are few rows.
    tensors, products = {
        "forward": (4, 2), "dq": (6 if pattern[1] else 8, 3), "dkv": (6 if pattern[1] else 2, 4),
    }[kind]  # fmt: skip
    return Group(entry, f"B{batch} T{length} d{d_model}", label(pattern), tensors * size, products / 2 * flops, make)


def _decode_group(
    entry: Entry, shapes: Shapes, d_model: int, batch: int, length: int, pattern: Triple, sharing: int,
    splits: int | None,
) -> Group:  # fmt: skip
    """sharing: query heads to a key head. splits: None for as many as the walk says."""
    heads, item = d_model // shapes.d_head // sharing, shapes.dtype.itemsize
    slots = heads * slot_count(*pattern, length)
    cache_bytes = 2 * batch * shapes.d_head * item * slots

    def make() -> Run:
        def random(*size: int) -> Tensor:
            return torch.empty(*size, device=shapes.device, dtype=shapes.dtype).normal_()

        token = [random(batch, heads * n, shapes.d_head) for n in (sharing, 1, 1, 1)]
        keys, values = (random(batch, slots, shapes.d_head) for _ in range(2))
        state = [torch.zeros(batch, heads, shapes.d_head, device=shapes.device) for _ in range(2)]
        positions = torch.full((batch,), length - 1, device=shapes.device)
        settings = pattern_tensors(*pattern, heads, keys.device)
        tables = rope_tables(shapes, length)
        step = partial(decode.step, *token, keys, values, *state, positions, *settings, None, *tables)
        return partial(step, splits=splits)

    least = cache_bytes + batch * heads * shapes.d_head * (3 * item + 16) + 2 * batch * d_model * item
    return Group(
        entry, f"B{batch} T{length} d{d_model}", label(pattern), least, 2 * sharing * cache_bytes / item, make,
        capture=shapes.device == "cuda",
    )  # fmt: skip


def fastest(measured: list[tuple[Group, list[float]]]) -> dict[str, tuple[Any, float]]:
    """For each kernel (the value that loses least, its loss): milliseconds over the best of the shape, averaged.

    measured: each group with the milliseconds of its variants, in their order; not-a-number where one failed.
    """
    losses: dict[str, list[list[float]]] = {}
    for group, times in measured:
        best = min((x for x in times if x == x), default=float("nan"))
        losses.setdefault(group.entry.kernel, []).append([x / best for x in times])
    chosen = {}
    for kernel, rows in losses.items():
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        usable = [(mean, n) for n, mean in enumerate(means) if mean == mean]
        if usable:
            mean, n = min(usable)
            entry = next(group.entry for group, _ in measured if group.entry.kernel == kernel)
            chosen[kernel] = (entry.values[n], mean - 1.0)
    return chosen
