"""`ratplus report`: the tables, figures and page of a sweep folder; of several, how they differ, and gates for CI."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.mistakes import UsageError

if TYPE_CHECKING:
    from ratplus.analysis.gates import Verdict

HELP = "write the tables, figures and page of a sweep folder; of several, how they differ"
EXAMPLES = [
    "ratplus report outputs/demo",
    "ratplus report outputs/demo --reference paper --gates",
    "ratplus report outputs/demo outputs/mine outputs/yours",
    "ratplus report outputs/before outputs/after --fail 'recall_accuracy<-2pt@p0.05' --fail 'decode_ms>5%'",
]
_GATE_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", help="sweep folder or pack, such as outputs/demo; several to compare")
    parser.add_argument("--baseline", metavar="PATTERN", help="what Δ is taken to, instead of the dense pattern")
    parser.add_argument(
        "--fail", action="append", default=[], metavar="GATE",
        help="exit 1 where a result changed by more: 'recall_accuracy<-2pt@p0.05', 'decode_ms>5%%'",
    )  # fmt: skip
    parser.add_argument("--reference", metavar="NAME", help="paper: the paper's values beside ours")
    parser.add_argument("--gates", action="store_true", help="measure the recurrence of every finished cell first")
    parser.add_argument("--json", action="store_true", help="print the files, and what the gates say, as JSON")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.share.unpack import as_folder, brought_out

    given = Path(arguments.folder[0])
    folders = [as_folder(folder) for folder in arguments.folder]
    if len(folders) > 1:
        if arguments.reference or arguments.gates or arguments.baseline:
            raise UsageError("--reference, --gates and --baseline: of one sweep folder, not of a comparison")
        return _several(folders, arguments.fail, given, arguments.json)
    if arguments.fail:
        raise UsageError("--fail: compares a sweep with another; give two folders or more")
    if arguments.gates:
        measure_sweep_gates(folders[0])
    from ratplus.analysis.frame.load import read_sweep
    from ratplus.analysis.report import report
    from ratplus.sweeps.define.reproduce import reproducer

    sweep = read_sweep(folders[0])
    reproduce = reproducer(len(sweep.entries))
    options = {"reference": arguments.reference, "baseline": arguments.baseline}
    _tell(brought_out(report(folders[0], sweep=sweep, reproduce=reproduce, **options), given), [], arguments.json)
    return 0


def _tell(paths: Iterable[Path], gates: list[tuple[Path, Verdict]], as_json: bool, several: bool = False) -> None:
    """Print the files that were written, and what the gates say of each folder.

    Args:
        several: more than one folder was compared with the first, so that lines name theirs.
    """
    import json

    from ratplus.records.lines import plain
    from ratplus.records.manifest import given_as

    if as_json:
        verdicts = [{"folder": given_as(other), **vars(verdict)} for other, verdict in gates]
        print(json.dumps({"format": 1, "files": [str(path) for path in paths], "gates": verdicts}, indent=1))
        return
    for path in paths:
        print(path)
    for other, verdict in gates:
        print(plain(verdict.line + (f" [{given_as(other)}]" if several else "")))


def _several(folders: list[Path], gates: list[str], given: Path, as_json: bool) -> int:
    """Each folder against the first, one table of three or more, and the gates; the exit code."""
    from ratplus.analysis.compare import Two, compare
    from ratplus.analysis.draw.output import write
    from ratplus.analysis.frame.load import read_sweep
    from ratplus.analysis.gates import check, parse_gate
    from ratplus.analysis.paired.ranking import ranking
    from ratplus.sweeps.share.unpack import brought_out

    first, *others = folders
    parsed = [parse_gate(text) for text in gates]
    # Whatever is refused is refused before anything is written.
    table = [ranking(folders)] if others[1:] else []
    own = read_sweep(first)
    pairs = {other: Two(own, read_sweep(other)) for other in others}
    found = [(other, verdict) for other, two in pairs.items() for verdict in check(first, other, parsed, two)]
    paths = [path for other, two in pairs.items() for path in compare(first, other, two=two)]
    paths += write(table, first / "report")
    _tell(brought_out(paths, given), found, as_json, several=len(others) > 1)
    return _GATE_FAILED if any(verdict.failed for _, verdict in found) else 0


def measure_sweep_gates(folder: Path) -> list[Path]:
    """Write `gates.json` beside each finished evaluation of a model with recurrence; returns the new files.

    A file that is there already is kept, so that a second call costs nothing.

    Raises:
        RecordError: the folder is no sweep folder.
        CorpusError: the corpus of a cell is not made here: the folder may be somebody else's.
        UsageError: the data or the model of a cell has changed or is gone.
    """
    from ratplus.data.sources import made_corpus
    from ratplus.evaluation.gates import GATES_FILE, measure_gates, write_gates
    from ratplus.records.status import stage_state
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings, training_device
    from ratplus.sweeps.define.manifest import cell_config
    from ratplus.sweeps.define.typed import typed

    written = []
    for entry in read_manifest(folder)["cells"]:
        own = Path(folder) / "evaluate" / entry["stages"]["evaluate"]
        recurrence = entry["config"]["model"].get("recurrence", True)
        if not recurrence or (own / GATES_FILE).exists() or stage_state(own).status != "done":
            continue
        config = typed(cell_config(entry))
        cell = Cell(config, Surroundings(Path(folder)), made_corpus(config.data, entry["corpus"]))
        trained = cell.plan.trained
        if trained.id != entry["stages"].get(trained.name):
            raise UsageError(
                f"--gates: the corpus or the code has changed since cell {entry['id']} was run, so its model cannot be "
                "measured on the same text; run the sweep again"
            )
        model = cell.load(trained).to(training_device(cell.config.run.accelerator))
        tokens, _ = cell.batches().held_out_text(cell.config.eval.text_rows)
        gates = measure_gates(model, cell.config.patterns, tokens, cell.config.eval.batch)
        written.append(write_gates(own, gates))
    return written
