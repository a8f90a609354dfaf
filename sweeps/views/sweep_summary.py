"""What a sweep folder has, in a few lines of text: for the end of a log, where only its last characters come home."""

from __future__ import annotations

from pathlib import Path

from ratplus.records.curve import CURVE_FILE, curve_rows
from ratplus.records.lines import plain
from ratplus.records.manifest import read_manifest
from ratplus.records.reading import read_bytes
from ratplus.records.record import Record, RecordError, read_record, unfit_metric
from ratplus.sweeps.launch.progress import LOGS
from ratplus.sweeps.views.text_table import columns


def summary(folder: Path) -> list[str]:
    """Make tables of finished cells and of training runs, and quote the last lines of unfinished ones."""
    cells = read_manifest(folder)["cells"] if (folder / "sweep.json").exists() else []
    named = {cell["stages"][stage]: (stage, cell) for cell in cells for stage in ("adapt", "pretrain")}
    runs, results, words = [], [], []
    for stage_id, (stage, cell) in sorted(named.items(), key=lambda item: (item[1][0] != "pretrain", item[0])):
        label = cell["label"] if stage == "adapt" else ""
        rows = curve_rows(folder / stage / stage_id / CURVE_FILE)
        record = done(folder / stage / stage_id)
        row: dict[str, object] = {
            "stage": stage,
            "model": cell["model"],
            "pattern": label,
            "state": "done" if record else "unfinished",
        }
        if rows and {"tokens", "loss"} <= rows[-1].keys():
            row |= {"steps": rows[-1]["step"], "tokens": rows[-1]["tokens"], "loss": f"{rows[-1]['loss']:.3f}"}
        seconds = record and record["timing"].get("train_seconds")
        runs.append(row | {"seconds": f"{seconds:.1f}" if seconds else ""})
    for cell in cells:
        record = done(folder / "evaluate" / cell["stages"]["evaluate"])
        names = {"model": cell["model"], "pattern": cell["label"]}
        results.append(names | (_shown(record["metrics"]) if record else {"loss": "missing"}))
    for stage_id in (stage_id for cell in cells for stage_id in cell["stages"].values()):
        path = folder / LOGS / f"{stage_id}.log"
        if path.exists() and not any(done(folder / stage / stage_id) for stage in ("pretrain", "evaluate")):
            words.append(plain(f"{path.name}: {' | '.join(_last_lines(path))[-300:]}"))
    return [columns(rows) for rows in (results, runs) if rows] + list(dict.fromkeys(words))


def _last_lines(path: Path) -> list[str]:
    try:
        return read_bytes(path, follow=False).decode(errors="replace").splitlines()[-3:]
    except (OSError, ValueError) as error:
        return [str(error)]


def _shown(metrics: dict) -> dict[str, str]:
    """Format the loss (nats a token), recall, and the RULER score of each needle task (both in percent)."""
    row = {"loss": "not asked"}
    if "loss" in metrics:
        row["loss"] = f"{metrics['loss']['value']:.4f} ± {metrics['loss']['stderr'] or 0:.4f}"
    for name, found in metrics.items():
        title = "recall" if name == "recall_accuracy" else name.removesuffix("_substring")
        if title != name:
            row[f"{title} (%)"] = f"{100 * found['value']:.1f} ± {100 * (found['stderr'] or 0):.1f}"
    return row


def done(folder: Path) -> Record | None:
    """The record of a stage that is done; None if it is not."""
    try:
        record = read_record(folder)
    except RecordError:
        return None
    return record if record is not None and record["status"] == "done" and not unfit_metric(record) else None


def all_done(folder: Path) -> bool:
    """Whether a sweep folder has cells, and all of them are evaluated."""
    cells = read_manifest(folder)["cells"] if (folder / "sweep.json").exists() else []
    return bool(cells) and all(done(folder / "evaluate" / cell["stages"]["evaluate"]) for cell in cells)
