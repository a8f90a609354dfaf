"""Whether a run has diverged: steps in a row whose losses or gradient norms are not finite, counted where they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ratplus.config.train import RecipeSection
from ratplus.training.errors import Diverged


class DivergenceWatch:
    """Counts bad steps on the device, so that a GPU is waited for only every `every` steps.

    A weight that is NaN stays so, and every later step with it: what is found a few steps late costs these steps alone.

    Args:
        recipe: for the message, which names its learning rate.
        purpose: stage whose keys the message names.
        most: bad steps in a row that stop the run.
        every: steps between two looks at the device; on a CPU every step is looked at.
        precision: "float32" or "bf16", for the advice.
        last: loss of the step before, of a run that continues; NaN without one.
    """

    def __init__(
        self, recipe: RecipeSection, purpose: str, most: int, every: int, precision: str, last: float = math.nan
    ):
        self.recipe, self.purpose, self.most, self.every, self.precision = recipe, purpose, most, every, precision
        self._row: Tensor | None = None  # bad steps in a row up to now
        self._last = torch.tensor(last)  # the last finite loss
        self._rate = 0.0

    def step(self, done: int, report: dict) -> None:
        """Take note of a step.

        Args:
            done: steps done, this one included.
            report: of the step; its losses and gradient norms are looked at, with whatever prefix.

        Raises:
            Diverged: `most` steps in a row were bad, or the last step of the run was.
        """
        values = [v.detach() for k, v in report.items() if k.endswith(("loss", "grad_norm"))]
        loss, self._rate = report["loss"].detach(), report["lr"]
        # A norm that has its own device (a strategy's) is brought to that of the loss.
        bad = ~torch.isfinite(torch.stack([value.to(loss.device, torch.float32) for value in values])).all()
        if self._row is None:
            self._row = torch.zeros((), dtype=torch.int64, device=loss.device)
            self._last = self._last.to(loss.device)
        self._row = torch.where(bad, self._row + 1, 0)
        self._last = torch.where(torch.isfinite(loss), loss.float(), self._last)
        ended = done == self.recipe.steps
        if loss.device.type != "cpu" and done % self.every and not ended:
            return
        if int(self._row) >= self.most or (ended and self.bad):
            raise Diverged(self._words(done))

    @property
    def bad(self) -> bool:
        """Whether the last step was bad, so that the weights are not worth keeping."""
        return self._row is not None and int(self._row) > 0

    def _words(self, done: int) -> str:
        assert self._row is not None
        first, last = done - int(self._row) + 1, float(self._last)
        before = "no step had a finite loss" if math.isnan(last) else f"last finite loss {last:.4g}"
        key = f"train.{self.purpose}"
        tries = [f"a lower {key}.lr than {self.recipe.lr:g}", f"a longer {key}.warmup than {self.recipe.warmup:g}"]
        tries += ["train.precision=float32"] if self.precision == "bf16" else []
        return (
            f"training diverged: loss or gradient norm is not finite since step {first} (seen at step {done} of "
            f"{self.recipe.steps}, learning rate {self._rate:g}, {before}); try {', or '.join(tries)}"
        )
