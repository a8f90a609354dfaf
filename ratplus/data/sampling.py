"""Which tokens a training step reads: pure functions of (seed, step), so that resuming needs no replay.

They give the rows of the global batch; `Batches` deals them to processes.
"""

from __future__ import annotations

import numpy as np

from ratplus.data.stream import Stream

IGNORE = -100


def labels_of(inputs: np.ndarray, following: np.ndarray, eos_id: int) -> np.ndarray:
    """Next-token labels; IGNORE where the input is end-of-text (the next document's first token is not predictable)."""
    return np.where(inputs == eos_id, IGNORE, following)


def ordered_rows(stream: Stream, step: int, batch: int, context: int) -> np.ndarray:
    """Windows [batch, context + 1] of a step that reads the stream front to back, wrapping around at its end.

    Row j of step s starts at token ((s * batch + j) mod windows) * context.
    """
    windows = (len(stream) - 1) // context
    _check(windows, stream, context)
    rows = (step * batch + np.arange(batch)) % windows
    return _windows(stream, rows * context, context)


def random_rows(stream: Stream, seed: int, step: int, batch: int, context: int, purpose: int = 0) -> np.ndarray:
    """Windows [batch, context + 1] at uniformly random offsets, drawn from Philox keyed by (seed, step, purpose)."""
    _check((len(stream) - 1) // context, stream, context)
    draw = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, purpose]))
    starts = draw.integers(0, len(stream) - context, size=batch)
    return _windows(stream, starts, context)


def _windows(stream: Stream, starts: np.ndarray, context: int) -> np.ndarray:
    return np.stack([stream[s : s + context + 1] for s in starts]).astype(np.int64)


def _check(windows: int, stream: Stream, context: int) -> None:
    if windows < 1:
        raise ValueError(
            f"train.context={context}: the stream holds only {len(stream)} tokens; it needs at least {context + 1}"
        )
