"""One model under many patterns: prefill and decoding steps timed in turns, bytes measured and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ratplus.bench.dense import has_dense_layers
from ratplus.bench.settings import BenchSettings
from ratplus.costs.of_model import model_cost
from ratplus.kernels.bench.backends import BACKENDS, dense_on, usable
from ratplus.kernels.bench.timing import Ceilings, Times, available_memory_bytes, interleaved, peak_bytes
from ratplus.model import RATPlus
from ratplus.model.cache import KVCache
from ratplus.model.decode_loop import DecodeLoop
from ratplus.pattern import PatternMap
from ratplus.records.lines import first_line

DENSE = "D1"
# Shares of the free memory: what caches measured side by side may take, and what the largest batch may (the rest is for
# activations).
_SIDE_BY_SIDE, _LARGEST = 0.6, 0.85
# More sequences than this at once say nothing new.
_MOST_SEQUENCES = 4096


@dataclass
class _Entry:
    """One pattern at one batch size, with its cache while it is measured."""

    label: str
    patterns: PatternMap
    batch: int
    bytes_each: int  # of one sequence's cache
    max_batch: int
    largest: bool  # whether `batch` was asked for as the largest
    _held: tuple[KVCache, DecodeLoop] | None = None

    @property
    def cache(self) -> KVCache:
        assert self._held is not None
        return self._held[0]

    @property
    def loop(self) -> DecodeLoop:
        assert self._held is not None
        return self._held[1]

    def hold(self, model: RATPlus, length: int) -> None:
        """Make the cache, for so many tokens of each sequence, and the loop that decodes on it."""
        cache = model.new_cache(self.batch, self.patterns, length)
        for layer in cache.layers:  # zeros would draw less power than a cache in use
            for kind in ("kv", "metadata"):
                for held in layer.buffers().get(kind, []):
                    held.normal_()
        self._held = cache, DecodeLoop.best(model, cache)

    def drop(self) -> None:
        self._held = None


@dataclass
class _Prompt:
    """Prefill of one pattern: of the faster kernel for dense layers, and each one's median."""

    times: Times | None = None
    peak: int | None = None
    backend: str | None = None
    each_ms: dict[str, float] = field(default_factory=dict)


class Measuring:
    """Measures one model; rows and what is left out go to `result`.

    A row: model, parameters, recurrence, heads, kv_heads (of keys and values), pattern, batch, context, new_tokens,
    largest (whether the batch is the largest that the memory holds); prefill_ms_{p50,p20,p80} and prefill_repeats;
    prefill_{cudnn,flash}_ms (medians where dense layers run on either of torch's kernels, on CUDA; prefill_ms is of the
    faster one, dense_backend its name); decode_ms_{p50,p20,p80} a token, and decode_repeats (each of new_tokens steps),
    decode_path; tokens_per_second;
    kv_bytes (allocated), kv_bytes_formula (entries held at the context), state_bytes; max_batch (sequences whose
    caches fit in memory beside the weights); prefill_peak_bytes, decode_peak_bytes (of a call, beyond weights and
    cache); prefill_limit_ms, decode_limit_ms (what the ceilings allow); prefill_ratio, decode_ratio, kv_ratio (to the
    dense pattern at this context and batch, of one sequence). What isn't measured is null, limits too where
    `ceilings` is None.

    Raises ValueError where neither the settings nor the system tell how much memory there is.
    """

    def __init__(self, name: str, model: RATPlus, settings: BenchSettings, ceilings: Ceilings | None, result: dict):
        self.name, self.model, self.settings, self.ceilings, self.result = name, model, settings, ceilings, result
        self.parameters = sum(p.numel() for p in model.parameters())
        self.item = model.embed.weight.element_size()
        known = [available_memory_bytes(settings.device)]
        if settings.memory_gb is not None:
            known.append(max(0, int(settings.memory_gb * 1e9) - self.parameters * self.item))
        known = [size for size in known if size is not None]
        if not known:
            raise ValueError("this system doesn't tell how much memory is free; give --memory-gb")
        self.free = min(known)

    def at(self, context: int, batch: int | str, maps: dict[str, PatternMap]) -> None:
        """Rows of every pattern at one context and batch size; ratios are to the dense pattern's row among them."""
        rows = []
        for group in self._groups(context, batch, maps):
            try:
                rows += self._measure(group, context)
            except torch.OutOfMemoryError as error:
                for entry in group:
                    self._skip(entry.label, context, entry.batch, f"out of memory: {first_line(error)}")
            for entry in group:
                entry.drop()
            if self.settings.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        dense = next((row for row in rows if row["pattern"] == DENSE), None)
        self.result["rows"] += [row | _ratios(row, dense) for row in rows]

    def _groups(self, context: int, batch: int | str, maps: dict[str, PatternMap]) -> list[list[_Entry]]:
        """Patterns whose caches fit in memory together are measured in turns; if not all do, in several groups."""
        groups: list[list[_Entry]] = [[]]
        for label, patterns in maps.items():
            one = self.model.new_cache(1, patterns, context + self.settings.new_tokens).bytes()
            most = self.free // one
            size = min(int(_LARGEST * most), _MOST_SEQUENCES) if batch == "max" else int(batch)
            if not 1 <= size <= max(1, int(_LARGEST * most)) or most < 1:
                self._skip(label, context, batch, f"a cache takes {one / 1e9:.3g} GB a sequence; {most} fit")
                continue
            entry = _Entry(label, patterns, size, one, most, batch == "max")
            held = sum(e.batch * e.bytes_each for e in groups[-1])
            if groups[-1] and held + size * one > _SIDE_BY_SIDE * self.free:
                groups.append([])
            groups[-1].append(entry)
        return [group for group in groups if group]

    def _measure(self, group: list[_Entry], context: int) -> list[dict]:
        n, device = self.settings.new_tokens, self.settings.device
        for entry in group:
            entry.hold(self.model, context + n)
        token = {e.batch: torch.randint(self.model.config.vocab_size, (e.batch,), device=device) for e in group}

        def decode(entry: _Entry) -> Callable[[], object]:
            def run():
                chosen = token[entry.batch]
                for _ in range(n):
                    chosen = entry.loop.step(chosen).argmax(dim=-1)

            return run

        def prefill(entry: _Entry) -> Callable[[], object]:
            prompt = torch.randint(self.model.config.vocab_size, (entry.batch, context), device=device)
            return lambda: self.model.prefill(prompt, entry.cache)

        timing: dict[str, Any] = {
            "device": device,
            "repeats": self.settings.repeats,
            "budget_s": self.settings.budget_s,
            "cold": False,
        }
        to_context = [lambda e=e: e.cache.rewind(context) for e in group]
        runs = [decode(e) for e in group]
        decoded = [times.over(n) for times in interleaved(runs, before=to_context, **timing)]
        decode_peaks = [self._step_peak(e, context, token[e.batch]) for e in group]

        # At the largest batch a prompt's activations would not fit beside the caches.
        short = [e for e in group if e.batch * context <= self.settings.prefill_tokens and not e.largest]
        for entry in group:
            if entry not in short and not entry.largest:
                tokens = entry.batch * context
                reason = f"prefill of {tokens} tokens is more than --prefill-tokens {self.settings.prefill_tokens}"
                self._skip(entry.label, context, entry.batch, reason)
        prompts = self._prompts([(e, prefill(e)) for e in short], context, timing)
        return [
            self._row(entry, context, times, peak, prompts.get(entry.label, _Prompt()))
            for entry, times, peak in zip(group, decoded, decode_peaks)
        ]

    def _prompts(self, runs: list[tuple[_Entry, Callable]], context: int, timing: dict) -> dict[str, _Prompt]:
        """Prefill of each pattern, in turns; where layers are dense, on each kernel that torch has for them."""
        candidates: list[tuple[_Entry, str | None, Callable]] = []
        for entry, run in runs:
            names: list[str | None] = [None]
            if self.settings.device == "cuda" and has_dense_layers(entry.patterns, context):
                entry.cache.rewind()

                def once(entry=entry, run=run):
                    entry.cache.rewind()
                    run()

                working, refused = usable(once, list(BACKENDS))
                names = [*working] or [None]
                for name, reason in refused.items():
                    self._skip(f"{entry.label} on {name}", context, entry.batch, reason)
            candidates += [(entry, name, run) for name in names]
        if not candidates:
            return {}

        def on(name: str | None, run: Callable) -> Callable[[], None]:
            def call():
                with dense_on(name):
                    run()

            return call

        calls = [on(name, run) for _, name, run in candidates]
        to_start = [lambda e=e: e.cache.rewind() for e, _, _ in candidates]
        found: dict[str, _Prompt] = {}
        for (entry, name, _), times, call in zip(candidates, interleaved(calls, before=to_start, **timing), calls):
            prompt = found.setdefault(entry.label, _Prompt())
            if name is not None:
                prompt.each_ms[name] = times.p50
            if prompt.times is None or times.p50 < prompt.times.p50:
                entry.cache.rewind()
                prompt.times, prompt.backend = times, name
                prompt.peak = peak_bytes(call, self.settings.device)
        return found

    def _step_peak(self, entry: _Entry, context: int, token: torch.Tensor) -> int:
        """Peak memory of a step that is no replay of a graph: a graph took its memory when it was captured."""
        entry.cache.rewind(context)
        return peak_bytes(lambda: self.model.step(token, entry.cache), self.settings.device)

    def _row(self, entry: _Entry, context: int, decoded: Times, decode_peak: int, prompt_taken: _Prompt) -> dict:
        """Everything about one pattern but its ratios."""
        config, batch = self.model.config, entry.batch
        spent = model_cost(config, entry.patterns, context, self.item)
        embedding = config.vocab_size * config.d_model
        # An embedding that is not the output head too is looked up, not multiplied with or read whole.
        used = self.parameters - (0 if config.tied else embedding)
        weights = used * self.item
        steps = 2 * used * batch + (spent.decode_flops + spent.decode_selection_flops) * batch
        # Of entries that are held, those that are read; the state is read and written. Where it is all there is, the
        # reads are in decode_bytes already.
        decode_bytes = weights + batch * (spent.decode_bytes + (1 + config.attends) * spent.state_bytes)
        prompt = 2 * (used - embedding) * batch * context + 2 * embedding * batch
        prompt += (spent.attention_flops + spent.selection_flops) * batch
        return {
            "model": self.name, "parameters": self.parameters, "recurrence": config.recurrence,
            "heads": config.heads, "kv_heads": config.key_heads,
            "pattern": entry.label, "batch": batch, "context": context, "new_tokens": self.settings.new_tokens,
            "largest": entry.largest,
            **_times("prefill", prompt_taken.times),
            "dense_backend": prompt_taken.backend,
            **{f"prefill_{name}_ms": prompt_taken.each_ms.get(name) for name in BACKENDS},
            **_times("decode", decoded),
            "decode_path": "cuda graph" if entry.loop.graphed else "plain loop",
            "tokens_per_second": 1e3 * batch / decoded.p50,
            "kv_bytes": entry.cache.kv_bytes(), "kv_bytes_formula": batch * spent.kv_bytes,
            "state_bytes": entry.cache.state_bytes(), "max_batch": entry.max_batch,
            "prefill_peak_bytes": prompt_taken.peak, "decode_peak_bytes": decode_peak,
            "prefill_limit_ms": None if prompt_taken.times is None else self._limit_ms(weights, prompt),
            "decode_limit_ms": self._limit_ms(decode_bytes, steps),
        }  # fmt: skip

    def _limit_ms(self, least_bytes: float, flops: float) -> float | None:
        return None if self.ceilings is None else self.ceilings.limit_ms(least_bytes, flops)

    def _skip(self, label: str, context: int, batch: int | str, reason: str) -> None:
        self.result["skipped"].append(
            {"model": self.name, "pattern": label, "batch": batch, "context": context, "reason": reason}
        )


def _times(name: str, times: Times | None) -> dict:
    fields = {"ms_p50": "p50", "ms_p20": "p20", "ms_p80": "p80", "repeats": "repeats"}
    return {f"{name}_{key}": None if times is None else getattr(times, field) for key, field in fields.items()}


def _ratios(row: dict, dense: dict | None) -> dict:
    """Ours over dense, of times a sequence and of allocated cache bytes a sequence; null without a dense row."""

    def ratio(key: str) -> float | None:
        if dense is None or row[key] is None or not dense[key]:  # a mixer with a state has no keys and values
            return None
        return row[key] / row["batch"] / (dense[key] / dense["batch"])

    return {
        "prefill_ratio": ratio("prefill_ms_p50"),
        "decode_ratio": ratio("decode_ms_p50"),
        "kv_ratio": ratio("kv_bytes"),
    }
