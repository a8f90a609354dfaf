"""Which blocks a query reads and which entries SnapKV keeps: the selection as it is defined, in NumPy.

Scores are computed in float64 from the given numbers and rounded to float32 before they are compared, unless the
numbers are float64 themselves: what is equal in exact arithmetic ties, whatever the order of summation, and a tie goes
to the lower position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_BITS = 0xFFFFFFFF
# Keeps a seed of 0 and the indices 0 apart from each other (2^32 divided by the golden ratio).
_STEP = 0x9E3779B9


def wide(x) -> np.ndarray:
    """A NumPy array of float32 or float64 of an array or a torch tensor (of any floating type, on any device)."""
    import numpy as np

    if hasattr(x, "detach"):  # a torch tensor, without importing torch
        x = x.detach().cpu()
        x = (x if str(x.dtype) == "torch.float64" else x.float()).numpy()
    x = np.asarray(x)
    return x if x.dtype == np.float64 else x.astype(np.float32)


def chosen_blocks(pattern: Any, q: np.ndarray, k: np.ndarray, layer: int = 0, head: int = 0) -> np.ndarray:
    """bool [G, T, blocks]: the blocks that each query reads, its own and the first one included.

    With over="kept" the blocks are those of dilated keys, else of all keys; the last one may be incomplete.

    Args:
        q: [H, T, d], rotated; H a multiple of G, and query head h shares the keys of head h // (H / G).
        k: [G, T, d], rotated, as attention uses them.
        layer, head: where the heads stand in the model, `head` that of the first of k; only random blocks ask.
    """
    import numpy as np

    length = q.shape[1]
    t = np.arange(length)
    if pattern.over == "kept":
        keys, own = k[:, pattern.dilation - 1 :: pattern.dilation], t // (pattern.block * pattern.dilation)
    else:
        keys, own = k, t // pattern.block
    blocks = int(own[-1]) + 1
    score = _block_scores(pattern, q, keys, blocks, layer, head)
    block = np.arange(blocks)
    forced = block == own[:, None]
    if pattern.first:
        forced = forced | (block == 0)
    rival = (block < own[:, None]) & ~forced  # [T, blocks]: complete blocks of the past
    free = pattern.top - forced.sum(axis=1)
    ranked = np.argsort(np.where(rival, -score, np.inf), axis=-1, kind="stable")
    rank = np.empty_like(ranked)
    np.put_along_axis(rank, ranked, np.broadcast_to(block, ranked.shape), axis=-1)
    return forced | (rival & (rank < free[:, None]))


def _block_scores(pattern: Any, q: np.ndarray, keys: np.ndarray, blocks: int, layer: int, head: int) -> np.ndarray:
    """[G, T, blocks]; those of a block that is not complete mean nothing.

    keys [G, n, d] are the keys that the blocks are made of, `pattern.block` each.
    """
    import numpy as np

    heads, length, width = q.shape
    groups = keys.shape[0]
    if pattern.score == "random":
        return random_scores(pattern.seed, layer, head + np.arange(groups), np.arange(length), blocks)
    single = q.dtype == np.float32 and keys.dtype == np.float32
    complete = keys.shape[1] // pattern.block
    inside = keys[:, : complete * pattern.block].astype(np.float64)
    inside = inside.reshape(groups, complete, pattern.block, width)
    queries = q.astype(np.float64).reshape(groups, heads // groups, length, width)
    score = np.zeros((groups, length, blocks))
    if pattern.score == "mean":
        score[:, :, :complete] = np.einsum("ghtd,gbd->gtb", queries, inside.mean(axis=2))
    else:
        low, high = inside.min(axis=2), inside.max(axis=2)
        for b in range(complete):
            bound = np.maximum(queries * low[:, None, b, None], queries * high[:, None, b, None])
            score[:, :, b] = bound.sum(axis=(1, 3))
    return score.astype(np.float32) if single else score


def random_scores(seed: int, layer: int, heads: np.ndarray, positions: np.ndarray, blocks: int) -> np.ndarray:
    """float32 [heads, positions, blocks] in [0, 1): a hash of seed, layer, head of keys, query's position and block.

    A function of these alone, so that a step draws what a full forward drew. All arithmetic is modulo 2^32:
    score = mix(mix(mix(mix(mix(seed + c) + layer + c) + head + c) + t + c) + b + c) >> 8, times 2^-24.
    """
    import numpy as np

    def mix(x):
        # The finalizer "lowbias32" of Chris Wellons' search for integer hashes (public domain).
        x = x & _BITS
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & _BITS
        x = ((x ^ (x >> 15)) * 0x846CA68B) & _BITS
        return x ^ (x >> 16)

    def mixed(state, number):
        return mix(state + np.asarray(number, dtype=np.uint64) + np.uint64(_STEP))

    state = mixed(mixed(np.uint64(0), seed), layer)
    state = mixed(mixed(state, heads)[:, None], positions)[:, :, None]
    return ((mixed(state, np.arange(blocks)) >> 8).astype(np.float32)) * np.float32(2.0**-24)


def kept_by_snap(pattern: Any, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """bool [G, P]: the entries of a prompt that SnapKV keeps. q [H, P, d], k [G, P, d], both rotated.

    The last `observe` queries attend to the whole prompt; their weights are summed, averaged over the heads that share
    keys, and pooled over neighbouring entries. Kept are the last `observe` entries, the sinks, and the best others to
    `snap` in total.
    """
    import numpy as np

    heads, prompt, width = q.shape
    groups = k.shape[0]
    if prompt <= pattern.snap:
        return np.ones((groups, prompt), dtype=bool)
    single = q.dtype == np.float32 and k.dtype == np.float32
    first = prompt - pattern.observe
    queries = q[:, first:].astype(np.float64).reshape(groups, heads // groups, pattern.observe, width)
    logits = np.einsum("ghtd,gjd->ghtj", queries, k.astype(np.float64)) * width**-0.5
    logits = np.where(np.arange(prompt) <= np.arange(first, prompt)[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    score = _pooled(weights.sum(axis=2).mean(axis=1)[:, :first], pattern.kernel, pattern.pool)
    score = score.astype(np.float32) if single else score
    kept = np.zeros((groups, prompt), dtype=bool)
    kept[:, first:] = True
    kept[:, : pattern.sinks] = True
    free = pattern.snap - pattern.observe - pattern.sinks
    order = np.argsort(np.where(kept[:, :first], np.inf, -score), axis=-1, kind="stable")[:, :free]
    np.put_along_axis(kept, order, True, axis=-1)
    return kept


def _pooled(score: np.ndarray, kernel: int, pool: str) -> np.ndarray:
    """Score [G, n] over `kernel` neighbours each; outside are zeros (avg, divisor `kernel`) or nothing (max)."""
    import numpy as np

    half = kernel // 2
    padded = np.pad(score, ((0, 0), (half, half)), constant_values=0.0 if pool == "avg" else -np.inf)
    near = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=-1)
    return near.sum(axis=-1) / kernel if pool == "avg" else near.max(axis=-1)
