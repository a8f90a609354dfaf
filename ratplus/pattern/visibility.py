"""What a head sees, as boolean masks: the definition that the operators and the model are tested against.

Quadratic and slow on purpose: for tests, pictures and short sequences. Sources: RAT+, arXiv 2602.18196 (static part,
and its union with selected blocks); MoBA, arXiv 2502.13189 (means); Quest, arXiv 2406.10774 (bounds); SnapKV, arXiv
2404.14469.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratplus.pattern.selection import chosen_blocks, kept_by_snap, wide

if TYPE_CHECKING:
    import numpy as np


def static_mask(pattern: Any, q_len: int, kv_len: int) -> np.ndarray:
    """bool [q_len, kv_len] of the static part: dilation, window, sinks. The queries are the last positions."""
    import numpy as np

    t = np.arange(kv_len - q_len, kv_len)[:, None]
    j = np.arange(kv_len)[None, :]
    seen = (t - j <= pattern.window) | (j < pattern.sinks)
    if pattern.dilation is not None:
        seen |= (j + 1) % pattern.dilation == 0
    return seen & (j <= t)


def selected_mask(pattern: Any, q, k, prompt: int | None, layer: int, head: int) -> np.ndarray:
    """bool [H, T, T] of q [H, T, d] and k [G, T, d]; see `Pattern.visible_from`, whose checks are done."""
    import numpy as np

    q, k = wide(q), wide(k)
    heads, length = q.shape[:2]
    group = heads // k.shape[0]
    if not pattern.data_dependent:
        return np.broadcast_to(static_mask(pattern.canonical, length, length), (heads, length, length)).copy()
    t = np.arange(length)[:, None]
    j = np.arange(length)[None, :]
    past = j <= t
    if pattern.snap is not None:
        assert prompt is not None
        kept = kept_by_snap(pattern, q[:, :prompt], k[:, :prompt])  # [G, prompt]
        after = np.ones((len(kept), length), dtype=bool)
        after[:, :prompt] = kept
        seen = past & ((t < prompt) | after[:, None, :])
        return np.repeat(seen, group, axis=0)
    chosen = chosen_blocks(pattern, q, k, layer, head)  # [G, T, blocks]
    if pattern.over == "kept":
        dilation = pattern.dilation
        read = ((j[0] + 1) % dilation == 0) & chosen[:, :, j[0] // (pattern.block * dilation)]
        near = (t - j <= pattern.window) | (j < pattern.sinks)
        seen = past & (read | near)
    else:
        seen = past & (chosen[:, :, j[0] // pattern.block] | static_mask(pattern, length, length))
    if pattern.phase != "both":
        assert prompt is not None
        full = t < prompt if pattern.phase == "decode" else t >= prompt
        seen |= past & full
    return np.repeat(seen, group, axis=0)
