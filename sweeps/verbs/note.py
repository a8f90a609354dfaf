"""`ratplus note`: a line of one's own beside a stage's record."""

from __future__ import annotations

import argparse

HELP = "write a line of your own beside a cell's record; status, show, ls and the page show it"
EXAMPLES = [
    "ratplus note 7392564b 'recall drops at seed 3: look at the gates'",
    "ratplus note 7392564b --folder outputs/demo",
    "ratplus note 7392564b ''",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="a cell's or stage's id, or how it begins")
    parser.add_argument("text", nargs="?", help="the note, in place of the one before; '' removes it; none prints it")
    parser.add_argument("--folder", help="sweep folder (default: all sweeps under outputs/)")
    parser.add_argument("--json", action="store_true", help="print what stands there now as JSON")


def run(arguments: argparse.Namespace) -> int:
    import json

    from ratplus.records.find_stage import find_stage
    from ratplus.records.note import read_note, write_note
    from ratplus.sweeps.define.mistakes import UsageError
    from ratplus.sweeps.share.unpack import is_pack

    if arguments.folder and is_pack(arguments.folder):
        raise UsageError(f"note: {arguments.folder} is a pack, which is not written to; write the note in its folder")
    sweep, stage, identity = find_stage(arguments.id, arguments.folder, "note", "give another folder with --folder")
    folder = sweep / stage / identity
    if arguments.text is None:
        note = read_note(folder)
    else:
        try:
            note = write_note(folder, arguments.text)
        except ValueError as error:
            raise UsageError(f"note: {error}") from None
    if arguments.json:
        print(json.dumps({"format": 1, "folder": str(sweep), "stage": stage, "id": identity, "note": note}, indent=1))
    else:
        print(f"{stage} {identity}: {note or '(no note)'}")
    return 0
