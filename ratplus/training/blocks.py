"""`trainer.activation_checkpointing` and `trainer.compile`: how the blocks of a model are run while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from ratplus.config.mixer import ATTENTION
from ratplus.config.run import TrainerSection
from ratplus.kernels.dispatch import VARIABLE, forced
from ratplus.kernels.linear_attention import fused
from ratplus.model import RATPlus
from ratplus.model.network import Block
from ratplus.training.errors import LayoutError

# What compiles the blocks; a test takes one that needs no C++ compiler.
BACKEND = "inductor"
# A graph is made for each kind of row of a pattern map, times each shape of a batch's rows: with hybrid patterns,
# recall rows and micro-batches of uneven size, far more than torch's default of 8. No step makes one anew.
_MOST_GRAPHS = 256


def check_compiler(trainer: TrainerSection, device: str, mixer: str = ATTENTION) -> None:
    """Raises LayoutError if `trainer.compile` is asked for and can't be done on `device` (cpu or cuda).

    Nothing here can compile for it, or a block would run what torch.compile can't trace.
    """
    if not trainer.compile:
        return
    if mixer != ATTENTION and device == "cuda" and fused.HAS_FLA and forced() in ("", "fused"):
        raise LayoutError(
            f"trainer.compile: got True; model.mixer={mixer} runs the kernels of fla-core, which torch.compile can't "
            f"trace: set trainer.compile=false, or {VARIABLE}=eager"
        )
    what = "Triton" if device == "cuda" else "a C++ compiler (g++, or the one that CXX names)"
    if not (_has_triton() if device == "cuda" else _has_cxx()):
        raise LayoutError(
            f"trainer.compile: got True; torch.compile on {device} needs {what}, and there is none here: install it, "
            "or set trainer.compile=false"
        )


def _has_triton() -> bool:
    from ratplus.kernels.dispatch import HAS_TRITON

    return HAS_TRITON


def _has_cxx() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@contextmanager
def blocks_configured(model: RATPlus, trainer: TrainerSection) -> Generator[None]:
    """Within, the model's blocks are run as `trainer` says; after, as before.

    Compiled are the blocks rather than the model: all of one shape share a graph, checkpointing has the border where
    it needs it, and the hooks by which FSDP gathers a block's weights stay outside of what is traced. Patterns are
    constants of a graph, so the two passes of active recurrence learning are two graphs.
    """
    model.activation_checkpointing = trainer.activation_checkpointing
    if trainer.compile:
        compiled = torch.compile(Block.forward, backend=BACKEND, fullgraph=True, dynamic=False)
        for block in model.blocks:
            block.forward = partial(compiled, block)
    try:
        with _compiling() if trainer.compile else nullcontext():
            yield
    finally:
        model.activation_checkpointing = False
        for block in model.layers:
            vars(block).pop("forward", None)


@contextmanager
def _compiling() -> Generator[None]:
    import torch._dynamo

    # DDP's own optimizer would cut a block's graph where a bucket of gradients ends.
    with (
        torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS, optimize_ddp=False),
        warnings.catch_warnings(),
    ):
        # Tracing goes through the cache of `kernel_pattern`, a pure function.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function")
        yield
