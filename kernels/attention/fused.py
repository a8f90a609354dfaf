"""Dilated attention as Triton kernels: one pass, one softmax, forward and backward.

Dilation, window and sinks are int32 [H] tensors that the kernels read, with loop bounds computed from them: one
compiled kernel serves every pattern and every mix of heads, and nothing is read back to the host. Far keys are loaded
where they are, at a stride of `dilation` rows; a row is one or more full memory sectors, so gathering them first would
save nothing. No atomics: results are bitwise repeatable.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ratplus.kernels.attention.boxes import NONE, launch_with_memory, lists_have_boxes, query_boxes
from ratplus.kernels.attention.fused_backward import (
    dkv_band_kernel,
    dkv_combine_kernel,
    dkv_far_kernel,
    dq_kernel,
)
from ratplus.kernels.attention.fused_forward import forward_kernel
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride


@dataclass(frozen=True)
class Tiles:
    """Queries and keys a tile, and the launch options.

    boxes: through descriptors (TMA) the forward kernel reads whole tiles of the far list, and the kernels of dK and dV
        read tiles of queries. Where tensors or device don't allow that, they take `without_boxes`.
    """

    BM: int
    BN: int
    num_warps: int
    num_stages: int
    boxes: bool = False

    def constants(self, d_head: int, group: int) -> dict:
        """What a kernel is compiled for; group: query heads that share one head of keys."""
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return {"D": d_head, "BM": self.BM, "BN": self.BN, "GROUP": group, **launch}


FILL = 264  # programs that fill the GPU: 2 a multiprocessor of an H100
MIN_QUERIES = 512  # queries a part of the far list's backward pass, at least


# Of half-precision tensors, as they were fastest on an H100 with heads of 128 (docs/kernels.md); smaller heads have not
# been measured. Fixed by table, not tuned at run time: tuning would change results from run to run.
TILES = {
    ("forward", 64): Tiles(64, 32, 4, 3),
    ("forward", 128): Tiles(64, 32, 4, 3),
    ("forward, long list", 64): Tiles(64, 64, 4, 3, boxes=True),
    ("forward, long list", 128): Tiles(64, 64, 4, 3, boxes=True),
    ("forward, very long list", 64): Tiles(128, 64, 8, 4, boxes=True),
    ("forward, very long list", 128): Tiles(128, 64, 8, 4, boxes=True),
    ("dq", 64): Tiles(128, 64, 8, 2),
    ("dq", 128): Tiles(128, 64, 8, 2),
    ("dkv", 64): Tiles(32, 64, 4, 3, boxes=True),
    ("dkv", 128): Tiles(32, 64, 4, 3, boxes=True),
    ("dkv, long list", 64): Tiles(64, 128, 8, 3, boxes=True),
    ("dkv, long list", 128): Tiles(64, 128, 8, 3, boxes=True),
    ("dkv, band", 64): Tiles(64, 64, 4, 2, boxes=True),
    ("dkv, band", 128): Tiles(64, 64, 4, 2, boxes=True),
}
# Where query heads share keys: dK and dV are written in float32, and other tiles would spill 260 to 310 bytes a thread.
# Not measured.
GROUPED_TILES = {
    ("dq", 128): Tiles(64, 64, 8, 2),
    ("dkv", 128): Tiles(32, 64, 8, 3),
    ("dkv, long list", 128): Tiles(32, 64, 8, 3),
    ("dkv, band", 128): Tiles(32, 64, 8, 3),
}
# A far list of more entries is long, or very long: its products take longer than reading q, k, v and writing the
# output, and larger tiles pay.
LONG_LIST, VERY_LONG_LIST = 2048, 8192
# The same for dK and dV, whose programs hold a tile of the list and walk over queries.
LONG_KEY_LIST = 512


def forward_kind(longest_far: int) -> str:
    """Which of the forward kernel's entries of TILES suits a far list of that length."""
    if longest_far > VERY_LONG_LIST:
        return "forward, very long list"
    return "forward, long list" if longest_far > LONG_LIST else "forward"


def far_keys_kind(longest_far: int) -> str:
    """Which entry of TILES suits dK and dV of a far list of that length."""
    return "dkv, long list" if longest_far > LONG_KEY_LIST else "dkv"


def without_boxes(kind: str, size: Tiles) -> Tiles:
    """Tiles that suit addresses, for tensors and devices that allow no descriptors; those that need none stay."""
    if not size.boxes:
        return size
    return Tiles(64, 64, 4, 3) if kind.startswith("forward") else Tiles(32, 64, 4, 3)


def combine_warps(keys: int) -> int:
    """Warps of a program that adds up parts of a tile of so many keys."""
    return max(8, keys // 8)


def tiles(kind: str, d_head: int, dtype: torch.dtype, group: int) -> Tiles:
    """Tile sizes of a kind that TILES names, with `group` query heads a head of keys."""
    if interpreted():
        return Tiles(32, 16, 1, 1)  # few elements, but several tiles in the tests' sequences
    if dtype == torch.float32:  # no tensor cores: what the registers hold decides
        return Tiles(32, 16, 4, 2) if d_head <= 64 else Tiles(16, 16, 8, 1)
    if d_head == 256:
        return Tiles(32, 32, 8, 2)  # with 4 warps the backward pass spills registers
    key = table_key(kind, d_head)
    return GROUPED_TILES[key] if group > 1 and key in GROUPED_TILES else TILES[key]


def table_key(kind: str, d_head: int) -> tuple[str, int]:
    """The entry of TILES for heads of that size."""
    return kind, 128 if d_head == 128 else 64


def choose_splits(programs: int, length: int) -> int:
    """Parts that the queries of each tile of far keys are cut into; 1 where the tiles fill the GPU."""
    return max(1, min(-(-FILL // programs), length // MIN_QUERIES))


@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, longest_far: int
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, d], k, v [B, H_kv, T, d]; int32 [H_kv] patterns -> out [B, H, T, d], lse [B, H, T] float32.

    out is stored [B, T, H, d]. longest_far: an upper bound on the length of any far list; it chooses the tiles.
    """
    batch, heads, length, d_head = q.shape
    q, k, v = (unit_stride(x) for x in (q, k, v))
    out = q.new_empty(batch, length, heads, d_head)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    kind = forward_kind(longest_far)
    size = tiles(kind, d_head, q.dtype, heads // k.shape[1])
    if size.boxes and not lists_have_boxes(k, v):
        size = without_boxes(kind, size)
    launch = forward_kernel[(-(-length // size.BM) * batch * heads,)]
    if size.boxes:
        launch = partial(launch_with_memory, launch, q.device)
    launch(
        q, k, v, dilation, window, sinks, out, lse, length, heads, d_head**-0.5,
        *_strides(q, k, v), BOXES=size.boxes, **size.constants(d_head, heads // k.shape[1]),
    )  # fmt: skip
    return out.transpose(1, 2), lse


@on_its_device
def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    out: Tensor,
    lse: Tensor,
    longest_far: int,
    widest_window: int,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, each stored [B, T, H, d].

    longest_far, widest_window: upper bounds on the length of any far list and on any window. splits: parts of the far
    list's queries (None: as many as the GPU needs).
    """
    d_out = time_first(d_out)  # the gradient of a sum arrives with stride 0 and is written out here
    q, k, v = (unit_stride(x) for x in (q, k, v))
    patterns = (dilation, window, sinks)
    dq, delta, dk, dv = query_gradients(d_out, q, k, v, *patterns, time_first(out), lse, own=widest_window == 0)
    bounds = (longest_far, widest_window, splits)
    key_gradients(d_out, q, k, v, *patterns, lse, delta, dk, dv, *bounds)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        dk, dv = (x.unflatten(2, (-1, group)).sum(dim=3).to(q.dtype) for x in (dk, dv))
    return tuple(x.transpose(1, 2) for x in (dq, dk, dv))


def time_first(x: Tensor) -> Tensor:
    """[B, H, T, d] -> contiguous [B, T, H, d]."""
    return x.transpose(1, 2).contiguous()


@on_its_device
def query_gradients(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor,
    out: Tensor, lse: Tensor, own: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq [B, T, H, d], delta [B, H, T], and memory for each query head's dk, dv [B, T, H, d].

    d_out, out [B, T, H, d] contiguous. own: dk and dv hold what the token itself adds to them; else nothing yet.
    """
    batch, heads, length, d_head = q.shape
    group = heads // k.shape[1]
    # In float32 where they are summed over a group.
    parts = q.dtype if group == 1 else torch.float32
    dq, dk, dv = (q.new_empty(batch, length, heads, d_head, dtype=dtype) for dtype in (q.dtype, parts, parts))
    delta = torch.empty_like(lse)
    size = tiles("dq", d_head, q.dtype, group)
    dq_kernel[(-(-length // size.BM) * batch * heads,)](
        q, k, v, dilation, window, sinks, out, d_out, lse, delta, dq, dk, dv, length, heads, d_head**-0.5,
        *_strides(q, k, v), OWN=own, **size.constants(d_head, group),
    )  # fmt: skip
    return dq, delta, dk, dv


@on_its_device
def key_gradients(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor,
    lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor, longest_far: int, widest_window: int, splits: int | None,
) -> None:  # fmt: skip
    """Completes dk, dv [B, T, H, d] of each query head, as `query_gradients` left them. The rest as in `backward`."""
    batch, heads, length, d_head = q.shape
    group = heads // k.shape[1]
    rows, scale, strides = batch * heads, d_head**-0.5, _strides(q, k, v)

    def chosen(kind: str) -> tuple[Tiles, tuple]:
        size = tiles(kind, d_head, q.dtype, group)
        boxes = query_boxes(q, d_out, lse, delta, size.BM) if size.boxes else NONE
        return (without_boxes(kind, size), NONE) if boxes is NONE else (size, boxes)

    if widest_window > 0:
        size, boxes = chosen("dkv, band")
        dkv_band_kernel[(-(-length // size.BN) * rows,)](
            q, k, v, window, d_out, *boxes, lse, delta, dk, dv, length, heads, scale, *strides,
            BOXES=size.boxes, **size.constants(d_head, group),
        )  # fmt: skip
    if longest_far > 0:
        size, boxes = chosen(far_keys_kind(longest_far))
        far_tiles = -(-longest_far // size.BN)
        programs = far_tiles * rows
        splits = choose_splits(programs, length) if splits is None else splits
        part_k = part_v = delta
        if splits > 1:
            part_k, part_v = (delta.new_empty(splits, programs, size.BN, d_head) for _ in range(2))
        dkv_far_kernel[(programs, splits)](
            q, k, v, dilation, window, sinks, d_out, *boxes, lse, delta, dk, dv, part_k, part_v, far_tiles, splits,
            length, heads, scale, *strides, SPLIT=splits > 1, BOXES=size.boxes, **size.constants(d_head, group),
        )  # fmt: skip
        if splits > 1:
            dkv_combine_kernel[(programs,)](
                part_k, part_v, dilation, window, sinks, dk, dv, far_tiles, splits, length, heads, scale,
                D=d_head, BN=size.BN, GROUP=group, num_warps=combine_warps(size.BN),
            )  # fmt: skip


def _strides(*tensors: Tensor) -> list[int]:
    """(batch, head, time) strides of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]
