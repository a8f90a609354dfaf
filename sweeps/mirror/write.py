"""The one place that talks to the W&B library: starting a run, and writing a whole one from its RunSpec.

Nothing here asks questions, prints, or waits without end; W&B's own look at the machine, the checkout and the command
line is off, since records hold that already, without keys and tokens.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from datetime import datetime
from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.lines import first_line
from ratplus.records.reading import read_json
from ratplus.sweeps.mirror.runs import MODEL_FILES, RunSpec
from ratplus.training.foreign_settings import without_variables

# This file lies beside each whole offline run, and says which RunSpec the run holds.
MARKER_FILE = "ratplus.json"
# How long a stage waits at most for a server that does not answer; sending models may take much longer.
_START_SECONDS = 30.0
_FINISH_SECONDS = 60.0
_FINISH_SECONDS_WITH_MODELS = 1800.0
# Variables that say of one run what it is, and how it is written. A job script may hold those of another program's run.
_OF_ANOTHER_RUN = (
    "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_FORK_FROM", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RUN_GROUP",
    "WANDB_JOB_TYPE", "WANDB_SWEEP_ID", "WANDB_PROGRAM", "WANDB_CONSOLE", "WANDB_MODE", "WANDB_START_METHOD",
)  # fmt: skip
_FOLDERS_FILE = "settings_workspace"  # W&B's name of the path of the current folder's settings file
# Stands in for that path: an empty file.
_NO_SETTINGS = property(lambda _settings: os.devnull)


def library():
    """Import wandb, silent, and deaf to the settings file of the current folder.

    W&B reads `wandb/settings` below the current folder too, which may name the server that the key is sent to, a proxy
    or headers. The current folder may be a sweep that somebody sent, so only the environment and the user's own
    settings file count.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if wandb.Settings.__dict__.get(_FOLDERS_FILE) is not _NO_SETTINGS:
        setattr(wandb.Settings, _FOLDERS_FILE, _NO_SETTINGS)
    return wandb


def _keep_logs_off_the_terminal(folder: Path) -> None:
    """Give W&B a place for its own files where its usual ones cannot be written, as with a read-only home.

    Otherwise its helper process writes its debug log to the terminal.
    """
    for name, usual in (("WANDB_CACHE_DIR", "~/.cache/wandb"), ("WANDB_DATA_DIR", "~/.local/share/wandb")):
        place = Path(os.environ.get(name) or os.path.expanduser(usual))
        existing = next(part for part in (place, *place.parents) if part.exists())
        # To root, whom no mode stops, /proc looks writable and is not.
        if not (existing.is_dir() and os.access(existing, os.W_OK)) or existing == Path("/proc"):
            os.environ[name] = str((folder / "wandb").resolve())


def start_run(
    spec: RunSpec,
    mode: str,
    folder: Path,
    project: str,
    entity: str | None,
    resume: str | None = None,
    models: bool = False,
):
    """Start a W&B run.

    Args:
        mode: online or offline.
        folder: W&B's local files go below `<folder>/wandb`.
        resume: as `wandb.init` takes it.
        models: whether the run will send a model as an artifact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_logs_off_the_terminal(folder)
    wandb = library()
    patience = _FINISH_SECONDS_WITH_MODELS if models else _FINISH_SECONDS
    settings = wandb.Settings(
        silent=True, console="off", program="ratplus", init_timeout=_START_SECONDS, finish_timeout=patience,
        finish_timeout_raises=True, disable_git=True, disable_code=True, save_code=False, x_disable_stats=True,
        x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    # W&B's helper process writes the files, and takes a relative path from the folder in which it was started.
    with without_variables(*_OF_ANOTHER_RUN):
        run = wandb.init(
            project=project, entity=entity, mode=mode, dir=str(folder.resolve()), group=spec.group,
            job_type=spec.job_type, id=spec.id, name=spec.name, tags=spec.tags, config=spec.config, resume=resume,
            reinit="finish_previous", settings=settings,
        )  # fmt: skip
    run.define_metric("*", step_metric="step")
    if spec.job_type == "report":
        run.define_metric("by_dilation/*", step_metric="by_dilation/dilation")
    return run


def write_run(spec: RunSpec, mode: str, folder: Path, project: str, entity: str | None) -> None:
    """Write a whole run; one of the same id on the server is replaced, not continued.

    Raises:
        Exception: whatever W&B raises; TimeoutError if the server takes too long.
    """
    if mode == "offline":
        remove_offline(folder, spec.id)
    models = any(path.name in MODEL_FILES for path in spec.files)
    run = start_run(spec, mode, folder, project, entity, models=models)
    try:
        stamp = {} if spec.written_at is None else {"_timestamp": datetime.fromisoformat(spec.written_at).timestamp()}
        for row in spec.rows:
            run.log(row | stamp, step=row["step"])
        add_outcome(run, spec, folder)
    except BaseException:
        run.finish(exit_code=255)
        raise
    place = Path(run.settings.sync_dir)
    run.finish(exit_code=spec.exit_code or 0)
    if mode == "offline":
        if not any(place.glob("*.wandb")):
            raise OSError(f"{place}: W&B wrote no run file; run the same command again")
        write_atomically(place / MARKER_FILE, json.dumps({"id": spec.id, "checksum": spec.checksum()}) + "\n")


def add_outcome(run, spec: RunSpec, folder: Path) -> None:
    """Add summary, provenance, report files and the model to an open run; `folder` is that of `start_run`."""
    wandb = library()
    # W&B keeps the files of tables and artifacts here until they are sent, rather than in the home folder.
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())
    if "provenance" in spec.config:
        run.config.update({"provenance": spec.config["provenance"]}, allow_val_change=True)
    media = {}
    for path in spec.files:
        if path.suffix == ".csv":
            media[f"table/{path.stem}"] = _table(path)
        elif path.suffix == ".png":
            media[f"figure/{path.stem}"] = _picture(path)
    if media:
        last = spec.rows[-1]["step"] if spec.rows else 0
        run.log({"step": last, **media}, step=last)
    run.summary.update(spec.summary)
    model = [path for path in spec.files if path.name in MODEL_FILES]
    if model:
        artifact = wandb.Artifact(f"{spec.job_type}-{spec.id}", type="model", metadata={"stage": spec.job_type})
        for path in model:
            # W&B need not copy the file, since a finished stage never changes its model.
            artifact.add_file(str(path), policy="immutable")
        run.log_artifact(artifact)


def _picture(path: Path):
    try:
        return library().Image(str(path))
    except Exception as error:  # Pillow raises half a dozen types for what is no picture, or too large a one
        raise ValueError(f"{path}: not a picture ({first_line(error)}); write it again with `ratplus report`") from None


def _table(path: Path):
    """Read a report's CSV as a W&B Table, with numbers as numbers and empty fields as None."""
    try:
        with path.open(newline="") as file:
            columns, *lines = list(csv.reader(file))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a table ({error}); write it again with `ratplus report`") from None
    data = [[_value(text) for text in line] for line in lines]
    return library().Table(columns=columns, data=data, allow_mixed_types=True)


def _value(text: str):
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


# ---- offline runs that lie there ----------------------------------------------------------------------------------


def offline_checksums(folder: Path) -> dict[str, str]:
    """Find the whole offline runs below `<folder>/wandb`; returns {run id: checksum of its RunSpec}."""
    found = {}
    for path in sorted(folder.glob(f"wandb/offline-run-*/{MARKER_FILE}")):
        try:
            marker = read_json(path, follow=False)
            found[marker["id"]] = marker["checksum"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def remove_offline(folder: Path, run_id: str) -> None:
    """Remove earlier offline runs of an id: their replacement holds all that they do, and W&B would mix the two."""
    for path in folder.glob(f"wandb/offline-run-*-{run_id}"):
        shutil.rmtree(path, ignore_errors=True)
