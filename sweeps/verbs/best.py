"""`ratplus best`: the best pattern within bounds, why it won, who ties, its YAML and the command that runs it."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ratplus.sweeps.define.mistakes import UsageError

HELP = "the best pattern within a budget: why it won, who ties with it, its YAML and command"
EXAMPLES = [
    "ratplus best outputs/demo --metric recall_accuracy --max kv_ratio=0.3",
    "ratplus best outputs/demo --metric loss --max kv_ratio=0.3 --tie cheapest",
    "ratplus best outputs/a outputs/b --metric recall_accuracy --min next_token_accuracy=0.4 --json",
]
# The page and `ratplus compare` have the rest.
_MOST_TIES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", help="sweep folders or packs; several are ranked together")
    parser.add_argument("--metric", required=True, metavar="NAME", help="the result that decides, such as loss")
    bound: dict[str, Any] = {"action": "append", "default": [], "metavar": "COLUMN=NUMBER"}
    parser.add_argument("--max", **bound, help="no more of this than so much: kv_ratio=0.1 (may be given again)")
    parser.add_argument("--min", **bound, help="no less of this")
    parser.add_argument("--tie", default="best", help="cheapest: of the best and its ties, that of least cost")
    parser.add_argument("--where", metavar="CONDITION", help="cells to choose from, as `ratplus ls` takes it")
    parser.add_argument("--json", action="store_true", help="print the choice as JSON")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.analysis.paired.best import TIES, choose
    from ratplus.records.manifest import given_as
    from ratplus.sweeps.define.reproduce import reproducer
    from ratplus.sweeps.share.unpack import as_folder

    if arguments.tie not in TIES:
        raise UsageError(f"--tie: got {arguments.tie!r}; allowed: {', '.join(TIES)}")
    most, least = (bounds(words, option) for words, option in ((arguments.max, "--max"), (arguments.min, "--min")))
    choice = choose(
        [as_folder(folder) for folder in arguments.folder],
        arguments.metric,
        most,
        least,
        arguments.tie,
        arguments.where,
    )
    entry = _entry(choice["winner"])
    write = reproducer(1)
    assert write is not None
    pattern, command = pattern_of(entry["config"]), write(entry)
    if arguments.json:
        for row in (choice["winner"], choice["best"], *choice["ties"]):
            row["folder"] = given_as(row["folder"])
        print(json.dumps(plain_json({"format": 1, **choice, "pattern": pattern, "command": command}), indent=1))
        return 0
    _show(choice, pattern, command)
    return 0


def bounds(words: list[str], option: str) -> dict[str, float]:
    """{column: bound} of words such as `kv_ratio=0.1`.

    Raises:
        UsageError: a word of another form, or a column that is given twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise UsageError(f"{option}: got {word!r}; write a column and a number, such as {option} kv_ratio=0.1")
        if name in found:
            raise UsageError(f"{option}: {name} is given twice")
        found[name] = value
    return found


def pattern_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a pattern's YAML file holds: the keys of a cell's `pattern` that are not as they are by default."""
    from ratplus.config.cell import PatternSection

    default = asdict(PatternSection())
    own = config["pattern"]
    return {
        key: value
        for key, value in own.items()
        if key in ("dilation", "window", "sinks") or key not in default or value != default[key]
    }


def _entry(row: dict[str, Any]) -> Any:
    from ratplus.records.manifest import read_manifest

    return next(entry for entry in read_manifest(Path(row["folder"]))["cells"] if entry["id"] == row["cells"][0])


def _show(choice: dict[str, Any], pattern: dict[str, Any], command: str) -> None:
    from ratplus.analysis.paired.best import shown_value
    from ratplus.records.lines import plain
    from ratplus.sweeps.views.text_table import columns

    winner, best, unit = choice["winner"], choice["best"], choice["unit"]
    sign = f" {unit}" if unit else ""
    print(f"{winner['run']} {winner['pattern']}: {choice['metric']} {shown_value(winner, unit)}{sign}")
    print(f"  why: {choice['why']}")
    if choice["left_out"]:
        print(f"  not among them: {', '.join(f'{count} {reason}' for reason, count in choice['left_out'].items())}")
    shown = [best, *choice["ties"][:_MOST_TIES]]
    if len(shown) > 1:
        print()
        rows = []
        for row in shown:
            rows.append(
                {
                    "": "→" if row is winner else "", "model": row["run"], "pattern": row["pattern"],
                    choice["metric"] + (f" ({unit})" if unit else ""): shown_value(row, unit),
                    "Δ to the best": "" if row is best else shown_value(row, unit, "difference", "pm"),
                    "p": "" if row is best else f"{row['p']:.2g}",
                    "tied over": row["tied"], **{name: f"{value:.4g}" for name, value in row["costs"].items()},
                }
            )  # fmt: skip
        print(plain(columns(rows)))
        more = len(choice["ties"]) + 1 - len(shown)
        print(f"{more} more ties: --json\n" if more else "")
    if choice["how"]:
        print(choice["how"] + "\n")
    print("# its pattern, as a file of your own: my/pattern/best.yaml, then --config-dir my pattern=best")
    for key, value in pattern.items():
        print(plain(f"{key}: {json.dumps(value)}"))
    print(f"\n{plain(command)}")


def plain_json(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, (list, tuple)) else value
