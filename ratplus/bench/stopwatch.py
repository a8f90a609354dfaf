"""Where the time of a training step goes: marks between its parts, forward and backward, on a CPU and on CUDA."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from ratplus.model import RATPlus
from ratplus.model import network as model_code
from ratplus.model import state_mixer as mixer_code
from ratplus.model.state_mixer import StateMixer

# ends: embedding, final norm, output head and loss. dense: norms, projections, gates, RoPE of queries, feed-forward.
# mixer: convolution and recurrence of a mixer that stands in the place of attention.
PARTS = ("ends", "dense", "scan", "attention", "mixer", "optimizer", "data", "other")


class Stopwatch:
    """Adds the time between two marks to the part that the first one names, so that the parts of a lap sum to it.

    On CUDA marks are events on the stream, and times the device's. On a CPU with one thread they are the process's own
    CPU time, which other processes do not lengthen; with several threads wall time.
    """

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self.on = False
        self.laps: list[dict[str, float]] = []  # of each lap: part -> milliseconds
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """From here on the time is this part's."""
        if self.on:
            self._marks.append((part, self._now()))

    def lap(self) -> None:
        """End a lap, if one is running."""
        marks, self._marks = self._marks, []
        if not (self.on and marks):
            return
        marks.append(("", self._now()))
        if self.cuda:
            torch.cuda.synchronize()
        parts = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in pairwise(marks):
            parts[part] += start.elapsed_time(end) if self.cuda else 1e3 * (end - start)
        self.laps.append(parts)

    def _now(self):
        if not self.cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _Mark(torch.autograd.Function):
    """The identity; when gradients pass, all that are to come have come, and the stopwatch goes on to another part."""

    @staticmethod
    def forward(ctx, watch: Stopwatch, part: str, *tensors):
        ctx.watch, ctx.part = watch, part
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.watch.mark(ctx.part)
        return None, None, *gradients


@contextmanager
def watched(model: RATPlus, watch: Stopwatch) -> Generator[None]:
    """Within, passes of `model` set marks while the stopwatch is on; otherwise they are as they were."""

    def around(part: str, work):
        """`work` as a part of its own within the blocks; its tensors are the leading arguments and results."""

        def call(*arguments, **options):
            if not watch.on:
                return work(*arguments, **options)
            tensors = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
            watch.mark(part)
            marked = iter(_Mark.apply(watch, "dense", *tensors))
            found = work(*(next(marked) if any(x is t for t in tensors) else x for x in arguments), **options)
            if isinstance(found, tuple):
                marked = iter(_Mark.apply(watch, part, *(x for x in found if isinstance(x, torch.Tensor))))
                found = tuple(next(marked) if isinstance(x, torch.Tensor) else x for x in found)
            else:
                (found,) = _Mark.apply(watch, part, found)
            watch.mark("dense")
            return found

        return call

    def into_blocks(_module, _inputs, output):
        if watch.on:
            (output,) = _Mark.apply(watch, "ends", output)
            watch.mark("dense")
        return output

    def out_of_blocks(_module, inputs):
        if watch.on:
            inputs = _Mark.apply(watch, "dense", *inputs)
            watch.mark("ends")
        return inputs

    handles = [
        model.embed.register_forward_pre_hook(lambda _module, _inputs: watch.mark("ends")),
        model.embed.register_forward_hook(into_blocks),
        model.norm.register_forward_pre_hook(out_of_blocks),
    ]
    parts = (
        (model_code, "gated_scan", "scan"), (model_code, "dilated_attention", "attention"),
        (StateMixer, "_convolve", "mixer"), (mixer_code, "ssd", "mixer"), (mixer_code, "gated_delta_rule", "mixer"),
    )  # fmt: skip
    originals = [getattr(place, name) for place, name, _ in parts]
    for (place, name, part), work in zip(parts, originals):
        setattr(place, name, around(part, work))
    try:
        yield
    finally:
        for (place, name, _), work in zip(parts, originals):
            setattr(place, name, work)
        for handle in handles:
            handle.remove()
