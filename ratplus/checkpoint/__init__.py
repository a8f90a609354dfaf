"""Model folders of our own (safetensors + config.json), and models in the formats of others.

The public names are resolved on first use: `facts` decides ids without loading weights, so it must import no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["CheckpointError", "load", "load_official", "save"]

_HOMES = {"CheckpointError": "facts", "load": "folder", "load_official": "official", "save": "folder"}

if TYPE_CHECKING:
    from ratplus.checkpoint.facts import CheckpointError
    from ratplus.checkpoint.folder import load, save
    from ratplus.checkpoint.official import load_official


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"ratplus.checkpoint.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ratplus.checkpoint' has no attribute {name!r}")
