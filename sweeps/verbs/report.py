"""`ratplus report`: the tables, figures and page of a sweep folder; of two folders, how they differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.mistakes import UsageError

HELP = "write the tables, figures and page of a sweep folder; of two, how they differ"
EXAMPLES = [
    "ratplus report outputs/demo",
    "ratplus report outputs/demo --reference paper --gates",
    "ratplus report outputs/demo outputs/mine",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", help="sweep folder or pack, such as outputs/demo; two to compare them")
    parser.add_argument("--reference", metavar="NAME", help="paper: the paper's values beside ours")
    parser.add_argument("--gates", action="store_true", help="measure the recurrence of every finished cell first")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.share.unpack import as_folder, brought_out

    given = Path(arguments.folder[0])
    folders = [as_folder(folder) for folder in arguments.folder]
    manifests = [read_manifest(folder) for folder in folders]
    if len(folders) > 2:
        raise UsageError(f"report: got {len(folders)} folders; give one sweep folder, or two to compare")
    if len(folders) == 2:
        if arguments.reference or arguments.gates:
            raise UsageError("--reference and --gates: of one sweep folder, not of a comparison")
        from ratplus.analysis.compare import compare

        paths = compare(*folders)
    else:
        if arguments.gates:
            measure_sweep_gates(folders[0])
        from ratplus.analysis.report import report
        from ratplus.sweeps.define.reproduce import reproducer

        reproduce = reproducer(len(manifests[0]["cells"]))
        paths = report(folders[0], reference=arguments.reference, reproduce=reproduce)
    for path in brought_out(paths, given):
        print(path)
    return 0


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
    from ratplus.sweeps.define.compose import typed
    from ratplus.sweeps.define.manifest import cell_config

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
