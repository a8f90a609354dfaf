"""The decoding loop: token in, logits out, on CUDA as one captured graph that is replayed for every token.

A step of a small batch is a few hundred launches of some microseconds each: without a graph, the host's time to launch
them is what one measures. Positions are read on the device, so one graph serves every position. What a graph can't
hold is kept outside: the host's counters, the look whether there is room, and the choice of the next token (so that a
seed draws the same tokens with and without a graph).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ratplus.records.lines import first_line

if TYPE_CHECKING:
    from ratplus.model.cache import KVCache
    from ratplus.model.network import Network
    from ratplus.pattern import PatternMap

# (replay, what it writes): see `capture_cuda`.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

# A cache that is kept for the next call has room to a multiple of this, so that prompts may differ in length.
_ROOM = 256


def capture_cuda(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture `step`, which runs nothing, and return (replay, its result); each replay runs it and rewrites the result.

    `step` must have run once on this device, so that its kernels are compiled and loaded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return graph.replay, result


def no_graph_reason(model: Network, cache: KVCache) -> str | None:
    """Why a step of this model can't be captured, in one line; None if it can, and on a CPU an empty text."""
    from ratplus.kernels.dispatch import VARIABLE, implementation

    weight = model.embed.weight  # caches have its device and type
    if weight.device.type != "cuda":
        return ""
    # A step of the other mixers is plain PyTorch that never waits for the device.
    if model.config.attends and implementation("decode_attention", model.config.d_head, weight) != "fused":
        forced = os.environ.get(VARIABLE)
        return f"{VARIABLE}={forced} makes the host wait for the device" if forced else "the Triton kernels can't run"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on, which would convert the weights at every token; convert the model instead"
    if torch.cuda.is_current_stream_capturing():
        return "another graph is being captured"
    return None


class DecodeLoop:
    """Steps of one model on one cache: `loop.step(token) -> logits`, as `model.step(token, cache)`.

    The first step runs as it is (and compiles what it needs), the second is captured, and from then on the graph is
    replayed. The logits of a graph are overwritten by the next step.

    Args:
        model, cache: what is stepped. The graph reads the model's weights where they lie: change them in place only.
        capture: how to capture (`capture_cuda`, or a test's own); None runs every step as it is.
    """

    def __init__(self, model: Network, cache: KVCache, capture: Capture | None = None):
        self.model, self.cache = model, cache
        self.captures = 0
        self._capture, self._warm = capture, False
        self._replay: tuple[Callable[[], None], Tensor] | None = None  # and the logits that it rewrites
        self._token = torch.zeros_like(cache.positions)

    @classmethod
    def best(cls, model: Network, cache: KVCache) -> DecodeLoop:
        """With a graph where that is possible; elsewhere on CUDA without one, and a warning that says why."""
        reason = no_graph_reason(model, cache)
        if reason:
            _warn(reason)
        return cls(model, cache, capture_cuda if reason is None else None)

    @property
    def graphed(self) -> bool:
        """Whether steps are replays of a graph from now on."""
        return self._replay is not None

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Feed one token [B] a sequence; logits [B, vocab]. Raises ValueError on overrun or another batch size."""
        if self._capture is None:
            return self.model.step(token, self.cache)
        self.cache.begin_step(token.shape[0])
        self._token.copy_(token)
        if self._replay is None and self._warm:
            self._try_to_capture(self._capture)
        if self._replay is None:
            logits, self._warm = self._on_device(), True
        else:
            replay, logits = self._replay
            replay()
        self.cache.count_step()
        return logits

    def _on_device(self) -> Tensor:
        return self.model.step_on_device(self._token, self.cache)

    def _try_to_capture(self, capture: Capture) -> None:
        try:
            self._replay = capture(self._on_device)
            self.captures += 1
        except RuntimeError as error:  # capturing runs nothing, so the cache is as it was
            self._capture = None
            _warn(first_line(error))


_warned: set[str] = set()


def _warn(reason: str) -> None:
    """Once a reason and process."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"decoding runs without a CUDA graph, which is slower: {reason}", stacklevel=4)


# ---- keeping a loop for the next call -----------------------------------------------------------------------------

# A kept loop must not hold its model, or the model would never be freed.
_kept: WeakKeyDictionary[Network, tuple[tuple, DecodeLoop]] = WeakKeyDictionary()


def take(model: Network, batch: int, patterns: PatternMap, max_len: int, capture: Capture | None = None) -> DecodeLoop:
    """A loop on an empty cache for `batch` sequences of up to `max_len` tokens: the kept one if it fits, or a new one.

    It belongs to the caller until `keep` gives it back, so that calls in two threads don't share a cache.
    `capture`: for tests; by default what this device can do.
    """
    key = _key(model, batch, patterns)
    kept_key, loop = _kept.pop(model, (None, None))
    if loop is not None and kept_key == key and loop.cache.max_len >= max_len:
        loop.cache.rewind()
        loop.model = model
        return loop
    del loop  # its cache may be most of the device's memory
    graphs = capture is not None or model.embed.weight.device.type == "cuda"
    room = min(-(-max_len // _ROOM) * _ROOM, model.config.max_len) if graphs else max_len
    # Tensors of an inference mode could not be written to by a later call outside of it.
    with torch.inference_mode(False), torch.no_grad():
        cache = model.new_cache(batch, patterns, room)
        return DecodeLoop(model, cache, capture) if capture else DecodeLoop.best(model, cache)


def keep(loop: DecodeLoop) -> None:
    """Keep a loop that has a graph, with its cache, for the model's next call; one a model. It is used up.

    A loop without a graph is left alone: a new one is as good. `release` frees what is kept.
    """
    if loop.graphed and not loop.cache.compresses:  # a prompt cut anew lies elsewhere, where no graph looks
        model = loop.model
        del loop.model
        _kept[model] = (_key(model, len(loop.cache.lengths), loop.cache.patterns), loop)


def release(model: Network) -> None:
    """Forget the model's kept loop, and so free its cache and graph."""
    _kept.pop(model, None)


def _key(model: Network, batch: int, patterns: PatternMap) -> tuple:
    """What a graph was captured for; the weights by their addresses, which moving or converting a model changes."""
    weights = tuple((p.data_ptr(), p.dtype) for p in model.parameters())
    return batch, patterns, weights, os.environ.get("RATPLUS_KERNELS"), torch.is_autocast_enabled("cuda")
