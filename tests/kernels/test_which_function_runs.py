"""The implementation that is asked for is the one that runs: equal numbers of another would tell nobody."""

import os
from importlib import import_module

import pytest
import torch
from helpers import projections, rope_tables

from ratplus.kernels import (
    block_attention,
    block_decode_attention,
    decode_attention,
    dilated_attention,
    gated_scan,
)  # fmt: skip
from ratplus.kernels.attention.patterns import on_device

D_HEAD, LENGTH = 16, 8
FUSED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


class Ran(Exception):
    """The function in whose place this stands was called."""


def _rows(parts: int) -> list[torch.Tensor]:
    return [x.detach().requires_grad_() for x in projections(1, 2, LENGTH, D_HEAD, parts=parts)]


def _scan():
    return gated_scan(*_rows(3), rope=rope_tables(torch.arange(LENGTH), D_HEAD))[0]


def _attention():
    return dilated_attention(*_rows(3), 4, 2, 1)


def _blocks():
    return block_attention(*_rows(3), 4, 1, 0, top=2, block=2)


def _step() -> tuple:
    token = [torch.randn(2, 2, D_HEAD) for _ in range(3)]
    return token, torch.tensor([5, 7])


def _decode():
    token, positions = _step()
    return decode_attention(*token, None, *torch.zeros(2, 2, 12, D_HEAD), None, positions, 4, 1, 1)


def _block_decode():
    token, positions = _step()
    caches = [torch.zeros(2, 2, LENGTH, D_HEAD), torch.zeros(2, 2, LENGTH, D_HEAD), torch.zeros(2, 2, 4, 1, D_HEAD)]
    return block_decode_attention(*token, None, *caches, None, positions, 4, 1, 1, top=2, block=2)


# Operator: a call of it, and per implementation the function that does the work of the forward pass.
CALLS = {
    "scan": (_scan, {"eager": "scan.eager.forward", "fused": "scan.fused.forward"}),
    "attention": (_attention, {"eager": "attention.eager.forward", "fused": "attention.fused.forward"}),
    "blocks": (_blocks, {"eager": "blocks.eager.forward", "fused": "blocks.fused.forward"}),
    "decode": (_decode, {"eager": "decode.ops.decode_attention_eager", "fused": "decode.fused.step"}),
    "block decode": (
        _block_decode, {"eager": "block_decode.block_decode_eager", "fused": "block_decode.fused.step"},
    ),
}  # fmt: skip
BACKWARD = {"scan": "scan", "attention": "attention", "blocks": "blocks"}


def _raise_in(monkeypatch, name: str) -> None:
    module, function = name.rsplit(".", 1)

    def ran(*_, **__):
        raise Ran(name)

    monkeypatch.setattr(import_module(f"ratplus.kernels.{module}"), function, ran)


@pytest.mark.parametrize("implementation", ["eager", pytest.param("fused", marks=FUSED)])
@pytest.mark.parametrize("operator", CALLS)
def test_forward(monkeypatch, operator, implementation):
    call, functions = CALLS[operator]
    other = "fused" if implementation == "eager" else "eager"
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    with monkeypatch.context() as patched:
        if other == "eager" or os.environ.get("TRITON_INTERPRET") == "1":
            _raise_in(patched, functions[other])
        call()
    _raise_in(monkeypatch, functions[implementation])
    with pytest.raises(Ran):
        call()


@pytest.mark.parametrize("implementation", ["eager", pytest.param("fused", marks=FUSED)])
@pytest.mark.parametrize("operator", BACKWARD)
def test_backward(monkeypatch, operator, implementation):
    call, _ = CALLS[operator]
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    out = call()
    with monkeypatch.context() as patched:
        _raise_in(patched, f"{BACKWARD[operator]}.{implementation}.backward")
        with pytest.raises(Ran):
            out.sum().backward(retain_graph=True)
    out.sum().backward()


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        ("scan", "scan.gated_scan_reference"), ("attention", "attention.dilated_attention_reference"),
        ("blocks", "blocks.block_attention_reference"), ("decode", "decode.ops.decode_attention_reference"),
        ("block decode", "block_decode.ops.block_decode_reference"),
    ],
)  # fmt: skip
def test_the_definition(monkeypatch, operator, function):
    monkeypatch.setenv("RATPLUS_KERNELS", "reference")
    CALLS[operator][0]()
    _raise_in(monkeypatch, function)
    with pytest.raises(Ran):
        CALLS[operator][0]()


@pytest.mark.parametrize(
    ("settings", "found"),
    [((1, None), False), ((torch.zeros(2),), False), ((1, torch.zeros(2, device="meta")), True),
     ((torch.zeros(2), torch.zeros(2, device="meta")), True), ((), False)],
)  # fmt: skip
def test_which_settings_the_host_cannot_read(settings, found):
    assert on_device(*settings) is found
    inside = []

    def traced(x):
        inside.append(on_device(*settings))
        return x + 1

    torch.compile(traced, backend="eager")(torch.ones(2))
    # While a graph is traced a tensor is not read either, wherever it is.
    assert inside[0] is any(isinstance(setting, torch.Tensor) for setting in settings)
