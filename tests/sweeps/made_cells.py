"""Cells of a sweep that was never composed, for tests of what is run and shown."""

from pathlib import Path

from ratplus.records.record import stage_id, write_record


def entry(model: str, dilation: int) -> dict:
    pretrain = stage_id("pretrain", {"model": model}, None)
    adapt = stage_id("adapt", {"dilation": dilation}, pretrain)
    evaluate = stage_id("evaluate", {"dilation": dilation}, adapt)
    return {
        "model": model, "label": f"D{dilation}", "seed": 0,
        "stages": {"pretrain": pretrain, "adapt": adapt, "evaluate": evaluate},
        "config": {"train": {"pretrain": {}}, "dilation": dilation},
    }  # fmt: skip


def settle(folder: Path, cell: dict, status: str, stage: str = "evaluate") -> None:
    parents = {"pretrain": None, "adapt": cell["stages"]["pretrain"], "evaluate": cell["stages"]["adapt"]}
    config = {"model": cell["model"]} if stage == "pretrain" else {"dilation": cell["config"]["dilation"]}
    write_record(
        folder / stage / cell["stages"][stage], stage=stage, config=config, parent=parents[stage], status=status,
        metrics={}, timing={}, provenance={}, error=None if status == "done" else {"type": "Bad", "message": "luck"},
    )  # fmt: skip
