"""Measures the recurrence of a sweep's finished cells, for `ratplus report FOLDER --gates`."""

from __future__ import annotations

from pathlib import Path

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.compose import typed
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError


def measure_sweep_gates(folder: Path) -> list[Path]:
    """Write `gates.json` beside each finished evaluation of a model with recurrence; returns the new files.

    What is there already is kept, so that a second call costs nothing.

    Raises:
        UsageError: not a sweep folder, or the data or the model of a cell is gone.
    """
    from ratplus.evaluation.gates import GATES_FILE, measure_gates, write_gates
    from ratplus.records.status import stage_state
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings, training_device

    written = []
    for entry in read_manifest(folder)["cells"]:
        own = Path(folder) / "evaluate" / entry["stages"]["evaluate"]
        recurrence = entry["config"]["model"].get("recurrence", True)
        if not recurrence or (own / GATES_FILE).exists() or stage_state(own).status != "done":
            continue
        cell = Cell(typed(cell_config(entry)), Surroundings(Path(folder)))
        trained = cell.plan.trained
        if trained.id != entry["stages"].get(trained.name):
            raise UsageError(
                f"--gates: the corpus or the code has changed since cell {entry['id']} was run, so its model cannot be "
                "measured on the same text; run the sweep again"
            )
        model = cell._load(trained).to(training_device(cell.config.run.accelerator))
        tokens, _ = cell._batches().held_out_text(cell.config.eval.text_rows)
        gates = measure_gates(model, cell.config.patterns, tokens, cell.config.eval.batch)
        written.append(write_gates(own, gates))
    return written
