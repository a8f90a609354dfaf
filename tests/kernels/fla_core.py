"""fla-core for tests: its real kernels, with few of the configurations that they would measure."""

import importlib
import warnings

from ratplus.kernels.linear_attention.fused import HAS_FLA

MODULES = ("fla.ops.simple_gla", "fla.ops.gated_delta_rule")


def load(monkeypatch, most: int) -> None:
    """Import fla-core's two operators with at most so many configurations a kernel, the first and others spread.

    It measures up to 48 of a kernel, which compile for minutes; what they compute is the same.
    """
    assert HAS_FLA
    from triton.runtime.autotuner import Autotuner

    whole = Autotuner.__init__

    def few(self, fn, arg_names, configs, *rest, **others):
        whole(self, fn, arg_names, configs[:: -(-len(configs) // most)] if configs else configs, *rest, **others)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        # It says at import that there is no GPU.
        warnings.simplefilter("ignore")
        patch.setattr(Autotuner, "__init__", few)
        for name in MODULES:
            importlib.import_module(name)
