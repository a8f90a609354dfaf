"""Rotary scaling: the numbers of others, one answer in every way to run a model, and gradients."""

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.checkpoint import load, save
from ratplus.model.rope import attention_scale, rope_frequencies, rope_tables

# Every few of the inverse frequencies that transformers 5.23.0 (the last one: 5.24.0) computes in float32
# (`ROPE_INIT_FUNCTIONS`); in the last one even the slowest channel turns more than once in the trained context:
# (kind, head_dim, rope_theta, factor, original_max_position_embeddings, every, attention factor, values).
THEIRS = [
    ("linear", 64, 1e4, 4.0, None, 4, 1.0,
     [0.25, 0.079056941, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05]),
    ("yarn", 64, 1e4, 4.0, 512, 4, 1.138629436111989,
     [1.0, 0.29798386, 0.071153842, 0.015203258, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05]),
    ("yarn", 128, 1e4, 16.0, 4096, 8, 1.2772588722239782,
     [1.0, 0.31622776, 0.1, 0.027061801, 0.005673077, 0.00088178896, 6.2500003e-05, 1.9764237e-05]),
    ("yarn", 32, 5e5, 2.0, 512, 2, 1.0693147180559945,
     [1.0, 0.17453048, 0.02632422, 0.0036463325, 0.00070710672, 0.00013712409, 2.6591479e-05, 5.1566926e-06]),
    ("yarn", 64, 1e4, 4.0, 131072, 4, 1.138629436111989,
     [1.0, 0.31622776, 0.1, 0.031622779, 0.0099999998, 0.0031622779, 0.00088461541, 0.00020676434]),
]  # fmt: skip
SCALINGS = [
    {"rope_scaling": "linear", "rope_factor": 4},
    {"rope_scaling": "yarn", "rope_factor": 4, "rope_original": 16},
]


@pytest.mark.parametrize(("kind", "d", "base", "factor", "original", "every", "temperature", "values"), THEIRS)
def test_frequencies_are_those_of_transformers(kind, d, base, factor, original, every, temperature, values):
    ours = rope_frequencies(d, base, kind, factor, original)
    assert ours.dtype == torch.float32
    assert ours.shape == (d // 2,)
    torch.testing.assert_close(ours[::every], torch.tensor(values), rtol=1e-6, atol=0)
    # They multiply both queries' and keys' tables; we multiply the queries alone, with both.
    assert attention_scale(kind, factor) == pytest.approx(temperature**2, rel=1e-12)


def test_the_library_itself():
    """As above, against whatever transformers is installed."""
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    for kind, d, base, factor, original, *_ in THEIRS:
        words = {"rope_type": kind, "factor": factor, "rope_theta": base}
        words |= {"original_max_position_embeddings": original} if original else {}
        config = LlamaConfig(
            hidden_size=2 * d, num_attention_heads=2, head_dim=d, rope_theta=base,
            max_position_embeddings=int((original or 512) * factor), rope_scaling=words,
        )  # fmt: skip
        theirs, temperature = utils.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        torch.testing.assert_close(rope_frequencies(d, base, kind, factor, original), theirs, rtol=1e-6, atol=0)
        assert attention_scale(kind, factor) == pytest.approx(temperature**2)


def test_linear_positions_stand_between_those_that_were_trained():
    """Every fourth position of a model stretched by four is one that it knew."""
    known = rope_tables(torch.arange(8), 16, 1e4)
    stretched = rope_tables(torch.arange(0, 32, 4), 16, 1e4, "linear", 4.0)
    for ours, theirs in zip(stretched, known):
        torch.testing.assert_close(ours, theirs)


def test_no_scaling_changes_no_bit():
    positions = torch.arange(300)
    pair = torch.arange(0, 32, 2, dtype=torch.float32)
    angle = positions.float()[:, None] * (1.0 / 1e4 ** (pair / 32))
    assert torch.equal(rope_tables(positions, 32, 1e4)[0], torch.cat((angle, angle), dim=-1).cos())


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_scaling"])
@pytest.mark.parametrize("recurrence", [True, False])
def test_forward_prefill_and_steps_agree(scaling, recurrence):
    config = ModelConfig(23, 2, 32, 16, recurrence=recurrence, max_len=64, **scaling)
    model = RATPlus(config)
    model.reset_parameters(0, std=0.3)
    tokens = torch.randint(23, (2, 40), generator=torch.Generator().manual_seed(1))
    for pattern in (Pattern(), Pattern(4, 3, 1)):
        patterns = PatternMap.uniform(pattern, 2, 2)
        with torch.no_grad():
            whole = model(tokens, patterns)
            cache = model.new_cache(2, patterns, 40)
            found = [model.prefill(tokens[:, :17], cache)] + [model.step(tokens[:, i], cache) for i in range(17, 40)]
        torch.testing.assert_close(torch.stack(found, dim=1), whole[:, 16:], rtol=1e-4, atol=1e-4)
    plain = RATPlus(ModelConfig(23, 2, 32, 16, recurrence=recurrence, max_len=64))
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(tokens), model(tokens), atol=1e-2)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_scaling"])
def test_gradients_are_those_of_the_slow_path(scaling, monkeypatch):
    """The scan's backward pass un-rotates keys by the tables: tables that scaled would give wrong gradients there."""
    config = ModelConfig(11, 1, 16, 8, max_len=48, **scaling)
    tokens = torch.randint(11, (2, 40), generator=torch.Generator().manual_seed(2))

    def gradients() -> dict:
        model = RATPlus(config)
        model.reset_parameters(3, std=0.4)
        model(tokens, Pattern(4)).logsumexp(-1).square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    fast = gradients()
    monkeypatch.setenv("RATPLUS_KERNELS", "reference")
    for name, slow in gradients().items():
        torch.testing.assert_close(fast[name], slow, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rope_scaling": "ntk"}, "model.rope_scaling: got 'ntk'.*allowed: none, linear, yarn"),
        (
            {"rope_factor": 4},
            "model.rope_factor: got 4.*rope_scaling=none has no factor; choose linear, yarn or llama3",
        ),
        ({"rope_scaling": "linear"}, "model.rope_factor: got 1.0.*it must be > 1"),
        ({"rope_scaling": "yarn", "rope_factor": 4}, "model.rope_original: got None.*the context that the model was"),
        (
            {"rope_scaling": "linear", "rope_factor": 4, "rope_original": 8},
            "only model.rope_scaling=yarn and llama3 read it",
        ),
        ({"rope_original": 8}, "model.rope_original: got 8.*use null"),
        ({"rope_scaling": "yarn", "rope_factor": 4, "rope_original": 8, "rope_base": 0.5}, "model.rope_base: got 0.5"),
    ],
)
def test_settings_that_make_no_sense(words, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(11, 1, 16, 8, **words)


def test_model_folders_from_before_the_keys_load(tmp_path):
    import json

    folder = save(RATPlus(ModelConfig(11, 1, 16, 8)), tmp_path / "m")
    stored = json.loads((folder / "config.json").read_text())
    stored["model"] = {
        k: v for k, v in stored["model"].items() if k not in ("rope_scaling", "rope_factor", "rope_original")
    }
    (folder / "config.json").write_text(json.dumps(stored))
    assert load(folder).config == ModelConfig(11, 1, 16, 8)
