"""What a failed stage's record says: what went wrong, where, for the how-manieth time, and what to try; torch-free."""

from __future__ import annotations

import socket
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.records.record import Failure, RecordError, read_record
from ratplus.training.errors import words_of
from ratplus.training.ranks import even_sizes


def failure_of(error: Exception, stage: str, config: Config, folder: Path) -> Failure:
    """The record's `error`, and the same words in the exception; of another rank's failure, its own type and lines.

    Args:
        stage: its name.
        folder: of the stage.
    """
    told = getattr(error, "failure", None) or words_of(error)
    advice = memory_advice(told["type"], told["message"], stage, config)
    if advice:
        told = told | {"message": f"{told['message']}; {advice}"}
        error.args = (told["message"],)
    lines = [line for text in told["traceback"] for line in text.splitlines()]
    return describe_failure(told["type"], told["message"], lines, folder)


def memory_advice(type_name: str, message: str, stage: str, config: Config) -> str | None:
    """What to try after a failure for want of memory, as `key=value`; None for any other failure."""
    killed = "SIGKILL" in (type_name, message)
    if not (killed or type_name in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in message):
        return None
    # None of these enters a stage's id: what is tried continues the stage that failed, from its last training state.
    smaller = []
    if stage == "evaluate":
        rows = config.eval.batch
        smaller += [f"eval.batch={rows // 2}"] if rows > 1 else []
    else:
        recipe = getattr(config.train, stage)
        ranks = config.trainer.devices * config.trainer.nodes
        now = min(recipe.micro_batch or recipe.batch, recipe.batch // ranks)
        fitting = even_sizes(recipe.batch, ranks, now - 1)
        smaller += [f"train.{stage}.micro_batch={fitting[-1]}"] if fitting else []
        smaller += [] if config.trainer.activation_checkpointing else ["trainer.activation_checkpointing=true"]
    if smaller:
        return f"to use less memory, try {' or '.join(smaller)}"
    sharded = "" if stage == "evaluate" or config.trainer.strategy == "fsdp" else ", or trainer=fsdp on several GPUs"
    return f"it works on one row at a time already: try a shorter train.context, a smaller model{sharded}"


def describe_failure(
    type_name: str, message: str, traceback: list[str], folder: Path, host: str | None = None
) -> Failure:
    """The `error` of a failed stage's record, to be written into `folder`; torch-free, for the pool's use too.

    Args:
        type_name: class of the exception, or name of the signal that killed the process.
        message: what went wrong, and if known what to do about it.
        traceback: its lines; the last 50 are kept.
        folder: of the stage. `attempt` counts on from the failed record that lies there, 1 for the first.
        host: the machine that it happened on; None for this one.
    """
    try:
        before = read_record(folder)
    except RecordError:
        before = None
    tries = (before["error"] or {}).get("attempt", 1) if before is not None and before["status"] == "failed" else 0
    return {
        "type": type_name,
        "message": message,
        "traceback": traceback[-50:],
        "host": host or socket.gethostname(),
        "attempt": tries + 1,
    }
