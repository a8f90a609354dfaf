"""Training steps of whole models, timed as users run them: batches, Lightning's loop, passes, clipping, AdamW.

A stopwatch (`ratplus.bench.stopwatch`) says in some further steps where the time goes. Models take turns, round by
round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import lightning
import numpy as np
import torch

from ratplus.bench.models import Subject, dtype_of, empty_result, random_model
from ratplus.bench.settings import BenchSettings
from ratplus.bench.stopwatch import PARTS, Stopwatch, watched
from ratplus.config.data import RecallSection
from ratplus.config.model import ModelConfig
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection
from ratplus.costs.budget import forward_flops
from ratplus.costs.memory import training_memory
from ratplus.data.batches import Batches
from ratplus.data.corpus import Corpus
from ratplus.data.recall import RecallTask
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.kernels.bench.timing import Ceilings, Times, check_device, measure_ceilings, peak_bytes
from ratplus.pattern import Pattern
from ratplus.records.lines import first_line
from ratplus.training.run import StepLoader, make_trainer, quiet_lightning
from ratplus.training.step import TrainingModule

# Steps of a turn: to warm up, timed, and taken apart.
_WARM, _TIMED, _APART = 1, 3, 1
_BYTES_OF_WEIGHT_AND_MOMENTS = 12
_TRAINING_TOKENS = 1 << 21
# As data.recall has it, where the context takes it.
RECALL = RecallSection()


@dataclass
class _Candidate:
    """One model with one kind of step, at one context and batch; what its turns found."""

    subject: Subject
    arl: Pattern | None
    batches: Batches
    recipe: RecipeSection
    steps_ms: list[float]
    steps_cpu_ms: list[float]
    parts_ms: list[dict[str, float]]
    peak: int | None = None

    @property
    def step(self) -> str:
        return "plain" if self.arl is None else "ARL"


def bench_training(
    subjects: list[Subject],
    settings: BenchSettings,
    *,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Time training steps of every model at every context and batch; JSON-ready.

    A model with recurrence is measured with the step of active recurrence learning and with a plain step, and beside
    it the attention-only model of its shape, which is added if it isn't among `subjects`.

    Returns {"benchmark": "train", "complete", "device", "torch", "cudnn", "threads", "dtype", "date", "ceilings",
    "settings", "rows", "skipped"}; `save` gets it after each context and batch. A row: model, parameters, recurrence,
    step (ARL or plain), batch, context, tokens (of a step, recall rows too); step_ms_{p50,p20,p80}, repeats;
    step_cpu_ms_p50 (of all
    threads of the process: less than step_ms of one thread if other processes took its core); tokens_per_second; mfu
    (FLOPs of the passes over what the measured matrix product would have done); arl_cost, arl_cost_cpu (step_ms_p50 and
    step_cpu_ms_p50 to those of the attention-only model's plain step; null for that); <part>_ms of `stopwatch.PARTS`,
    which sum to step_ms_p50, and data_share: by CPU time if there is one thread, else by wall time; peak_bytes
    (weights, moments, and what a step takes on top); estimated_bytes (`ratplus.costs.memory`).

    Raises:
        ValueError: a device that isn't there, a batch or context that cannot be.
    """
    check_training(settings)
    for subject in subjects:
        longest, most = max(settings.contexts), subject.config.max_len
        if longest > most:
            raise ValueError(f"--context: got {longest}, but {subject.name} takes at most {most} tokens")
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        return _bench(_with_peers(subjects), settings, progress, save)
    finally:
        torch.set_num_threads(before)


def check_training(settings: BenchSettings) -> None:
    """Raises ValueError for what can't be measured, before anything is."""
    check_device(settings.device)
    if "max" in settings.batches:
        raise ValueError("--batch: got max; bench train takes whole numbers")
    if min(settings.contexts) < 2:
        raise ValueError(f"--context: got {min(settings.contexts)}; it must be ≥ 2")


def _with_peers(subjects: list[Subject]) -> list[Subject]:
    found = list(subjects)
    for subject in subjects:
        peer = _peer(subject.config)
        if subject.config.recurrence and not any(peer == _peer(s.config) and not s.config.recurrence for s in found):
            found.append(Subject(f"{subject.name} without recurrence", peer, subject.make))
    return found


def _peer(config: ModelConfig) -> ModelConfig:
    """The attention-only model of the same shape."""
    return replace(config, recurrence=False, recurrence_chunk=None, gate_bias=None)


def _bench(subjects: list[Subject], settings: BenchSettings, progress: Callable, save: Callable) -> dict:
    started, dtype = time.monotonic(), dtype_of(settings)
    ceilings = measure_ceilings(settings.device, dtype)
    result = empty_result("train", settings, ceilings)
    with tempfile.TemporaryDirectory() as folder:
        for context in settings.contexts:
            for batch in settings.batches:
                late = settings.seconds is not None and time.monotonic() - started > settings.seconds
                if late:
                    reason = f"the {settings.seconds:g} s were used up"
                    result["skipped"].append({"model": "all", "batch": batch, "context": context, "reason": reason})
                    continue
                progress(f"context {context}, batch {batch}: {', '.join(s.name for s in subjects)}")
                _measure(subjects, context, int(batch), settings, ceilings, Path(folder), result, progress)
                save(result)
    result["complete"] = True
    save(result)
    return result


def _measure(
    subjects: list[Subject], context: int, batch: int, settings: BenchSettings, ceilings: Ceilings, folder: Path,
    result: dict, progress: Callable,
) -> None:  # fmt: skip
    """Rows of all models at one context and batch, to `result`."""
    candidates = []
    for subject in subjects:
        batches = random_batches(subject.config.vocab_size, context, folder)
        recipe = RecipeSection(steps=_WARM + _TIMED + _APART, batch=batch, arl=False)
        sparse = Pattern(recipe.arl_dilation, recipe.arl_window, recipe.arl_sinks)
        for arl in [sparse, None] if subject.config.recurrence else [None]:
            candidates.append(_Candidate(subject, arl, batches, recipe, [], [], []))
    going = list(candidates)
    while going:
        for candidate in list(going):
            try:
                _turn(candidate, settings)
            except torch.OutOfMemoryError as error:
                reason = f"out of memory: {first_line(error)}"
                left = {"model": candidate.subject.name, "batch": batch, "context": context, "reason": reason}
                result["skipped"].append(left | {"step": candidate.step})
                candidates.remove(candidate)
                going.remove(candidate)
                continue
            taken = candidate.steps_ms
            progress(f"  {candidate.subject.name}, {candidate.step} step: {np.median(taken):.4g} ms ({len(taken)})")
            if len(taken) >= settings.repeats or sum(taken) > 1e3 * settings.budget_s:
                going.remove(candidate)
    rows = [_row(candidate, context, batch, settings, ceilings) for candidate in candidates]
    plain = {_peer(c.subject.config): row for c, row in zip(candidates, rows) if not row["recurrence"]}
    for candidate, row in zip(candidates, rows):
        beside = plain.get(_peer(candidate.subject.config)) if row["recurrence"] else None
        for name, key in (("arl_cost", "step_ms_p50"), ("arl_cost_cpu", "step_cpu_ms_p50")):
            row[name] = beside and row[key] / beside[key]
    result["rows"] += rows


def random_batches(vocab: int, context: int, folder: Path, with_recall: bool = True) -> Batches:
    """Batches as pretraining reads them: random ids in a file, mapped into memory, and recall rows if these fit."""
    with_recall = with_recall and RECALL.length <= context
    text_vocab = vocab - (RecallTask.of(RECALL, 0).vocab_size if with_recall else 0)
    if text_vocab < 2:  # too few ids for the symbols of the recall task
        with_recall, text_vocab = False, vocab
    path = folder / f"train-{text_vocab}.bin"
    if not path.exists():
        dtype = np.uint16 if text_vocab <= 1 << 16 else np.uint32
        ids = np.random.default_rng(0).integers(0, text_vocab, _TRAINING_TOKENS, dtype=dtype)
        path.write_bytes(ids.tobytes())
    ids = np.memmap(path, dtype=np.uint16 if text_vocab <= 1 << 16 else np.uint32, mode="r")
    manifest = {"tokenizer": {"vocab_size": text_vocab, "eos_id": min(ByteTokenizer.eos_id, text_vocab - 1)}}
    task = RecallTask.of(RECALL, text_vocab) if with_recall else None
    return Batches(Corpus(folder, manifest, ids, ids), task, RECALL.fraction if with_recall else 0.0, context, seed=0)


class _Timed(TrainingModule):
    """Remembers when each step ended, takes the last ones apart, and measures the memory of one."""

    def __init__(self, *args, watch: Stopwatch, apart_from: int, peak_of: int | None, device: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.watch, self.apart_from, self.peak_of, self.where = watch, apart_from, peak_of, device
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.peak: int | None = None

    def training_step(self, batch, _batch_index) -> None:
        if batch[0] == self.peak_of:
            step = super().training_step
            self.peak = peak_bytes(lambda: step(batch, _batch_index), self.where)
        else:
            super().training_step(batch, _batch_index)

    def manual_backward(self, loss) -> None:
        super().manual_backward(loss)
        self.watch.mark("optimizer")


class _Ends(lightning.Callback):
    """Ends of steps; the stopwatch runs from the end of one to the end of the next."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        module = cast(_Timed, pl_module)
        if module.where == "cuda":
            torch.cuda.synchronize()
        module.ends.append(time.perf_counter())
        module.cpu_ends.append(time.process_time())
        module.watch.lap()
        module.watch.on = batch[0] + 1 >= module.apart_from
        module.watch.mark("other")


class _Loader(StepLoader):
    """A loader whose work the stopwatch sees."""

    watch: Stopwatch

    def __iter__(self):
        steps = super().__iter__()
        while True:
            self.watch.mark("data")
            batch = next(steps, None)
            self.watch.mark("other")
            if batch is None:
                return
            yield batch


def _turn(candidate: _Candidate, settings: BenchSettings) -> None:
    """A few steps of one candidate with a model of its own; times and parts are added to it."""
    config = candidate.subject.config
    # The master weights are float32 whatever the products are in.
    model = random_model(config, "cpu", torch.float32)
    watch = Stopwatch(settings.device)
    first = not candidate.steps_ms
    recipe = replace(candidate.recipe, steps=candidate.recipe.steps + first)
    module = _Timed(
        model, recipe, arl=candidate.arl, watch=watch, apart_from=recipe.steps - _APART,
        peak_of=_WARM if first else None, device=settings.device,
    )  # fmt: skip
    loader = _Loader(candidate.batches, recipe, "pretrain", 0, pinned=settings.device == "cuda")
    loader.watch = watch
    run = RunSection(accelerator=settings.device)
    precision = "bf16" if dtype_of(settings) == torch.bfloat16 else "float32"
    with quiet_lightning(), watched(model, watch):
        make_trainer(run, precision, [_Ends()]).fit(module, loader)
    if first:
        assert module.peak is not None  # the step that measures it has run
        weights = sum(p.numel() for p in model.parameters())
        candidate.peak = _BYTES_OF_WEIGHT_AND_MOMENTS * weights + module.peak
    # Between the ends of two steps: reading the second one's data is in it.
    taken, busy = (1e3 * np.diff(ends)[-_TIMED - _APART : -_APART] for ends in (module.ends, module.cpu_ends))
    candidate.steps_ms += taken.tolist()
    candidate.steps_cpu_ms += busy.tolist()
    candidate.parts_ms += watch.laps[-_APART:]


def _row(candidate: _Candidate, context: int, batch: int, settings: BenchSettings, ceilings: Ceilings) -> dict:
    subject, times = candidate.subject, Times.of(candidate.steps_ms)
    config, recipe = subject.config, candidate.recipe
    shapes = [inputs.shape for inputs, _ in candidate.batches.train(recipe, "pretrain", 0)]
    tokens = sum(rows * length for rows, length in shapes)
    passes = [None] if candidate.arl is None else [candidate.arl, None]
    flops = 3 * sum(rows * forward_flops(config, p, length) for p in passes for rows, length in shapes)
    seconds = times.p50 / 1e3
    shares = {part: sum(lap[part] for lap in candidate.parts_ms) for part in PARTS}
    whole = sum(shares.values())
    parameters = sum(p.numel() for p in random_model(config, "meta", torch.float32).parameters())
    precision = "bf16" if dtype_of(settings) == torch.bfloat16 else "float32"
    return {
        "model": subject.name, "parameters": parameters, "recurrence": config.recurrence, "step": candidate.step,
        "batch": batch, "context": context, "tokens": tokens,
        "step_ms_p50": times.p50, "step_ms_p20": times.p20, "step_ms_p80": times.p80, "repeats": times.repeats,
        "step_cpu_ms_p50": Times.of(candidate.steps_cpu_ms).p50,
        "tokens_per_second": tokens / seconds, "mfu": flops / seconds / (1e12 * ceilings.matmul_tflop_s),
        **{f"{part}_ms": times.p50 * share / whole for part, share in shares.items()},
        "data_share": shares["data"] / whole,
        "peak_bytes": candidate.peak,
        "estimated_bytes": training_memory(config, parameters, tokens, precision).total,
    }  # fmt: skip
