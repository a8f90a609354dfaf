"""Runs an analysis module as a script or as a notebook: both read a folder and show what was made of it."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ratplus.analysis.draw.output import Picture, write
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.load import load_sweep


def run(
    contents: Callable[[Any], Sequence[Table | Picture]],
    read: Callable[[Path], Any] = load_sweep,
    what: str = "output folder of a sweep",
    variable: str = "RATPLUS_SWEEP",
    default: str = "outputs/demo",
) -> None:
    """Write what a module has to show of a path, then show the files.

    As a script, the path is the first argument, and the second one, if there is one, the folder to write into; the
    paths of the files are printed, and an error is one line and exit code 2. As a notebook, the path is an environment
    variable; the tables and figures are displayed below the cell.

    Args:
        contents: the module's function of that name.
        read: makes the argument of `contents` from the path; its ValueError is a mistake of the user's.
        what: what the path is, for `--help`.
        variable: the environment variable that a notebook reads the path from.
        default: a notebook's path where that variable is not set.
    """
    if in_notebook():
        display_files(_write(contents, read, Path(os.environ.get(variable, default)), None))
        return
    parser = argparse.ArgumentParser(description="Make this module's tables and figures.")
    parser.add_argument("path", type=Path, help=f"{what}, such as {default}")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (default: report/ in the path's folder)")
    arguments = parser.parse_args()
    try:
        written = _write(contents, read, arguments.path, arguments.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for path in written:
        print(path)


def _write(contents: Callable, read: Callable, path: Path, folder: Path | None) -> list[Path]:
    return write(contents(read(path)), folder or (path if path.is_dir() else path.parent) / "report")


def in_notebook() -> bool:
    """True inside a running IPython. It is not imported: it is there, or this is no notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def display_files(paths: list[Path]) -> None:
    """Show Markdown and PNG files as the output of a notebook's cell."""
    display = sys.modules["IPython"].display.display
    for path in paths:
        if path.suffix == ".md":
            display({"text/markdown": path.read_text(encoding="utf-8")}, raw=True)
        elif path.suffix == ".png":
            display({"image/png": base64.b64encode(path.read_bytes()).decode()}, raw=True)
