"""fla-core for tests: its real kernels, with few of the configurations that they would measure."""

import importlib
import sys
import warnings
from collections.abc import Iterator

from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import KernelInterface

from ratplus.kernels.linear_attention.fused import HAS_FLA

MODULES = ("fla.ops.simple_gla", "fla.ops.gated_delta_rule")


def load(monkeypatch, most: int) -> None:
    """Import fla-core's two operators, and until the test ends measure at most so many configurations a kernel.

    It measures up to 48 of a kernel, which compile for minutes; what they compute is the same. They are taken of the
    kernels as they are, since another test may have imported fla-core before. One configuration is not measured at all,
    which needs no GPU.
    """
    assert HAS_FLA
    with warnings.catch_warnings():
        # It says at import that there is no GPU.
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(name)
    kernels = [
        kernel for name, module in sys.modules.items() if name.startswith("fla.") for kernel in vars(module).values()
    ]
    tuners = {id(tuner): tuner for kernel in kernels for tuner in _tuners(kernel)}
    assert tuners
    for tuner in tuners.values():
        few = -(-len(tuner.configs) // most)
        monkeypatch.setattr(tuner, "configs", tuner.configs[::few])


def _tuners(kernel) -> Iterator[Autotuner]:
    """What measures configurations among a kernel's decorators."""
    while isinstance(kernel, KernelInterface):
        if isinstance(kernel, Autotuner):
            yield kernel
        kernel = getattr(kernel, "fn", None)
