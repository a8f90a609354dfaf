"""Parity with the paper's public reference code, as arrays recorded from it (tests/golden/manifest.json says how).

The absolute limits are those that the recording suggests for float32.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ratplus import Pattern, PatternMap
from ratplus.checkpoint import load_official
from ratplus.config.model import ModelConfig
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection
from ratplus.data.sampling import labels_of, ordered_rows
from ratplus.model.network import Mixer
from ratplus.model.rope import rope_tables, rotate
from ratplus.training.run import make_trainer, quiet_lightning
from ratplus.training.step import TrainingModule, learning_rate

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "manifest.json").read_text())["files"]


def pattern(dilation, window, sinks) -> Pattern:
    return Pattern(None if dilation == -1 else int(dilation), int(window), int(sinks))


def pattern_map(dilation, window, sinks, layers=3, heads=4) -> PatternMap:
    dilations = dilation if isinstance(dilation, list) else [dilation] * layers
    return PatternMap.per_layer([pattern(d, window, sinks) for d in dilations], heads)


@pytest.fixture(scope="module")
def model(golden):
    """`model(True)`: the golden 3-layer model with recurrence; `model(False)`: without."""

    def load(recurrence: bool):
        arrays = golden(f"weights_re{int(recurrence)}")
        return load_official({k: torch.from_numpy(v) for k, v in arrays.items()}, d_head=16, max_len=256)

    return load


@pytest.mark.parametrize("length", [1, 7, 64, 100, 257])
def test_visibility_is_the_reference_mask(golden, length):
    masks = golden("masks")
    seen = 0
    for kind in ("", "_short"):
        if f"T{length}{kind}_cfg" not in masks:
            continue
        for settings, bits in zip(masks[f"T{length}{kind}_cfg"], masks[f"T{length}{kind}_bits"]):
            expected = np.unpackbits(bits)[: length * length].reshape(length, length).astype(bool)
            np.testing.assert_array_equal(pattern(*settings).visible(length), expected, err_msg=str(settings))
            seen += 1
    assert seen > 10


def test_decode_masks_and_cache_entries(golden):
    arrays = golden("decode_masks")
    for n, (length, dilation, window, sinks, prompt) in enumerate(arrays["cfg"].tolist()):
        p = pattern(dilation, window, sinks)
        size = (length - prompt) * length
        expected = np.unpackbits(arrays[f"bits_{n}"])[:size].reshape(length - prompt, length).astype(bool)
        np.testing.assert_array_equal(p.visible(length - prompt, length), expected)
        np.testing.assert_array_equal(p.kv_entries(np.arange(prompt, length)), arrays[f"stored_{n}"])


def test_rope(golden):
    arrays = golden("rope")
    for case in ("c0", "c1"):
        facts = MANIFEST["rope.npz"][f"{case}_x"]
        x = torch.from_numpy(arrays[f"{case}_x"])
        positions = torch.arange(facts["start"], facts["start"] + x.shape[2])
        cos, sin = rope_tables(positions, facts["dim"], 10000.0)
        for ours, name in ((cos, "cos"), (sin, "sin"), (rotate(x, cos, sin), "y")):
            np.testing.assert_allclose(ours.numpy(), arrays[f"{case}_{name}"], atol=5e-5, rtol=0)


def layer_cases():
    return [name for name in MANIFEST["layer.npz"] if name.startswith("y_")]


@pytest.mark.parametrize("name", layer_cases())
def test_mixing_layer_and_its_gradients(golden, name):
    arrays = golden("layer")
    recurrence, length, *settings = map(int, re.fullmatch(r"y_re(\d)_T(\d+)_D(-?\d+)_W(\d+)_I(\d+)", name).groups())
    mixer = Mixer(ModelConfig(vocab_size=2, layers=1, d_model=64, d_head=16, recurrence=bool(recurrence)))
    names = {
        "in_proj.weight": "in_proj.weight",
        "out_proj.weight": "out_proj.weight",
        "norm.weight": "input_norm.weight",
    }
    mixer.load_state_dict({ours: torch.from_numpy(arrays[f"w_re{recurrence}.{k}"]) for ours, k in names.items()})
    x = torch.from_numpy(arrays[f"x_T{length}"]).requires_grad_()
    y = mixer(x, (pattern(*settings),) * 4, rope_tables(torch.arange(length), 16, 10000.0))
    np.testing.assert_allclose(y.detach().numpy(), arrays[name], atol=2e-5, rtol=0)
    if f"G_{name[2:]}.x" in arrays:
        (y * torch.from_numpy(arrays[f"R_T{length}"])).sum().backward()
        gradients = {"x": x.grad} | {theirs: mixer.get_parameter(ours).grad for ours, theirs in names.items()}
        for theirs, ours in gradients.items():
            expected = arrays[f"G_{name[2:]}.{theirs}"]
            np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5 * max(1, np.abs(expected).max()), rtol=0)


def model_cases():
    return [name for name in MANIFEST["model.npz"] if name.startswith("logits_")]


@pytest.mark.parametrize("name", model_cases())
def test_logits(golden, model, name):
    facts, arrays = MANIFEST["model.npz"][name], golden("model")
    tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
    with torch.no_grad():
        logits = model(facts["apply_re"])(tokens, pattern_map(facts["D"], facts["W"], facts["I"]))
    np.testing.assert_allclose(logits.numpy(), arrays[name], atol=1e-4, rtol=0)


def test_one_joint_model_both_ways(golden, model):
    arrays = golden("model")
    tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
    with torch.no_grad():
        dense, sparse = model(True)(tokens), model(True)(tokens, Pattern(8))
    np.testing.assert_allclose(dense[:, -40:].numpy(), arrays["train_dense_joint_D8_W0_I0"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(sparse[:, -40:].numpy(), arrays["train_sparse_joint_D8_W0_I0"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_prefill_and_decode_steps(golden, model, case, chunk):
    arrays, facts = golden("decode"), MANIFEST["decode.npz"][f"{case}_steps"]
    tokens = torch.from_numpy(arrays[f"{case}_tokens"].astype(np.int64))
    network, prompt = model(facts["apply_re"]), facts["P"]
    cache = network.new_cache(2, pattern_map(facts["D"], facts["W"], facts["I"]), max_len=tokens.shape[1])
    for first in range(0, prompt, chunk or prompt):
        logits = network.prefill(tokens[:, first : min(first + (chunk or prompt), prompt)], cache)
    np.testing.assert_allclose(logits.numpy(), arrays[f"{case}_prefill"], atol=1e-4, rtol=0)
    for j in range(tokens.shape[1] - prompt):
        held = [heads[0][0] for heads in cache.kv_entries()]
        assert held == arrays[f"{case}_stored"][:, j].tolist()
        logits = network.step(tokens[:, prompt + j], cache)
        np.testing.assert_allclose(logits.numpy(), arrays[f"{case}_steps"][:, j], atol=1e-4, rtol=0)


def test_greedy_generation(golden, model):
    arrays, facts = golden("decode"), MANIFEST["decode.npz"]["greedy0_ids"]
    prompt = torch.from_numpy(arrays["greedy0_prompt"].astype(np.int64))
    patterns = pattern_map(facts["D"], facts["W"], facts["I"])
    new = model(True).generate(prompt, patterns, max_new_tokens=24)
    assert new[0].tolist() == arrays["greedy0_ids"].tolist()


def test_three_training_iterations(golden, model):
    """Losses, gradient norms, weights and Adam moments of active recurrence learning, through the Lightning module."""
    arrays, facts = golden("train"), MANIFEST["train.npz"]["t0_x"]
    assert facts["sched"] is None
    network = model(facts["re"])
    start = {k: v.clone() for k, v in network.state_dict().items()}
    batches = [
        (step, [tuple(torch.from_numpy(arrays[f"t0_{part}"][step].astype(np.int64)) for part in "xy")])
        for step in range(3)
    ]
    recipe = RecipeSection(steps=3, batch=4, lr=1e-3, lr_min=1e-3, warmup=0.0, arl=True)
    reports = []
    module = TrainingModule(
        network, recipe, None, pattern(facts["D"], facts["W"], facts["I"]), lambda step, report: reports.append(report)
    )
    trainer = make_trainer(RunSection(accelerator="cpu"), "float32", [])
    with quiet_lightning():
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))

    for ours, theirs in {"arl_loss": "loss_sparse", "loss": "loss_dense"}.items():
        np.testing.assert_allclose([float(r[ours]) for r in reports], arrays[f"t0_{theirs}"], atol=1e-4, rtol=0)
    for ours, theirs in {"arl_grad_norm": "gnorm_sparse", "grad_norm": "gnorm_dense"}.items():
        np.testing.assert_allclose([float(r[ours]) for r in reports], arrays[f"t0_{theirs}"], rtol=1e-3)
    np.testing.assert_allclose([r["lr"] for r in reports], arrays["t0_lr"], rtol=1e-9)

    state = trainer.optimizers[0].state_dict()["state"]
    ours = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    for row, theirs in enumerate(arrays["t0_names"]):
        name = own_name(str(theirs))
        final = network.state_dict()[name].double()
        moved = final - start[name].double()
        first_moment = state[ours[name]]["exp_avg"].double()
        assert final.norm().item() == pytest.approx(arrays["t0_l2"][row], rel=1e-5)
        assert moved.norm().item() == pytest.approx(arrays["t0_delta_l2"][row], rel=1e-3)
        assert first_moment.norm().item() == pytest.approx(arrays["t0_m_l2"][row], rel=1e-3)
        flat = np.linspace(0, final.numel() - 1, 64).astype(np.int64)
        expected = torch.from_numpy(arrays["t0_sel"][row].astype(np.float64))
        error = (final.flatten()[flat] - expected).norm() / moved.flatten()[flat].norm()
        assert error < 1e-2, name


def own_name(theirs: str) -> str:
    """Our parameter name for one of the reference layout."""
    from ratplus.checkpoint.official import EMBED, LAYER_KEYS, LAYER_PREFIX, NORM

    if theirs == EMBED:
        return "embed.weight"
    if theirs == NORM:
        return "norm.weight"
    number, _, rest = theirs.removeprefix(LAYER_PREFIX).partition(".")
    return f"layers.{number}.{LAYER_KEYS[rest]}"


def test_learning_rates(golden):
    arrays = golden("lr")
    for case in ("0", "1"):
        facts = MANIFEST["lr.npz"][f"{case}_lr"]
        recipe = RecipeSection(
            steps=facts["T_max"], lr=float(facts["base_lr"]), warmup=float(facts["warmup_fraction"]),
            lr_min=float(facts["eta_min"]),
        )  # fmt: skip
        ours = [learning_rate(int(step), recipe) for step in arrays[f"{case}_steps"]]
        np.testing.assert_allclose(ours, arrays[f"{case}_lr"], rtol=1e-9)


def test_ordered_reading_and_labels(golden):
    """The reference deals each of its 2 ranks a contiguous half of the rows; one rank reads them all in that order."""
    arrays = golden("data")
    stream, context, batch = arrays["arr"], 16, 2
    expected_x = np.concatenate([arrays["ordered_r0_x"], arrays["ordered_r1_x"]])
    expected_y = np.concatenate([arrays["ordered_r0_y"], arrays["ordered_r1_y"]])
    for step in range(len(expected_x)):
        rows = ordered_rows(stream, step, batch, context)
        np.testing.assert_array_equal(rows[:, :-1], expected_x[step])
        np.testing.assert_array_equal(labels_of(rows[:, :-1], rows[:, 1:], eos_id=2), expected_y[step])
