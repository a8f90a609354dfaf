"""Python's garbage collector, while the records of a large sweep are in memory.

The collector looks for objects that refer to each other in a circle, and for that walks through all objects of lists
and dicts again and again. Of ten thousand cells there are millions, none of them in a circle, and to walk through them
took a sixth of the time of a report. What is in no circle goes at once, with or without the collector.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

# Objects made before the youngest are looked through, and how often that is done before older ones are.
_SELDOM = (100_000, 20, 50)


@contextmanager
def seldom_collected() -> Generator[None]:
    """Let the collector run seldom; afterwards it runs as often as before."""
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
