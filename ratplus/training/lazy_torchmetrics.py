"""torchmetrics, of which Lightning needs two classes, without all that its package imports beside them.

`import lightning` imports torchmetrics, and its `__init__` imports every metric there is, with scipy.signal and
transformers where they are installed. That is a third of the CPU time that a command needs until it trains (3 of 9
seconds on a slow machine). `put_off` registers the package under its own name without running its `__init__`. What
Lightning asks for comes from the submodules that define it; whoever asks for anything else has the whole package, as
if it had been imported as usual.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

PACKAGE = "torchmetrics"
# What Lightning, and the submodules that these need, take from the package: name -> submodule that defines it.
_DEFINED_IN = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}
# The submodule that must come first, since the others and it import each other.
_FIRST = "utilities"


def put_off(package: str = PACKAGE) -> None:
    """Have the package's `__init__` run only when something is asked of it that Lightning does not need.

    Nothing happens where it is not installed, or has been imported already.

    Args:
        package: its name; tests have one of their own.
    """
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.loader is not None:
        sys.modules[package] = _PutOff(package, spec)


class _PutOff(ModuleType):
    """A package that has not been run. Once it has, this is a module as any other."""

    def __init__(self, package: str, spec: ModuleSpec):
        super().__init__(package, None)
        self.__spec__, self.__loader__ = spec, spec.loader
        self.__file__, self.__cached__, self.__package__ = spec.origin, spec.cached, package
        self.__path__ = spec.submodule_search_locations or []
        self.__dict__["_put_off"] = threading.RLock(), []

    def __getattr__(self, name: str):
        """Called for what the module's dictionary has not."""
        package, (lock, running) = self.__dict__["__package__"], self.__dict__["_put_off"]
        if name == "_logger":  # its submodules write with this one, which `__init__` gives a handler
            return logging.getLogger(package)
        if name in _DEFINED_IN:
            # Not under the lock: a submodule that another thread is importing may ask for these.
            try:
                import_module(f"{package}.{_FIRST}")
                return getattr(import_module(f"{package}.{_DEFINED_IN[name]}"), name)
            except (ImportError, AttributeError):
                pass  # another version, which has it elsewhere: its `__init__` knows where
        with lock:  # other threads wait for the whole package, as they would for an import
            if running:  # this thread asks from within the package's `__init__`, which is not there yet
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            if self.__class__ is _PutOff:  # else another thread has run it meanwhile
                running.append(name)
                try:
                    cast("Loader", self.__loader__).exec_module(self)
                    cast(Any, self).__class__ = ModuleType  # from here on, what is missing is missing
                finally:
                    running.clear()
        return getattr(self, name)
