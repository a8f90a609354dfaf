"""Settings that libraries take from the caller's environment and working folder, and that were not made for us.

A notebook, a job script of another project or a folder that somebody sent may hold them, and none may decide whether we
run, or what comes out. This holds for processes that are ours alone: whoever imports ratplus keeps their own settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_OF_FOLDER = "matplotlibrc"


def shut_out() -> None:
    """Draw figures into files, whatever matplotlib's variables and the files of the working folder say.

    Every notebook's kernel exports MPLBACKEND with a backend that stands in its own environment alone, and matplotlib
    refuses to be imported with it. Our style is set in full, so the user's matplotlibrc is not needed either. Training
    imports matplotlib too, by way of Lightning.
    """
    os.environ["MPLBACKEND"] = "agg"
    os.environ["MATPLOTLIBRC"] = os.devnull
    if "matplotlib" not in sys.modules and not any(isinstance(finder, _DeafImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeafImport())


@contextmanager
def without_variables(*prefixes: str) -> Generator[None]:
    """Hide environment variables that begin so from what runs within."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


class _DeafImport:
    """Imports matplotlib without the settings file of the working folder, which it would read before all others.

    No variable turns that off, and to change the folder meanwhile would mislead other threads.
    """

    def find_spec(self, name: str, _path=None, _target=None) -> ModuleSpec | None:
        if name != "matplotlib":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def deaf(module: ModuleType) -> None:
                exists = os.path.exists

                def elsewhere(path: int | str | bytes | os.PathLike) -> bool:
                    return path != _OF_FOLDER and exists(path)

                os.path.exists = elsewhere  # ty: ignore[invalid-assignment] (a function for a function)
                try:
                    execute(module)
                finally:
                    os.path.exists = exists

            spec.loader.exec_module = deaf
        return spec
