"""Training: one optimisation run as a Lightning module, with active recurrence learning and exact resume.

Everything a step does is a function of (weights, optimizer state, step number): batches, learning rate and patterns
come from the step number alone, so a run that continues from a checkpoint ends in the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.checkpoint import CheckpointError
from ratplus.config import RecipeSection, RunSection
from ratplus.data.batches import Batches
from ratplus.data.sampling import IGNORE
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap
from ratplus.record import write_atomically
from ratplus.stage_log import StageLog

_STATE_FORMAT = 1
_STATE_NAME = re.compile(r"training-(\d{8})-([0-9a-f]{16})\.pt")


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the training state was saved first."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}; run the same command again to continue")
        self.number = number


def learning_rate(step: int, recipe: RecipeSection) -> float:
    """Linear warm-up, then cosine to lr_min; 0-based step (golden data, section 6)."""
    warm = int(recipe.warmup * recipe.steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    half_turn = math.pi * (step - warm) / (recipe.steps - warm)
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * (1 + math.cos(half_turn)) / 2


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy (nats) over labels that are not IGNORE, computed in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")


class TrainingModule(lightning.LightningModule):
    """One optimisation run of a RATPlus model.

    Args:
        model: trained in place.
        recipe: optimizer, schedule and batch.
        patterns: what the heads see; None is dense.
        arl: active recurrence learning (paper, joint training): before the pass with `patterns`, a pass and an
            optimizer step on the same batch with this sparse pattern; one learning-rate step for the pair.
        on_step: called after each step with (step, {"loss", "grad_norm", "lr", ...}).
    """

    def __init__(
        self,
        model: RATPlus,
        recipe: RecipeSection,
        patterns: PatternMap | Pattern | None = None,
        arl: Pattern | None = None,
        on_step: Callable[[int, dict], None] | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.recipe = recipe
        self.passes = [("arl_", arl), ("", patterns)] if arl is not None else [("", patterns)]
        self.on_step = on_step
        self.restored: dict | None = None

    def configure_optimizers(self):
        r = self.recipe
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=r.lr, betas=(r.beta1, r.beta2), eps=1e-8, weight_decay=r.weight_decay,
            fused=True,
        )  # fmt: skip
        if self.restored is not None:
            optimizer.load_state_dict(self.restored)
        return optimizer

    def training_step(self, batch, _batch_index) -> None:
        """One step: `batch` is (step number, groups); a group is (inputs, labels), int64 [rows, length]."""
        step, groups = batch
        optimizer = self.optimizers()
        rate = learning_rate(step, self.recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Each label weighs the same however the batch is cut; the reference averages micro-batch means instead.
        labels_in_all = sum((labels != IGNORE).sum() for _, labels in groups)
        report = {"lr": rate, "labels": labels_in_all}
        count = self.recipe.batch // (self.recipe.micro_batch or self.recipe.batch)
        for prefix, patterns in self.passes:
            loss = 0.0
            for part in _deal(groups, count):
                part_loss = sum(token_loss(self.model(x, patterns), y) for x, y in part) / labels_in_all
                self.manual_backward(part_loss)
                loss += part_loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            report |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm}
        if self.on_step is not None:
            self.on_step(step, report)


def _deal(groups: list[tuple[Tensor, Tensor]], count: int):
    """Deal the rows of all groups in turn to `count` micro-batches, so that each has its share of every group."""
    for part in range(count):
        dealt, before = [], 0
        for inputs, labels in groups:
            first = (part - before) % count
            before += len(inputs)
            if first < len(inputs):
                dealt.append((inputs[first::count], labels[first::count]))
        if dealt:
            yield dealt


class StepLoader:
    """Batches of the steps still to do, as Lightning's train loader."""

    def __init__(self, batches: Batches, recipe: RecipeSection, purpose: str, first: int):
        self.batches, self.recipe, self.purpose, self.first = batches, recipe, purpose, first

    def __len__(self) -> int:
        return self.recipe.steps - self.first

    def __iter__(self):
        for step in range(self.first, self.recipe.steps):
            groups = self.batches.train(self.recipe, self.purpose, step)
            yield step, [(torch.from_numpy(inputs), torch.from_numpy(labels)) for inputs, labels in groups]


def train(
    model: RATPlus,
    recipe: RecipeSection,
    batches: Batches,
    folder: Path,
    *,
    purpose: str,
    stage_id: str,
    run: RunSection,
    precision: str = "float32",
    patterns: PatternMap | Pattern | None = None,
    arl: Pattern | None = None,
    log: StageLog | None = None,
    progress: Callable[[int, int, dict], None] | None = None,
    before_saving: Callable[[], None] = lambda: None,
) -> dict:
    """Train `model` to the end of `recipe`, continuing from the newest training state in `folder`.

    `purpose` is "pretrain" or "adapt": their draws never coincide. `before_saving` may raise to keep this process from
    writing into a folder that is not its own any more.

    Returns the last step's report as floats, and the wall seconds of this call.

    Raises:
        CheckpointError: the training state is damaged or of another stage.
        Interrupted: after SIGTERM or SIGINT, with the state saved.
    """
    state = load_state(folder, stage_id)
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        first = state["step"]
    if log is not None:
        log.start(first)
    last: dict = {} if state is None else state["report"]
    saver = _Saver(folder, stage_id, run.checkpoint_seconds, before_saving)

    def on_step(step: int, report: dict) -> None:
        last.update(report)
        done = step + 1
        if log is not None and (done % run.log_every == 0 or done in (1, recipe.steps)):
            values = {k: float(v) for k, v in report.items()}
            log.write(done, {"tokens": done * recipe.batch * batches.context, **values})
        if progress is not None:
            progress(done, recipe.steps, report)

    module = TrainingModule(model, recipe, patterns, arl, on_step)
    module.restored = None if state is None else state["optimizer"]
    started = time.monotonic()
    if first < recipe.steps:
        trainer = make_trainer(run, precision, [saver])
        saver.last = last
        with _quiet_lightning():
            trainer.fit(module, StepLoader(batches, recipe, purpose, first))
    report = {k: float(v) for k, v in last.items()}
    return {"report": report, "seconds": time.monotonic() - started, "first_step": first}


def make_trainer(run: RunSection, precision: str, callbacks: list) -> lightning.Trainer:
    """A Trainer that trains and nothing else: logs, progress and checkpoints are ours."""
    accelerator = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[run.accelerator]
    with _quiet_lightning():
        return lightning.Trainer(
            accelerator=accelerator, devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[precision],
        )  # fmt: skip


@contextmanager
def _quiet_lightning():
    """Lightning's hints about workers, loggers and devices do not apply to us."""
    import logging

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        logger = logging.getLogger("lightning.pytorch")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


class _Saver(lightning.Callback):
    """Saves the training state every `seconds`, and before giving way to SIGTERM or Ctrl-C."""

    def __init__(self, folder: Path, stage_id: str, seconds: float, before_saving: Callable[[], None]):
        self.folder, self.stage_id, self.seconds = folder, stage_id, seconds
        self.before_saving = before_saving
        self.last: dict = {}
        self._signal: int | None = None
        self._previous: dict = {}

    def on_train_start(self, trainer, module) -> None:
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            # After Lightning has set its own handlers, which would end the process without saving.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number, _frame) -> None:
        self._signal = number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        done = batch[0] + 1
        ended = done == module.recipe.steps
        if self._signal is not None or (not ended and time.monotonic() - self._saved >= self.seconds):
            self.before_saving()
            save_state(self.folder, self.stage_id, done, module, self.last)
            self._saved = time.monotonic()
        if self._signal is not None:
            raise Interrupted(self._signal)

    def teardown(self, trainer, module, stage) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


# ---- training state on disk ---------------------------------------------------------------------------------------


def save_state(folder: Path, stage_id: str, step: int, module: TrainingModule, report: dict) -> Path:
    """Write `training-<step>-<hash>.pt`; the name carries the content's hash, so damage is seen on loading."""
    buffer = BytesIO()
    state = {
        "format": _STATE_FORMAT,
        "stage_id": stage_id,
        "step": step,
        "model": module.model.state_dict(),
        "optimizer": module.optimizers().optimizer.state_dict(),
        "report": {k: float(v) for k, v in report.items()},
        "recipe": asdict(module.recipe),
    }
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"training-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    write_atomically(path, data)
    for old in _states(folder):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, stage_id: str) -> dict | None:
    """The newest training state of a stage, or None.

    Raises:
        CheckpointError: truncated, altered, or of another stage.
    """
    paths = _states(folder)
    if not paths:
        return None
    path = paths[-1]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != _STATE_NAME.fullmatch(path.name)[2]:
        raise CheckpointError(f"{path}: training state is truncated or altered; delete it to train this stage again")
    state = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    if state["stage_id"] != stage_id:
        raise CheckpointError(f"{path}: training state of stage {state['stage_id']}, not {stage_id}; move it away")
    return state


def _states(folder: Path) -> list[Path]:
    """Training states by step, oldest first."""
    return sorted(p for p in folder.glob("training-*.pt") if _STATE_NAME.fullmatch(p.name))
