"""Training: one optimisation run as a Lightning module, with active recurrence learning and exact resume.

Everything a step does is a function of (weights, optimizer state, step number): batches, learning rate and patterns
come from the step number alone, so a run that continues from a checkpoint ends in the same weights, bit for bit.
Several ranks (ratplus.training.team) share the rows of each step and end in the same weights up to rounding.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch

from ratplus.config.model import ModelConfig
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection
from ratplus.model import RATPlus
from ratplus.training.blocks import blocks_configured
from ratplus.training.divergence import DivergenceWatch
from ratplus.training.errors import Interrupted
from ratplus.training.foreign_settings import without_variables
from ratplus.training.ranks import micro_batches
from ratplus.training.spec import Layout, Outcome, Rows, Run, Shares, Watch
from ratplus.training.state import ONE_RANK, layouts_of, load_state, save_state, what_it_reads
from ratplus.training.step import SharedModule, TrainingModule

if TYPE_CHECKING:
    from ratplus.training.team import Team


class StepLoader:
    """Batches of the steps still to do, as Lightning's train loader.

    Args:
        first: the step to begin with.
        pinned: rows lie in page-locked memory, from which a copy to a GPU does not make the host wait for the GPU.
    """

    def __init__(self, batches: Rows, recipe: RecipeSection, purpose: str, first: int, pinned: bool = False):
        self.batches, self.recipe, self.purpose, self.first = batches, recipe, purpose, first
        self.pinned = pinned

    def __len__(self) -> int:
        return self.recipe.steps - self.first

    def __iter__(self):
        for step in range(self.first, self.recipe.steps):
            groups = self.batches.train(self.recipe, self.purpose, step)
            yield step, [(self._tensor(inputs), self._tensor(labels)) for inputs, labels in groups]

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        if not self.pinned:
            return torch.from_numpy(rows)
        # Rows that are a view of wider ones would first be copied to memory that is not page-locked.
        return torch.from_numpy(np.ascontiguousarray(rows)).pin_memory()


def train(model: RATPlus, run: Run, folder: Path, watch: Watch | None = None, team: Team | None = None) -> Outcome:
    """Train `model` to the end of the run's recipe, continuing from the newest training state in `folder`.

    Args:
        model: trained in place, except by a team, whose ranks may each hold a part of it: see `Outcome.model`.
        watch: None is nobody.
        team: the ranks that share each step's rows; None is this process alone. With a team this is rank 0's part, and
            it has the others call `train_along`.

    Raises:
        CheckpointError: the training state is damaged, of another stage, or of a run that reads other data.
        Diverged: losses or gradient norms were not finite for `run.nonfinite_steps` steps, or at the end.
        LayoutError: the team's ranks cannot share the micro-batches.
        Interrupted: after SIGTERM or SIGINT, with the state saved.
        PeerFailed: another rank of the team failed.
    """
    watch = watch or Watch()
    recipe = run.recipe
    parts = micro_batches(recipe, team.place.world if team is not None else 1, f"train.{run.purpose}")
    reads = what_it_reads(recipe, run.rows, run.purpose)
    state = load_state(folder, run.stage_id, reads)
    first = 0
    if state is not None and not all(math.isfinite(v) for k, v in state["report"].items() if k.endswith("loss")):
        # Earlier versions saved such states. Nothing comes of them any more.
        watch.print_line(
            f"{run.purpose} {run.stage_id}: its training state has a loss that is not finite; starting again"
        )
        state = None
    if state is not None:
        model.load_state_dict(state.pop("model"))
        first = state["step"]
    layout = ONE_RANK if team is None else Shares(strategy=run.trainer.strategy, ranks=team.place.world)
    layouts = layouts_of(state, {**layout, "micro_batches": parts, "compile": run.trainer.compile})
    if layouts[-1]["from_step"] == first > 0:
        watch.print_line(
            f"{run.purpose} {run.stage_id}: continues at step {first} with {_spoken(layouts[-1])}, before with "
            f"{_spoken(layouts[-2])}; each step reads the same data, but sums it in another order"
        )
    if watch.log is not None:
        watch.log.start(first)
    last: dict = {} if state is None else state["report"]
    divergence = DivergenceWatch(
        recipe, run.purpose, run.run.nonfinite_steps, run.run.log_every, run.precision, last.get("loss", math.nan)
    )

    def on_step(step: int, report: dict) -> None:
        last.update(report)
        done = step + 1
        if watch.log is not None and (done % run.run.log_every == 0 or done in (1, recipe.steps)):
            values = {k: float(v) for k, v in report.items()}
            watch.log.write(done, {"tokens": done * recipe.batch * run.rows.context, **values})
        if watch.progress is not None:
            watch.progress(done, recipe.steps, report)
        divergence.step(done, report)

    def save(done: int, whole: dict) -> None:
        if divergence.bad:  # the state before it is still good
            return
        watch.before_saving()
        report = {k: float(v) for k, v in last.items()}
        save_state(folder, run.stage_id, done, {**whole, "report": report, "reads": reads, "layouts": layouts})

    started = time.monotonic()
    if first < recipe.steps:
        saver = Saver(run.run.checkpoint_seconds, save, team)
        if team is None:
            module = TrainingModule(model, recipe, run.patterns, run.arl, on_step)
            module.restored = None if state is None else state.pop("optimizer")
            _fit(module, run, first, saver)
        else:
            with team.training({"stage": run.purpose, "id": run.stage_id, "first": first}):
                module = _shared_module(model, run, first, team, on_step)
                module.restored = None if state is None else state.pop("optimizer")
                _fit(module, run, first, saver, team)
            if module.trained is not None:
                with torch.device("meta"):
                    model = RATPlus(model.config)
                model.load_state_dict(module.trained, assign=True)
    report = {k: float(v) for k, v in last.items()}
    return Outcome(model, report, time.monotonic() - started, first, layouts)


def train_along(model_config: ModelConfig, run: Run, first: int, team: Team) -> None:
    """The part of a rank other than 0 in `train`: it gets weights and optimizer from rank 0, and writes nothing.

    Args:
        first: the step at which rank 0 begins.

    Raises:
        Interrupted: with rank 0, which saved the state.
    """
    # Under fsdp no rank ever holds all weights; under ddp DDP fills them in.
    with torch.device("meta") if team.trainer.strategy == "fsdp" else nullcontext():
        model = RATPlus(model_config)
    _fit(_shared_module(model, run, first, team), run, first, Saver(math.inf, lambda _done, _whole: None, team), team)


def _shared_module(model: RATPlus, run: Run, first: int, team: Team, on_step: Callable | None = None) -> SharedModule:
    bf16 = run.precision == "bf16"
    return SharedModule(model, run.recipe, run.patterns, run.arl, on_step, team, bf16=bf16, goes_on=first > 0)


def _fit(module: TrainingModule, run: Run, first: int, saver: Saver, team: Team | None = None) -> None:
    loader = StepLoader(run.rows, run.recipe, run.purpose, first, _on_gpu(run.run))
    if team is not None:
        team.meet()
    with quiet_lightning(), blocks_configured(module.model, run.trainer):
        make_trainer(run.run, run.precision, [saver], team).fit(module, loader)


def _on_gpu(run: RunSection) -> bool:
    return run.accelerator != "cpu" and torch.cuda.is_available()


def _spoken(layout: Layout) -> str:
    parts = f", {layout['micro_batches']} micro-batches" if "micro_batches" in layout else ""
    parts += ", compiled" if layout.get("compile") else ""
    return f"trainer={layout['strategy']} ({layout['ranks']} ranks{parts})"


def make_trainer(run: RunSection, precision: str, callbacks: list, team: Team | None = None) -> lightning.Trainer:
    """A Trainer that trains and nothing else: logs, progress and checkpoints are ours."""
    accelerator = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[run.accelerator]
    # Each argument that is not given is otherwise taken from PL_TRAINER_..., such as the number of batches.
    with quiet_lightning(), without_variables("PL_TRAINER_"):
        return lightning.Trainer(
            accelerator=accelerator, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[precision],
            **({"devices": 1} if team is None else team.lightning()),
        )  # fmt: skip


@contextmanager
def quiet_lightning():
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


class Saver(lightning.Callback):
    """Has the training state saved every `seconds`, and before giving way to SIGTERM or Ctrl-C.

    Of several ranks, rank 0's clock decides, and a signal to any of them stops all of them after the same step.

    Args:
        clock: seconds since any moment.
    """

    def __init__(
        self, seconds: float, save: Callable[[int, dict], None], team: Team | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.seconds, self.save, self.team, self.clock = seconds, save, team, clock
        self._signal = 0
        self._previous: dict = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self._saved = self.clock()
        if threading.current_thread() is threading.main_thread():
            # After Lightning has set its own handlers, which would end the process without saving.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number, _frame) -> None:
        self._signal = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        done = batch[0] + 1
        ended = done == pl_module.recipe.steps
        number, due = self._signal, not ended and self.clock() - self._saved >= self.seconds
        if self.team is not None:
            number, due = self.team.largest(number, due)
        if number or due:
            whole = pl_module.whole_state()
            if whole is not None:
                self.save(done, whole)
            self._saved = self.clock()
        if number:
            raise Interrupted(number)

    def teardown(self, trainer, pl_module, stage) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
