"""How many cache entries a head holds, and how many of them a decoding step reads: counts of keys, without data.

Every function takes lengths as an int or an int array and returns the same. An entry is one key with its value.
"""

from __future__ import annotations

from typing import Any


def entries_held(pattern: Any, length, prompt: int | None = None):
    """Entries in the cache before the step at position `length`; see `Pattern.kv_entries`."""
    import numpy as np

    n = np.asarray(length)
    if pattern.snap is not None:
        start = n if prompt is None else prompt
        held = np.where(n < start, n, np.minimum(start, pattern.snap) + n - start)  # cut where the prompt ends
    elif not pattern.data_dependent:
        held = _static(pattern.canonical, n)
    else:
        # Any block may be asked for later. Of blocks of kept keys, kept keys alone would do; our cache holds all.
        held = n
    return _like(held, length)


def entries_read(pattern: Any, length, prompt: int | None = None):
    """Entries that the step at position `length` reads besides its own; see `Pattern.kv_read`."""
    import numpy as np

    n = np.asarray(length)
    if pattern.top is None or not pattern.data_dependent:
        return entries_held(pattern, length, prompt)
    if pattern.phase == "prefill":
        return _like(n, length)
    block, step = pattern.block, pattern.dilation
    if pattern.over == "kept":
        own = n // (block * step)
        read = n // step - own * block + block * np.minimum(pattern.top - 1, own)
        return _like(np.minimum(_static(pattern, n), read + pattern.window + pattern.sinks), length)
    own = n // block
    chosen, past = np.minimum(pattern.top - 1, own), own * block
    # Of the static part, what stands before the query's own block; every block chosen holds at least block // dilation
    # of it, which count once.
    far = np.minimum(past, np.maximum(n - pattern.window, 0))
    static = past - far + np.minimum(far, pattern.sinks)
    if step is not None:
        static = static + far // step - np.minimum(far, pattern.sinks) // step - chosen * (block // step)
    return _like(n - past + np.minimum(past, block * chosen + static), length)


def read_is_exact(pattern: Any) -> bool:
    """Whether `entries_read` counts exactly; else overlaps of static and selected keys depend on data."""
    if pattern.top is None or not pattern.data_dependent or pattern.phase == "prefill":
        return True
    if pattern.window or pattern.sinks:
        return False
    return pattern.dilation is None or pattern.over == "kept" or pattern.block % pattern.dilation == 0


def _static(pattern: Any, n):
    """Keys before position n that the static part shows to the query at n, or to any later one."""
    import numpy as np

    near = pattern.sinks + pattern.window
    far = 0 if pattern.dilation is None else (n - pattern.window) // pattern.dilation
    far = far - (0 if pattern.dilation is None else pattern.sinks // pattern.dilation)
    return np.where(n <= near, n, near + far)


def _like(count, length):
    import numpy as np

    return int(count) if np.ndim(length) == 0 else count
