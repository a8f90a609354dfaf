"""What a pack holds: `pack.json` with the hash of every other file, and which files those may be."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ratplus.records.curve import CURVE_FILE
from ratplus.records.manifest import MANIFEST_FILE
from ratplus.records.note import NOTE_FILE
from ratplus.records.record import RECORD_FILE, STAGES
from ratplus.records.samples import SAMPLES_FILE

FORMAT = 1
PACK_FILE = "pack.json"
ENDING = ".pack.zip"
# Beside a record; weights, training states and locks are none of them.
STAGE_FILES = (RECORD_FILE, CURVE_FILE, SAMPLES_FILE, NOTE_FILE, "gates.json", "selection.json")
REPORT_FILES = (".html", ".md", ".csv", ".tex", ".png", ".pdf")
MOST_FILES = 400_000
MOST_BYTES = 2 << 30  # of all files together, unpacked
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+ -]{0,199}")


def is_member(name: str) -> bool:
    """Whether a pack may hold a file of this name: so no other folder is ever written to."""
    parts = name.split("/")
    if name in (MANIFEST_FILE, PACK_FILE):
        return True
    if len(parts) == 3 and parts[0] in STAGES:
        return re.fullmatch(r"[0-9a-f]{12}", parts[1]) is not None and parts[2] in STAGE_FILES
    if len(parts) == 2 and parts[0] in ("report", "bench"):
        ending = PurePosixPath(name).suffix
        allowed = REPORT_FILES if parts[0] == "report" else (".json",)
        return _PLAIN_NAME.fullmatch(parts[1]) is not None and ending in allowed
    return False
