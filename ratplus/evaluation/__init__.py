"""Evaluation of a model under a pattern: built-in suites, and every task of lm-evaluation-harness through `HarnessLM`.

`HarnessLM(model, tokenizer, patterns=None, batch_size=1, max_length=None)` is imported when it is asked for, and needs
the extra `eval`; everything else here works without it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratplus.evaluation.harness_model import Adapter as HarnessLM

__all__ = ["HarnessLM"]


def __getattr__(name: str):
    if name == "HarnessLM":
        from ratplus.evaluation.harness import harness_class

        return harness_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
