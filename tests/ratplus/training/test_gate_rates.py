"""Forget gates with learning rates of their own, beside an AdamW that has a parameter for each part."""

from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from torch import nn

from ratplus import ModelConfig, RATPlus
from ratplus.config.cell import Config
from ratplus.config.model import ModelSection
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.stages.stage_ids import plan
from ratplus.training.gate_rates import SCALE, GateRows, parameter_groups
from ratplus.training.run import train
from ratplus.training.spec import Run

CONFIG = ModelConfig(vocab_size=31, layers=2, d_model=16, d_head=8, kv_heads=1, gate_bias=-2.0)
RECIPE = RecipeSection(lr=1e-2, gate_lr=7e-2, gate_bias_lr=0.2)


def model_of(config: ModelConfig = CONFIG) -> RATPlus:
    model = RATPlus(config)
    model.reset_parameters(0, 0.2)
    return model


def stepped(model: RATPlus, recipe: RecipeSection, steps: int = 4) -> dict[str, torch.Tensor]:
    """Weights after steps of random gradients, at learning rates that change."""
    rows = GateRows(model, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.lr, weight_decay=0.1, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr / (1 + step) * group.get(SCALE, 1.0)
        give_gradients(dict(model.named_parameters()), step)
        with rows.stretched():
            optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def give_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(hash((step, len(name), parameter.numel())) % 1000)
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_each_part_is_trained_as_a_parameter_at_its_own_rate():
    ours = stepped(model_of(), RECIPE)
    model = model_of()
    rows = 8  # of the one head of keys
    parts: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj.weight"):
            parts[name], parts[f"{name}/gate"] = (nn.Parameter(t.detach().clone()) for t in
                                                  (parameter[:-rows], parameter[-rows:]))  # fmt: skip
        else:
            parts[name] = parameter
    rates = {n: (7e-2, 0.1) if n.endswith("/gate") else (0.2, 0.0) if n.endswith("gate_bias") else (1e-2, 0.1)
             for n in parts}  # fmt: skip
    optimizers = {n: torch.optim.AdamW([p], lr=rates[n][0], weight_decay=rates[n][1]) for n, p in parts.items()}
    for step in range(4):
        give_gradients(dict(model.named_parameters()), step)
        for name, parameter in parts.items():
            whole = dict(model.named_parameters())[name.removesuffix("/gate")].grad
            assert whole is not None
            gate = name.endswith("/gate")
            parameter.grad = whole[-rows:] if gate else whole[:-rows] if name.endswith("in_proj.weight") else whole
            optimizers[name].param_groups[0]["lr"] = rates[name][0] / (1 + step)
            optimizers[name].step()
    for name, weight in ours.items():
        wanted = parts[name]
        if name.endswith("in_proj.weight"):
            wanted = torch.cat([wanted, parts[f"{name}/gate"]])
        assert torch.allclose(weight, wanted, rtol=1e-4, atol=1e-6), name


@dataclass
class OneBatch:
    """The same rows in every step."""

    rows: np.ndarray
    context: int = 12
    seed: int = 0
    recall_fraction: float = 0.0

    def train(self, recipe, purpose, step):
        return [(self.rows, np.roll(self.rows, -1, axis=1))]


def test_a_step_of_training_has_the_rate_of_each_part(tmp_path):
    """AdamW's first step moves every weight that has a gradient by its learning rate."""
    recipe = RecipeSection(
        steps=1, batch=2, warmup=0.0, lr=1e-3, lr_min=0.0, weight_decay=0.0, gate_lr=5e-3, gate_bias_lr=2e-2
    )
    model = model_of()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(0))
    train(
        model, Run("pretrain", "0" * 12, recipe, OneBatch(tokens.numpy()), run=RunSection(accelerator="cpu")), tmp_path
    )
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs()
        if name.endswith("in_proj.weight"):
            assert moved[-8:].max() == pytest.approx(5e-3, rel=0.01)
            moved = moved[:-8]
        rate = 2e-2 if name.endswith("gate_bias") else 1e-3
        assert moved.max() == pytest.approx(rate, rel=0.01), name


def test_only_the_gates_differ_from_training_at_one_rate():
    plain, apart = stepped(model_of(), RecipeSection(lr=1e-2)), stepped(model_of(), RECIPE)
    for name, weight in plain.items():
        if name.endswith("in_proj.weight"):
            assert torch.equal(weight[:-8], apart[name][:-8])
            assert not torch.allclose(weight[-8:], apart[name][-8:])
        else:
            assert torch.equal(weight, apart[name]) != name.endswith("gate_bias"), name


def test_a_recipe_without_rates_of_gates_has_one_group():
    (group,) = parameter_groups(model_of(), RecipeSection())
    assert list(group) == ["params"]  # as before the keys existed, so that training states stay what they were
    assert GateRows(model_of(), RecipeSection()).factor == 1
    plain = model_of(ModelConfig(vocab_size=31, layers=1, d_model=16, d_head=8, recurrence=False))
    assert len(parameter_groups(plain, RECIPE)) == 1
    weights = stepped(plain, RECIPE)
    again = stepped(model_of(plain.config), RecipeSection(lr=1e-2))
    assert all(torch.equal(weights[name], again[name]) for name in again)


def ids(recurrence: bool, gate_bias: float | None, **rates) -> dict[str, str]:
    model = ModelSection("m", layers=1, d_model=16, d_head=8, recurrence=recurrence, gate_bias=gate_bias)
    config = Config(model=model, train=TrainSection(adapt=RecipeSection(order="random", **rates)))
    return {stage.name: stage.id for stage in plan(config, {}, 257)}


def test_rates_of_gates_enter_an_id_where_there_are_such_gates():
    both = {"gate_lr": 1e-2, "gate_bias_lr": 0.1}
    assert ids(False, None, **both) == ids(False, None)
    assert ids(True, None, gate_bias_lr=0.1) == ids(True, None)
    assert ids(True, None, gate_lr=1e-2)["adapt"] != ids(True, None)["adapt"]
    assert len({ids(True, -2.0, **rates)["adapt"] for rates in ({}, both, {"gate_lr": 1e-2})}) == 3
    assert ids(True, -2.0, **both)["pretrain"] == ids(True, -2.0)["pretrain"]
    assert "gate_lr" in asdict(RecipeSection())  # and the keys of ids above are those of the section


def test_rates_that_cannot_be():
    for key in ("gate_lr", "gate_bias_lr"):
        for value in (0.0, -1.0, float("inf")):
            with pytest.raises(ValueError, match=rf"train.adapt.{key}: got {value}; it must be > 0, or null"):
                TrainSection(adapt=RecipeSection(**{key: value}))
