"""A small report for commands whose report is not the point: a table, one figure with nothing in it, and the page.

All figures of a report take seconds, more than the tiny training before them. They are tested in tests/analysis and
by `ratplus report` in these folders.
"""

import base64
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from ratplus.records.atomic import write_atomically

# One transparent pixel.
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
# Commands that write a report at their end.
_OF_CELLS = ("sweep", "pretrain", "adapt", "evaluate")


def _save(figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    for path in paths:
        write_atomically(path, _PNG)
    return paths


def _figure(frame):
    from matplotlib.figure import Figure

    return Figure()


@contextmanager
def plain_report(words):
    """While this lasts, the command of these words writes a small report; `ratplus report` writes a whole one."""
    if not words or words[0] not in _OF_CELLS:
        yield
        return
    from ratplus.analysis import accuracy_vs_dilation, report
    from ratplus.analysis.draw import style

    with (
        mock.patch.object(report, "MODULES", [accuracy_vs_dilation]),
        mock.patch.object(accuracy_vs_dilation, "figure", _figure),
        mock.patch.object(style, "save", _save),
    ):
        yield
