"""What it costs that a pattern selects by query: pairs, scoring of blocks, block metadata; torch-free.

One head, `d_head` channels, plain numbers. Blocks of keys are scored only where there are more of them than a query may
read: from then on every complete block before the query's own is scored, 2 d_head FLOPs each for a mean and 4 d_head
for bounds. Not counted: making the metadata (about one addition a channel and key), the choice of the largest scores.
Definitions: MoBA, arXiv 2502.13189; Quest, arXiv 2406.10774; SnapKV, arXiv 2404.14469.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ratplus.pattern import Pattern

# FLOPs a channel and block: one product of query and mean; two products, of which the larger one is added, for bounds.
# Random blocks are not scored.
_FLOPS_A_CHANNEL = {"mean": 2, "bounds": 4, "random": 0}
# The mean of a block is kept in float32 whatever the dtype of the keys; bounds are keys themselves, two of them.
_MEAN_BYTES, _BOUNDS = 4, 2


def dense_forward(pattern: Pattern) -> bool:
    """Whether a forward over a prompt is dense: the pattern is one of generated tokens alone (decode phase, SnapKV)."""
    return pattern.data_dependent and (pattern.phase == "decode" or pattern.snap is not None)


def forward_is_exact(pattern: Pattern) -> bool:
    """Whether the visible pairs of a forward are counted exactly; else an upper bound, as `Pattern.kv_read_exact`."""
    if dense_forward(pattern):
        return True
    return replace(pattern, phase="both").kv_read_exact if pattern.phase == "prefill" else pattern.kv_read_exact


@lru_cache(maxsize=1024)
def selected_pairs(pattern: Pattern, length: int) -> int:
    """Visible pairs of a forward over positions 0 .. length - 1 where each query selects blocks; O(length).

    An upper bound where `forward_is_exact` is false.
    """
    import numpy as np

    everywhere = replace(pattern, phase="both")
    return int(everywhere.kv_read(np.arange(length, dtype=np.int64)).sum()) + length


def blocks_before(pattern: Pattern, position: int) -> int:
    """Complete blocks before the one that `position` is in."""
    span = pattern.block * (pattern.dilation or 1) if pattern.over == "kept" else pattern.block
    return position // span


def decode_scores(pattern: Pattern, position: int) -> int:
    """Blocks that the decoding step at `position` scores; 0 where all of them may be read, or none are selected."""
    if pattern.top is None or not pattern.data_dependent or pattern.phase == "prefill":
        return 0
    past = blocks_before(pattern, position)
    return past if pattern.score != "random" and past >= pattern.top else 0


def decode_selection_flops(pattern: Pattern, position: int, d_head: int) -> int:
    """FLOPs of one query head's scores in the decoding step at `position`."""
    return decode_scores(pattern, position) * _FLOPS_A_CHANNEL[pattern.score] * d_head


def forward_selection_flops(pattern: Pattern, length: int, d_head: int) -> int:
    """FLOPs of one query head's scores over positions 0 .. length - 1; for SnapKV, of its observation window.

    SnapKV attends once more from the last `observe` positions of a prompt to all of it: 2 d_head a pair, counted as if
    each saw the whole prompt. Nothing if the prompt fits whole.
    """
    if not pattern.data_dependent:
        return 0
    if pattern.snap is not None:
        return 2 * d_head * pattern.observe * length if length > pattern.snap else 0
    assert pattern.top is not None
    if pattern.phase == "decode":
        return 0
    span = pattern.block * (pattern.dilation or 1) if pattern.over == "kept" else pattern.block
    whole, rest = divmod(length, span)
    # Each of the span queries of block b >= top scores b blocks; so do the `rest` queries of the last block.
    scored = span * sum(range(pattern.top, whole)) + (rest * whole if whole >= pattern.top else 0)
    return scored * _FLOPS_A_CHANNEL[pattern.score] * d_head


def metadata_bytes(pattern: Pattern, length: int, d_head: int, bytes_per_element: int) -> int:
    """Bytes of the block metadata that a head holds beside the keys of `length` tokens: a float32 mean, or two bounds.

    A pattern that selects in the prompt alone holds them too: a prompt may come in chunks.
    """
    if pattern.top is None or not pattern.data_dependent:
        return 0
    return blocks_before(pattern, length) * _block_bytes(pattern, d_head, bytes_per_element)


def metadata_read_bytes(pattern: Pattern, position: int, d_head: int, bytes_per_element: int) -> int:
    """Bytes of metadata that a head reads in the decoding step at `position`."""
    return decode_scores(pattern, position) * _block_bytes(pattern, d_head, bytes_per_element)


def _block_bytes(pattern: Pattern, d_head: int, bytes_per_element: int) -> int:
    each = {"mean": _MEAN_BYTES, "bounds": _BOUNDS * bytes_per_element, "random": 0}[pattern.score]
    return each * d_head
