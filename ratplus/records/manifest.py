"""`sweep.json`: the cells that a sweep folder was asked for; how it is read. `sweeps` writes it."""

from __future__ import annotations

import json
from pathlib import Path

from ratplus.records.record import RecordError

FORMAT = 1
_CELL_KEYS = ("id", "model", "pattern", "label", "seed", "stages", "axes", "swept", "config", "corpus", "run")
MANIFEST_FILE = "sweep.json"


def read_manifest(folder: Path) -> dict:
    """The manifest of a sweep folder.

    Raises:
        RecordError: not a sweep folder, or the file is damaged.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise RecordError(f"{path}: format {manifest['format']!r}; this version reads {FORMAT}")
        for cell in manifest["cells"]:
            for key in _CELL_KEYS:
                cell[key]
    except FileNotFoundError:
        raise RecordError(f"{folder}: not a sweep folder ({MANIFEST_FILE} is missing)") from None
    except RecordError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: damaged ({error})") from None
    return manifest
