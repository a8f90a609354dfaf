"""Runs an analysis module as a script or as a notebook: both take a sweep folder and show what was made of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[Path], list[Path]]) -> None:
    """Call `main(folder)`, then show the files that it wrote.

    As a script, the folder is the one argument; the paths are printed, and an error is one line and exit code 2. As a
    notebook, the folder is the environment variable RATPLUS_SWEEP, or `outputs/demo`; the table and the figure are
    displayed below the cell.
    """
    if in_notebook():
        display_files(main(Path(os.environ.get("RATPLUS_SWEEP", "outputs/demo"))))
        return
    parser = argparse.ArgumentParser(description="Make this module's table and figure from a sweep folder.")
    parser.add_argument("folder", type=Path, help="output folder of a sweep, such as outputs/demo")
    folder = parser.parse_args().folder
    try:
        written = main(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for path in written:
        print(path)


def in_notebook() -> bool:
    """True inside a running IPython, without importing it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def display_files(paths: list[Path]) -> None:
    """Show Markdown and PNG files as the output of a notebook's cell."""
    from IPython.display import Image, Markdown, display

    for path in paths:
        if path.suffix == ".md":
            display(Markdown(path.read_text(encoding="utf-8")))
        elif path.suffix == ".png":
            display(Image(path))
