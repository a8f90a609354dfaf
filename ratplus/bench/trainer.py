"""Training steps of one model as `trainer=` can run them: compiled or not, with and without activation checkpointing.

`python -m ratplus.bench.trainer FILE [MODEL...]` needs neither Hydra nor W&B, and fits into two minutes of a GPU: each
way of running has a limit that compiling counts against, and what exceeds it is named with the reason.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import lightning
import torch

from ratplus.bench.lines import skipped_line, trainer_line
from ratplus.bench.models import Subject, dtype_of, empty_result, random_model, subject_of, write_result
from ratplus.bench.settings import BenchSettings
from ratplus.bench.train import random_batches
from ratplus.config.run import RunSection, TrainerSection
from ratplus.config.train import RecipeSection
from ratplus.costs.budget import forward_flops
from ratplus.costs.memory import training_memory
from ratplus.data.batches import Batches
from ratplus.kernels.bench.timing import Ceilings, Times, check_device, measure_ceilings
from ratplus.records.lines import first_line
from ratplus.training.blocks import blocks_configured, check_compiler
from ratplus.training.errors import LayoutError
from ratplus.training.run import StepLoader, make_trainer, quiet_lightning
from ratplus.training.step import TrainingModule

# The shape of conf/model/ratplus_150m.yaml and its micro-batch.
MODEL, BATCH, CONTEXT = "ratplus-15x768x64", 16, 2048
LIMIT_S = 25.0
# (compile, activation checkpointing)
WAYS = ((False, False), (False, True), (True, False), (True, True))
# Steps before the timed ones: the first compiles, the next two settle the allocator.
_WARM, _LEAST = 3, 3


class _Overdue(BaseException):
    """The limit has passed. No Exception: a compiler would take that for an error of the code that it compiles."""


class _Clock(lightning.Callback):
    """When each step had ended on the device, and the most memory of the timed ones."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.ends: list[float] = []
        self.peak: int | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        self._note()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._note()
        if self.cuda and len(self.ends) == _WARM + 1:
            torch.cuda.reset_peak_memory_stats()
        elif self.cuda:
            self.peak = torch.cuda.max_memory_allocated()

    def _note(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def timed_ms(self) -> list[float]:
        after = self.ends[_WARM:]
        return [1e3 * (b - a) for a, b in pairwise(after)]


def bench_trainer(
    subjects: list[Subject],
    settings: BenchSettings,
    limit_s: float = LIMIT_S,
    *,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Time training steps of every model in all `WAYS` at the first context and batch of `settings`; JSON-ready.

    Steps are those of pretraining on text: with active recurrence learning where there is a recurrence; in bf16 under
    autocast over float32 weights where `settings.dtype` is bfloat16.

    Returns {"benchmark": "trainer", ..., "rows", "skipped"} like `bench_training`. A row: model, parameters, step (ARL
    or plain), compile, activation_checkpointing, batch, context, tokens (of a step); step_ms_{p50,p20,p80}, repeats;
    first_step_s (compiling is in it); tokens_per_second; mfu (FLOPs of the passes, without what checkpointing computes
    again, over what the measured matrix product would have done); peak_bytes (most that was allocated in a timed step;
    null on a CPU); estimated_bytes (what `ratplus plan` says, from `ratplus.costs.memory`).

    Raises:
        ValueError: a device that isn't there, or a model that takes fewer tokens than the context.
    """
    check_device(settings.device)
    batch, context = int(settings.batches[0]), settings.contexts[0]
    for subject in subjects:
        if subject.config.max_len < context:
            raise ValueError(
                f"--context: got {context}, but {subject.name} takes at most {subject.config.max_len} tokens"
            )
    started = time.monotonic()
    ceilings = measure_ceilings(settings.device, dtype_of(settings))
    result = empty_result("trainer", settings, ceilings)
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects:
            batches = random_batches(subject.config.vocab_size, context, Path(folder), with_recall=False)
            for compiled, checkpointing in WAYS:
                head = {
                    "model": subject.name, "step": "ARL" if subject.config.recurrence else "plain",
                    "compile": compiled, "activation_checkpointing": checkpointing, "batch": batch, "context": context,
                }  # fmt: skip
                reason = None
                if settings.seconds is not None and time.monotonic() - started > settings.seconds:
                    reason = f"the {settings.seconds:g} s were used up"
                else:
                    trainer = TrainerSection(activation_checkpointing=checkpointing, compile=compiled)
                    clock, reason = _run(subject, trainer, batches, settings, limit_s)
                    if reason is None:
                        row = head | _figures(subject, trainer, clock, settings, ceilings)
                        result["rows"].append(row)
                        progress(trainer_line(row))
                if reason is not None:
                    left = head | {"reason": reason}
                    result["skipped"].append(left)
                    progress(skipped_line(left))
                save(result)
    result["complete"] = True
    save(result)
    return result


def _recipe(subject: Subject, settings: BenchSettings) -> RecipeSection:
    arl = subject.config.recurrence
    return RecipeSection(steps=_WARM + max(settings.repeats, _LEAST), batch=int(settings.batches[0]), arl=arl)


def _run(
    subject: Subject, trainer: TrainerSection, batches: Batches, settings: BenchSettings, limit_s: float
) -> tuple[_Clock, str | None]:
    """Train a few steps; the clock, and why there are too few steps on it."""
    clock, recipe = _Clock(settings.device), _recipe(subject, settings)
    precision = "bf16" if dtype_of(settings) == torch.bfloat16 else "float32"
    try:
        check_compiler(trainer, settings.device)
        with _limited(limit_s):
            # The master weights are float32 whatever the products are in.
            model = random_model(subject.config, settings.device, torch.float32)
            module = TrainingModule(model, recipe, arl=recipe.arl_pattern)
            run = RunSection(accelerator=settings.device)
            with quiet_lightning(), blocks_configured(model, trainer):
                loader = StepLoader(batches, recipe, "pretrain", 0, pinned=settings.device == "cuda")
                make_trainer(run, precision, [clock]).fit(module, loader)
    except _Overdue:
        if len(clock.timed_ms) < _LEAST:
            at = f"after {max(0, len(clock.ends) - 1)} steps" if clock.ends else "before the first step"
            return clock, f"took more than {limit_s:g} s, {at}"
    except torch.OutOfMemoryError as error:
        return clock, f"out of memory: {first_line(error)}"
    except LayoutError as error:
        return clock, str(error)
    finally:
        model = module = None
        gc.collect()
        if settings.device == "cuda":
            torch.cuda.empty_cache()
    return clock, None


@contextmanager
def _limited(seconds: float) -> Generator[None]:
    """Raises _Overdue within when the time has passed; only the main thread can be interrupted."""

    def late(_number, _frame):
        raise _Overdue

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _figures(
    subject: Subject, trainer: TrainerSection, clock: _Clock, settings: BenchSettings, ceilings: Ceilings
) -> dict:
    config, recipe, times = subject.config, _recipe(subject, settings), Times.of(clock.timed_ms)
    batch, context = int(settings.batches[0]), settings.contexts[0]
    tokens, seconds = batch * context, times.p50 / 1e3
    passes = [recipe.arl_pattern, None] if recipe.arl else [None]
    flops = 3 * batch * sum(forward_flops(config, patterns, context) for patterns in passes)
    parameters = sum(p.numel() for p in random_model(config, "meta", torch.float32).parameters())
    precision = "bf16" if dtype_of(settings) == torch.bfloat16 else "float32"
    planned = training_memory(
        config, parameters, tokens, precision, checkpointing=trainer.activation_checkpointing
    )  # fmt: skip
    return {
        "parameters": parameters, "tokens": tokens,
        "step_ms_p50": times.p50, "step_ms_p20": times.p20, "step_ms_p80": times.p80, "repeats": times.repeats,
        "first_step_s": clock.ends[1] - clock.ends[0],
        "tokens_per_second": tokens / seconds, "mfu": flops / seconds / (1e12 * ceilings.matmul_tflop_s),
        "peak_bytes": clock.peak, "estimated_bytes": planned.total,
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """`python -m ratplus.bench.trainer FILE [MODEL...] [options]`. Raises ValueError for what can't be measured."""
    parser = argparse.ArgumentParser(prog="python -m ratplus.bench.trainer", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("file", type=Path, help="JSON file to write, after every row")
    add("models", nargs="*", default=[MODEL], help=f"model folders, or shapes (default: {MODEL}, the 150m model)")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--batch", type=int, default=BATCH, help=f"sequences of a step (default: {BATCH})")
    add("--context", type=int, default=CONTEXT, help=f"tokens of a sequence (default: {CONTEXT})")
    add("--repeats", type=int, default=7, help="timed steps of each way (default: 7; at least 3)")
    add("--limit", type=float, default=LIMIT_S, help=f"seconds of each way, compiling included (default: {LIMIT_S:g})")
    add("--seconds", type=float, help="begin nothing more after so many seconds")
    add("--vocab-size", type=int, help="of a shape (default: 32000)")
    add("--dtype", help="float32 or bfloat16 (default: bfloat16 on cuda, else float32)")
    given = parser.parse_args(words)
    if not given.limit > 0:
        raise ValueError(f"--limit: got {given.limit}; it must be a number > 0")
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = BenchSettings(
        batches=(given.batch,), contexts=(given.context,), repeats=given.repeats, seconds=given.seconds, device=device,
        dtype=given.dtype,
    )  # fmt: skip
    subjects = [subject_of(name, settings, given.vocab_size) for name in given.models]
    bench_trainer(
        subjects, settings, given.limit, progress=lambda text: print(text, flush=True), save=write_result(given.file)
    )
    print(given.file)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
