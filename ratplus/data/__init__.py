"""Data: token streams on disk, sampling as a pure function of (seed, step, rank), and the stacked-recall task.

The public names are resolved on first use: `Corpus` and `open_corpus` need numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["Corpus", "open_corpus"]

if TYPE_CHECKING:
    from ratplus.data.corpus import Corpus, open_corpus


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("ratplus.data.corpus"), name)
    raise AttributeError(f"module 'ratplus.data' has no attribute {name!r}")
