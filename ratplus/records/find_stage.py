"""A stage of a sweep, found by how its id begins."""

from __future__ import annotations

from pathlib import Path

from ratplus.records.manifest import MANIFEST_FILE, evaluations, read_manifest
from ratplus.records.record import STAGES


class NoSuchStage(ValueError):
    """No stage has such an id, or several have; the message is one line for whoever gave it."""


def find_stage(
    wanted: str, folder: str | None, verb: str = "show", elsewhere: str = "give another folder as second word"
) -> tuple[Path, str, str]:
    """Find the one stage whose id begins with `wanted`; it may have no record yet. Returns (sweep folder, stage, id).

    Messages name `verb`, and say with `elsewhere` how to name another sweep folder.

    Raises:
        RecordError: `folder` is no sweep folder.
        NoSuchStage: no stage has such an id, or several have.
    """
    if not wanted or set(wanted) - set("0123456789abcdef"):
        raise NoSuchStage(
            f"{verb}: got {wanted!r}; give an id, or how it begins: `ratplus status FOLDER --json` lists them"
        )
    sweeps = [Path(folder)] if folder else sorted(p.parent for p in Path("outputs").glob(f"*/{MANIFEST_FILE}"))
    found = {
        (sweep, stage, cell["stages"][stage])
        for sweep in sweeps
        for cell in evaluations(read_manifest(sweep)["cells"])
        for stage in STAGES
        if cell["stages"].get(stage, "").startswith(wanted)
    }
    if not found:
        places = folder or f"outputs/ ({elsewhere})"
        raise NoSuchStage(f"{verb}: no stage of {places} has an id that begins with {wanted}")
    if len(found) > 1:
        places = ", ".join(f"{sweep}/{stage}/{stage_id}" for sweep, stage, stage_id in sorted(found)[:6])
        raise NoSuchStage(f"{verb}: {wanted} is ambiguous: {places}; give more digits or the sweep folder")
    return found.pop()
