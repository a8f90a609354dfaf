"""Costs of mixers with a state, against operations counted one by one, torch's own count, and a live cache."""

import dataclasses
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ratplus import ModelConfig, Pattern, RATPlus
from ratplus.costs.budget import block_matrices, forward_flops, parameters
from ratplus.costs.cost import attention_flops, cost
from ratplus.costs.state import kept_channels, state_cost, state_flops

MIXERS = ("mamba2", "gated_deltanet")


def shape(mixer: str, **given) -> ModelConfig:
    sizes = dict(vocab_size=31, layers=2, d_model=24, d_head=6, d_state=4, query_heads=3, max_len=120)
    return ModelConfig(**(sizes | given), recurrence=False, mixer=mixer)


class Counted:
    """A number whose additions, subtractions and products are counted."""

    operations = 0

    def __init__(self, value: float):
        self.value = value

    def _count(self, other):
        Counted.operations += 1
        return Counted(0.5)

    __add__ = __sub__ = __mul__ = _count


def count_of_a_token(delta: bool, d_k: int, d_v: int) -> int:
    """Of one head, by the definition; a sum of n products counts n additions, as a multiply-add does elsewhere."""
    Counted.operations = 0
    number = Counted(0.5)
    state = [[number] * d_v for _ in range(d_k)]
    key, query, decay, beta, value = [number] * d_k, [number] * d_k, number, number, [number] * d_v

    def read(with_key):
        out = [number] * d_v
        for i, j in itertools.product(range(d_k), range(d_v)):
            out[j] = out[j] + with_key[i] * state[i][j]
        return out

    state = [[decay * x for x in row] for row in state]
    write = [beta * (v - old) for v, old in zip(value, read(key))] if delta else value
    state = [[x + k * u for x, u in zip(row, write)] for row, k in zip(state, key)]
    read(query)
    return Counted.operations


@pytest.mark.parametrize("mixer", MIXERS)
def test_flops_of_a_state_are_those_counted_one_by_one(mixer):
    model = shape(mixer)
    convolution = 2 * 4 * model.state_shape.convolved
    assert state_flops(model) == 3 * count_of_a_token(mixer == "gated_deltanet", 4, 6) + convolution
    assert state_flops(model, 7) == 7 * state_flops(model)


@pytest.mark.parametrize("mixer", MIXERS)
def test_flops_of_matrices_against_torch(mixer):
    """Torch's counter sees matrix products alone; those of chunks are avoided by the path that loops over tokens."""
    model = shape(mixer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATPLUS_KERNELS", "reference")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            RATPlus(model)(torch.zeros(1, 5, dtype=torch.int64))
    matrices = 2 * 5 * (2 * block_matrices(model) + 31 * 24)
    assert counter.get_total_flops() == matrices
    assert forward_flops(model, None, 5) == matrices + 2 * state_flops(model, 5)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_a_live_cache(mixer, dtype):
    model = RATPlus(shape(mixer)).to(dtype)
    spent = state_cost(model.config, 100, dtype.itemsize)
    assert spent.cache_bytes == spent.state_bytes == spent.decode_bytes == model.new_cache(1, None, 100).bytes()
    assert (spent.kv_entries, spent.kv_read, spent.kv_bytes, spent.kv_ratio) == (0, 0, 0, 0.0)
    assert state_cost(model.config, 7, dtype.itemsize).cache_bytes == spent.cache_bytes


def test_numbers_that_a_token_keeps_for_the_backward_pass():
    """Of three heads with 6 channels and keys of 64, in chunks of 64: 18 values, a state of 3 x 64 x 6 a chunk."""
    states = 3 * 64 * 6 // 64
    # Each head has its keys and queries, all convolved beside the values; the gate; decay and beta.
    convolved = 18 + 2 * 3 * 64
    projected = 18 + convolved + 2 * 3
    assert kept_channels(shape("gated_deltanet", d_state=64)) == (
        projected + 3 * convolved + 3 * 18, 5 * 18 + 9 * 3 * 64 + 6 * 3 * 64 + states,
    )  # fmt: skip
    # All heads share their keys and queries; decay alone.
    convolved = 18 + 2 * 64
    projected = 18 + convolved + 3
    assert kept_channels(shape("mamba2", d_state=64)) == (
        projected + 3 * convolved + 3 * 18, 4 * 18 + 2 * 3 * 64 + 2 * 64 + 2 * 3 * 64 + 64 + states,
    )  # fmt: skip


def test_memory_is_estimated_for_the_chunks_that_run():
    from ratplus.costs.state import CHUNK
    from ratplus.kernels.linear_attention import eager

    assert CHUNK == eager.CHUNK


def test_the_state_as_the_papers_count_it():
    """heads · d_head · d_state numbers a layer, whose size the length does not change."""
    model = shape("mamba2", d_model=2048, d_head=64, d_state=128, query_heads=64, layers=1)
    held = state_cost(model, 4096).state_bytes
    assert held == 4 * 64 * 64 * 128 + 3 * (4096 + 2 * 128) * 2
    dense = ModelConfig(vocab_size=31, layers=1, d_model=2048, d_head=128, recurrence=False)
    assert cost(Pattern(), 4096, 128).kv_bytes * dense.heads > 7 * held


def test_the_ratio_is_to_dense_attention_of_these_heads():
    model = shape("gated_deltanet", d_head=4, query_heads=3)
    spent = state_cost(model, 64)
    dense = attention_flops(Pattern(), 64, 4) * 3 * 2
    assert spent.attention_flops == 2 * state_flops(model, 64)
    assert spent.attention_flops_ratio == pytest.approx(spent.attention_flops / dense)
    assert state_cost(model, 0).attention_flops_ratio == 1.0


def test_shipped_recipes_have_the_parameters_of_ratplus_tiny():
    from ratplus.sweeps.define.compose import compose_one

    def count(name: str) -> int:
        return parameters(compose_one([f"model={name}"]).config.model.build(338, 512))

    assert count("ratplus_tiny") == 549408
    assert count("mamba2_tiny") == 550684
    assert count("gated_deltanet_tiny") == 556536


def test_stages_of_attention_say_nothing_of_mixers():
    """So that their ids are what they were before there were any."""
    from ratplus.stages.stage_ids import plan
    from ratplus.sweeps.define.compose import compose_one

    config = compose_one(["model=ratplus_tiny"]).config
    stages = plan(config, {"corpus": "x"}, 256)
    assert not {"mixer", "d_state"} & stages.pretrain.config["model"].keys()
    config.model = dataclasses.replace(config.model, mixer="mamba2", recurrence=False, d_state=7)
    other = plan(config, {"corpus": "x"}, 256)
    assert (other.pretrain.config["model"]["mixer"], other.pretrain.config["model"]["d_state"]) == ("mamba2", 7)
    assert other.pretrain.id != stages.pretrain.id
