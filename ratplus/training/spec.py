"""What `train` is given and what it returns: one optimisation run, who watches it, and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict

import numpy as np

from ratplus.config.run import RunSection, TrainerSection
from ratplus.config.train import RecipeSection
from ratplus.pattern import Pattern, PatternMap
from ratplus.training.mixed import MixedPatterns

if TYPE_CHECKING:
    from ratplus.model import RATPlus
    from ratplus.records.curve import StageLog


class Rows(Protocol):
    """What a run reads: `data.batches.Batches`, or `data.sft.SftBatches` for fine-tuning."""

    @property
    def context(self) -> int:
        """Tokens of a row."""
        ...

    @property
    def seed(self) -> int: ...

    @property
    def recall_fraction(self) -> float: ...

    def train(self, recipe: RecipeSection, purpose: str, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(inputs, labels) of a step, int64 [rows, length] each; a pure function of its arguments."""
        ...


@dataclass(frozen=True)
class Run:
    """One optimisation run: what decides its result, and then how its process works.

    Attributes:
        purpose: "pretrain", "adapt" or "sft"; the random draws of different purposes never coincide.
        stage_id: id of the stage that it belongs to; its training states carry it.
        recipe: steps, batch, optimizer and schedule.
        rows: what each step reads.
        patterns: what the heads see, perhaps another map in each step; None is dense.
        arl: pattern of active recurrence learning; None is without.
        precision: "float32" or "bf16".
        run: device, threads, how often to save and to log.
        trainer: devices, strategy, and how blocks are run (`ratplus.training.blocks`).
    """

    purpose: str
    stage_id: str
    recipe: RecipeSection
    rows: Rows
    patterns: PatternMap | Pattern | MixedPatterns | None = None
    arl: Pattern | None = None
    precision: str = "float32"
    run: RunSection = field(default_factory=RunSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)


@dataclass(frozen=True)
class Watch:
    """Who follows a run while it works; by default nobody.

    Attributes:
        log: gets a row of the curve now and then.
        progress: called after each step with (steps done, steps in all, {"loss", "lr", ...}).
        before_saving: called before each training state is written; it may raise, to keep this process from writing
            into a folder that is not its own any more.
        print_line: called with one-line messages for the user.
    """

    log: StageLog | None = None
    progress: Callable[[int, int, dict], None] | None = None
    before_saving: Callable[[], None] = lambda: None
    print_line: Callable[[str], None] = lambda _line: None


class Shares(TypedDict):
    """How steps are shared out among ranks; it changes the order of float sums and nothing else."""

    strategy: str
    ranks: int
    micro_batches: NotRequired[int]
    compile: NotRequired[bool]


class Layout(Shares):
    """How steps were shared out from the step `from_step` on."""

    from_step: int


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        model: trained, in whole tensors.
        report: of the last step: loss, gradient norm, learning rate, labels.
        seconds: wall time of this call.
        first_step: where this call began; more than 0 if it continued.
        layouts: how all steps were shared out, oldest first.
    """

    model: RATPlus
    report: dict[str, float]
    seconds: float
    first_step: int
    layouts: list[Layout]
