"""JSON files that an evaluation leaves beside its record: gates, what a pattern selected."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ratplus.records.reading import read_json


def read_beside(frame: pd.DataFrame, name: str, form: int, check: Callable[[dict], None]) -> dict[str, dict]:
    """{cell id: its file `name`} of the finished cells that have one.

    One that is damaged or of another format than `form` is left out, with a line in the log.

    Args:
        check: raises ValueError, KeyError, IndexError, TypeError or AttributeError for a file that is not as it was
            written.
    """
    found = {}
    for cell in frame.loc[frame["status"].eq("done"), "cell"]:
        path = Path(frame.attrs["folder"]) / "evaluate" / cell / name
        try:
            plain = read_json(path, follow=False)
            if plain["format"] != form:
                raise ValueError(f"format {plain['format']!r}")
            check(plain)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            logging.getLogger(__name__).warning("%s is left out (%s); measure it again", path, error)
            continue
        found[cell] = plain
    return found
