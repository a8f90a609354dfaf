"""One training step as a Lightning module: its passes, its share of the rows, its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.config.train import RecipeSection
from ratplus.data.batches import deal
from ratplus.data.sampling import IGNORE
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap
from ratplus.training.gate_rates import SCALE, GateRows, parameter_groups
from ratplus.training.mixed import MixedPatterns
from ratplus.training.ranks import micro_batches

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    from ratplus.training.team import Team


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
        patterns: what the heads see, perhaps another map in each step; None is dense.
        arl: active recurrence learning (paper, joint training): before the pass with `patterns`, a pass and an
            optimizer step on the same batch with this sparse pattern; one learning-rate step for the pair.
        on_step: called after each step with (step, {"loss", "grad_norm", "lr", ...}), of all ranks' rows.
        team: the ranks that share each step's rows; None is this process alone.
    """

    def __init__(
        self,
        model: RATPlus,
        recipe: RecipeSection,
        patterns: PatternMap | Pattern | MixedPatterns | None = None,
        arl: Pattern | None = None,
        on_step: Callable[[int, dict], None] | None = None,
        team: Team | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.recipe = recipe
        last: tuple[str, PatternMap | Pattern | MixedPatterns | None] = ("", patterns)
        self.passes = [("arl_", arl), last] if arl is not None else [last]
        self.on_step = on_step
        self.team = team
        self.rank, self.ranks = (team.place.rank, team.place.world) if team is not None else (0, 1)
        self.sharded = team is not None and team.trainer.strategy == "fsdp"
        self.restored: dict | None = None

    def configure_optimizers(self):
        r = self.recipe
        self.gate_rows = GateRows(self.model, r)  # now that the parameters are where they stay
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, r), lr=r.lr, betas=(r.beta1, r.beta2), eps=1e-8, weight_decay=r.weight_decay,
            fused=True,
        )  # fmt: skip
        if self.restored is not None:
            optimizer.load_state_dict(self.restored)
            self.restored = None  # as large as two models
        return optimizer

    def training_step(self, batch, _batch_index) -> None:
        """One step: `batch` is (step number, groups); a group is (inputs, labels), int64 [rows, length].

        Every rank gets the whole batch, and works on its own share of the micro-batches.
        """
        step, groups = batch
        optimizer = self._optimizer
        rate = learning_rate(step, self.recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)
        # Each label weighs the same however the batch is cut; the reference averages micro-batch means instead.
        labels_in_all = sum((labels != IGNORE).sum() for _, labels in groups)
        report: dict[str, Any] = {"lr": rate, "labels": labels_in_all}
        # Ranks that gather each other's shards must all run the same forward passes.
        alike = self.ranks if self.sharded else 1
        parts = deal(groups, micro_batches(self.recipe, self.ranks), alike)[self.rank :: self.ranks]
        for prefix, given in self.passes:
            patterns = given.at(step) if isinstance(given, MixedPatterns) else given
            loss = 0.0
            for part in parts:
                part_loss = sum(token_loss(self.model(x, patterns), y) for x, y in part) / labels_in_all
                with self._gradients_summed(now=part is parts[-1]):
                    # Strategies average the ranks' gradients; these are parts of one sum.
                    self.manual_backward(part_loss if self.ranks == 1 else part_loss * self.ranks)
                loss += part_loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            with self.gate_rows.stretched():
                optimizer.step()
            optimizer.zero_grad()
            report |= {f"{prefix}loss": loss, f"{prefix}grad_norm": _whole(norm)}
        if self.team is not None:
            names = [f"{prefix}loss" for prefix, _ in self.passes]
            report |= zip(names, self.team.sums([report[name] for name in names]))
        if self.on_step is not None:
            self.on_step(step, report)

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast("LightningOptimizer", self.optimizers())  # a list only where there are several

    def _gradients_summed(self, now: bool):
        """Under DDP, ranks exchange gradients with the last micro-batch only."""
        strategy: Any = self.trainer.strategy  # DDP's and FSDP's can wait with the exchange
        return nullcontext() if now or self.team is None else strategy.block_backward_sync()

    def whole_state(self) -> dict | None:
        """Weights and optimizer as state_dicts of whole tensors on rank 0, None elsewhere; all ranks must call it."""
        if self.rank > 0:
            return None
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.optimizer.state_dict()}


class SharedModule(TrainingModule):
    """A rank's part of a run that starts from what rank 0 holds; under fsdp each rank keeps a share of the tensors.

    Args:
        goes_on: the optimizer starts from rank 0's `restored` state rather than afresh.
    """

    def __init__(self, *args, bf16: bool, goes_on: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.bf16, self.goes_on = bf16, goes_on
        self.trained: dict | None = None
        if not self.sharded:
            # DDP warns on every run if it is told to look for unused parameters (see Team.lightning) and finds none.
            self.unused = torch.nn.Parameter(torch.zeros(()))

    def configure_model(self) -> None:
        if self.sharded:
            from ratplus.training.sharding import shard

            assert self.device_mesh is not None  # ModelParallelStrategy has made it
            shard(self.model, self.device_mesh["data_parallel"], self.trainer.strategy.root_device, self.bf16)

    def configure_optimizers(self):
        from ratplus.training.sharding import spread_optimizer

        state, self.restored = self.restored, None
        optimizer = super().configure_optimizers()
        if self.goes_on:
            spread_optimizer(optimizer, state)
        return optimizer

    def on_train_end(self) -> None:
        if self.sharded:
            from ratplus.training.sharding import gather_model

            self.trained = gather_model(self.model)

    def whole_state(self) -> dict | None:
        if not self.sharded:
            return super().whole_state()
        from ratplus.training.sharding import gather_model, gather_optimizer

        model, optimizer = gather_model(self.model), gather_optimizer(self._optimizer.optimizer)
        return None if model is None else {"model": model, "optimizer": optimizer}


def _whole(norm: Tensor) -> Tensor:
    whole = getattr(norm, "full_tensor", None)
    return norm if whole is None else whole()
