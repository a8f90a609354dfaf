"""Suites that were added to finished cells: what they say stands in the cell's row, behind what it says itself."""

from ratplus.analysis.frame.load import evaluations_of, load_sweep, read_sweep
from ratplus.pattern import Pattern
from ratplus.records.record import stage_id, write_record


def test_the_cells_own_results_times_and_prompts_count_first(sweep):
    def add(cell: dict, status: str, loss: float, suite: str) -> str:
        config = {**cell["config"], "pattern": cell["pattern"], "suite": suite, "status": status}
        tasks = {} if suite == "b" else {"tasks": {"piqa": {"prompts_sha256": suite}}}
        identity = stage_id("evaluate", config, cell["stages"]["adapt"])
        cell.setdefault("added", []).append({"id": identity, "suite": suite, "eval": {}})
        write_record(
            sweep.path / "evaluate" / identity, stage="evaluate", config=config, parent=cell["stages"]["adapt"],
            status=status, timing={"seconds": 5.0, "added_ms": loss}, error={"type": "E", "message": "m"}
            if status == "failed" else None, provenance=tasks,
            metrics={name: {"value": loss, "stderr": None, "count": 1} for name in ("loss", "piqa/acc")},
        )  # fmt: skip
        return identity

    cell = sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0}, timing={"seconds": 2.0})
    first, second = add(cell, "done", 3.0, "a"), add(cell, "done", 4.0, "b")
    add(cell, "failed", 9.0, "a")
    unfinished = sweep.add("ratplus_tiny", Pattern(8), status="failed")
    add(unfinished, "done", 7.0, "a")
    read = read_sweep(sweep.write())
    row = read.frame.iloc[0]
    assert (row["loss"], row["piqa/acc"], row["timing:seconds"], row["timing:added_ms"]) == (1.0, 3.0, 2.0, 3.0)
    assert read.records[0]["provenance"]["tasks"] == {"piqa": {"prompts_sha256": "a"}}
    assert read.records[0]["timing"] == {"seconds": 2.0}
    assert read.frame.attrs["added"] == {"a": {"done": 1, "failed": 1}, "b": {"done": 1}}
    assert evaluations_of(read.frame, cell["id"]) == (cell["id"], first, second)
    other = load_sweep(sweep.path).iloc[1]
    assert other[["loss", "piqa/acc", "timing:added_ms"]].isna().all(), "of a cell without a result"
