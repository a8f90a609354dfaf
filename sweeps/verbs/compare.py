"""`ratplus compare`: patterns or cells of one sweep against each other, paired item by item, every result."""

from __future__ import annotations

import argparse
import json

HELP = "patterns of one sweep against each other, item by item, with errors: every result"
EXAMPLES = [
    "ratplus compare outputs/demo D16 D64",
    "ratplus compare outputs/demo D1 D16 stream-W64-I4 --where 'model==\"ratplus_tiny\"'",
    "ratplus compare outputs/demo 43d447ad a0246f04 --json",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="sweep folder or pack")
    parser.add_argument("pattern", nargs="+", help="two patterns or more: labels, names of config groups, ids of cells")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="these results alone")
    parser.add_argument("--where", metavar="CONDITION", help="cells to look at, as `ratplus ls` takes it")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.analysis.paired.cells import compare_cells
    from ratplus.sweeps.share.unpack import as_folder
    from ratplus.sweeps.verbs.best import plain_json

    compared = compare_cells(as_folder(arguments.folder), arguments.pattern, arguments.where)
    rows = _of_metrics(compared.rows, arguments.metric)
    if arguments.json:
        print(json.dumps(plain_json({"format": 1, "differences": rows, "notes": compared.notes}), indent=1))
        return 0
    _show(rows, compared.notes)
    return 0


def _of_metrics(rows: list[dict], names: list[str]) -> list[dict]:
    import difflib

    from ratplus.sweeps.define.mistakes import UsageError

    known = list(dict.fromkeys(row["metric"] for row in rows))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, cutoff=0.4) or known[:12]
            raise UsageError(f"--metric: no result {name!r} is there to compare; there are {', '.join(close)}")
    return [row for row in rows if not names or row["metric"] in names]


def _show(rows: list[dict], notes: list[str]) -> None:
    from ratplus.analysis.draw.tables import number
    from ratplus.analysis.paired.bootstrap import ERRORS
    from ratplus.records.lines import plain
    from ratplus.sweeps.views.text_table import columns

    several = any(row["seeds"] > 1 for row in rows)
    for first, second in dict.fromkeys((row["first"], row["second"]) for row in rows):
        lines = []
        for row in rows:
            if (row["first"], row["second"]) != (first, second):
                continue
            scale, digits = (100, 1) if row["unit"] else (1, 3)
            change = number(row["difference"] * scale, digits, row["stderr"] * scale)
            low, high = (number(row[key] * scale, digits) for key in ("low", "high"))
            line = {
                "model": row["run"],
                "result": row["metric"] + (f" ({row['unit']})" if row["unit"] else ""),
                first: number(row["a"] * scale, digits),
                second: number(row["b"] * scale, digits),
                "Δ": change,
                "95 %": f"{low} to {high}",
                "p": number(row["p"], 4) if row["p"] >= 1e-4 or row["p"] != row["p"] else "<0.0001",
                "items": row["items"] or "—",
            }
            if several:
                line |= {"± seeds": number(row["seeds_stderr"] * scale, digits), "seeds": row["seeds"]}
            verdict = ("higher" if row["difference"] > 0 else "lower") if row["certain"] else "="
            lines.append(line | {"": verdict})
        print(f"{plain(second)} minus {plain(first)}\n{plain(columns(lines))}\n")
    print("Δ ±, 95 % and p: over the evaluation's items (paired bootstrap; p after Holm's adjustment within a result).")
    if any(row["method"] == ERRORS for row in rows):
        print("items —: no samples of the same items, so from the two standard errors, as if unpaired.")
    if several:
        print("± seeds: standard error of Δ over training seeds; from three on they must tell it too.")
    print("=: cannot be told apart (p ≥ 0.05).")
    for note in notes:
        print(plain(note))
