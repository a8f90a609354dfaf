"""ratplus: train one dense model, sweep every sparse inference pattern, get the table and the plot.

The public names are resolved on first use, so that `import ratplus`, tables and dry runs need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["ModelConfig", "Pattern", "PatternMap", "RATPlus", "load"]

_HOMES = {
    "Pattern": "pattern", "PatternMap": "pattern", "ModelConfig": "config.model", "RATPlus": "model",
    "load": "stages.load",
}  # fmt: skip

if TYPE_CHECKING:
    from ratplus.config.model import ModelConfig
    from ratplus.model import RATPlus
    from ratplus.pattern import Pattern, PatternMap
    from ratplus.stages.load import load


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"ratplus.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ratplus' has no attribute {name!r}")


def __dir__():
    return sorted(set(globals()) | set(__all__))
