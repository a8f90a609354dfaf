"""`note.txt` beside a record: what a person wants to remember of a stage. It is part of no hash and of no result."""

from __future__ import annotations

from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.lines import plain
from ratplus.records.reading import read_bytes
from ratplus.records.secrets import scrub

NOTE_FILE = "note.txt"
MOST_CHARACTERS = 2_000


def read_note(folder: Path) -> str:
    """The note of a stage folder, at most MOST_CHARACTERS of it in one line; empty where there is none.

    What is no text, a link or larger than any note of ours is none: a folder may be a stranger's.
    """
    try:
        data = read_bytes(Path(folder) / NOTE_FILE, follow=False, most=8 * MOST_CHARACTERS)
    except (OSError, ValueError):
        return ""
    return plain(" ".join(data.decode(errors="replace").split()))[:MOST_CHARACTERS]


def write_note(folder: Path, text: str) -> str:
    """Write the note of a stage folder, or remove it if the text is empty; returns what is written.

    Keys and tokens are masked; line breaks become spaces.

    Raises:
        ValueError: more than MOST_CHARACTERS.
    """
    clean = plain(scrub(" ".join(text.split())))
    if len(clean) > MOST_CHARACTERS:
        raise ValueError(f"a note has at most {MOST_CHARACTERS:,} characters; this one has {len(clean):,}")
    path = Path(folder) / NOTE_FILE
    if clean:
        write_atomically(path, clean + "\n")
    else:
        path.unlink(missing_ok=True)
    return clean
