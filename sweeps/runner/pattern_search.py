"""From the words of `ratplus search` to its pattern and report: what is loaded, shown and written."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ratplus.config.search import SearchSection
from ratplus.records.atomic import write_atomically
from ratplus.records.lock import FolderLock
from ratplus.records.manifest import MANIFEST_FILE
from ratplus.records.reading import open_plain, read_json, refuse_links
from ratplus.search.store import PROBES
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner.searched_model import Searched, locate

RESULT = "search.json"
_FORMAT = 1
_HEAD = "# Found by `ratplus search`"  # of a pattern's file
# Values of a pattern's dict whose key in a config is another.
_CONFIG_KEYS = {"over": "blocks_of"}


def search(section: SearchSection, overrides: list[str]) -> int:
    """Do a search, or with dry_run say what it takes; returns the exit code."""
    from ratplus.search.budgets import Budget
    from ratplus.search.splits import make_splits
    from ratplus.search.units import candidates_of

    candidates = candidates_of(section.candidates, heads_differ=section.over != "layers")
    budgets = [Budget.parse(text) for text in section.budget]
    if len({budget.text for budget in budgets}) < len(budgets):
        raise UsageError(f"budget: got {','.join(section.budget)}; name each budget once")
    found = locate(section, overrides)
    if not found.shape.attends:
        raise UsageError(
            f"model={section.model}: model.mixer={found.shape.mixer} has no pattern, so there is none to search; "
            "give a model of attention"
        )
    most = found.shape.max_len
    length = most if section.length is None else section.length
    if length > most:
        raise UsageError(f"length: got {length}; {found.folder} takes at most {most} tokens")
    splits = make_splits(section, found.corpus, found.recall, length)
    folder = Path(section.output or f"outputs/search/{found.name}")
    if section.dry_run:
        return _dry_run(section, found, candidates, budgets, splits, length)
    _check_folder(folder)
    paths = _pattern_paths(section, folder, budgets)
    with FolderLock(folder, on_wait=lambda who: print(f"{folder}: waiting for {who}", file=sys.stderr)):
        result = _searched(section, found, candidates, budgets, splits, length, folder)
        for budget, path in zip(result["budgets"], paths):
            budget["file"] = str(path)
            write_atomically(path, pattern_yaml(budget, result))
        write_atomically(folder / RESULT, json.dumps(result, indent=1) + "\n")
    from ratplus.analysis.search import write_report

    report = write_report(folder)
    print(report.summary)
    for budget in result["budgets"]:
        print(f"{budget['budget']}: {budget['winner']['pattern']}")
        print(f"  run it: {run_line(found, budget)}")
    for path in (*paths, *report.paths):
        print(path)
    return 0


def _searched(section, found: Searched, candidates, budgets, splits, length: int, folder: Path) -> dict:
    from ratplus.search.run import run_search
    from ratplus.search.store import ProbeStore
    from ratplus.sweeps.views.search_progress import SearchProgress

    probes = _probes(section, found, splits, ProbeStore(folder))
    prices, fitted = _prices(section, found, probes.model, candidates, budgets, length, folder)
    started = time.monotonic()
    with SearchProgress(_plan(section, found, candidates, budgets)) as shown:
        probes.on_pass = lambda seconds: shown.advance(probes.passes)
        result = run_search(probes, section, candidates, budgets, prices, shown.phase)
    facts = {
        "format": _FORMAT, "model": found.name, "weights_sha256": found.weights, "length": length,
        "kinds": {kind: {"dense": price.dense} for kind, price in prices.items()},
        "config": {k: v for k, v in asdict(section).items() if k not in ("threads", "dry_run", "output")},
        "splits": {name: {"sha256": s.sha256, "documents": s.documents, "tokens": s.tokens,
                          "rows": {g: len(r.inputs) for g, r in s.groups.items()}} for name, s in splits.items()},
        "spent": {"passes": probes.passes, "seconds": probes.seconds, "reused": probes.reused,
                  "reused_seconds": probes.reused_seconds, "wall_seconds": time.monotonic() - started},
    }  # fmt: skip
    if fitted is not None:
        facts["latency"] = fitted.to_dict()
        _time_winners(probes.model, result, length)
    return facts | result


def _probes(section: SearchSection, found: Searched, splits, store):
    import torch

    from ratplus import checkpoint
    from ratplus.checkpoint.facts import is_hub_folder
    from ratplus.search.probe import Probes
    from ratplus.stages.run_stage import training_device

    if section.threads is not None:
        torch.set_num_threads(section.threads)
    device = training_device(section.accelerator)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("accelerator=cuda: this machine has no CUDA device; use cpu or auto")
    if is_hub_folder(found.folder):
        raise UsageError(
            f"model={section.model}: a folder in the hub's style; turn it into a model folder first: "
            f"ratplus import {section.model} NEW_FOLDER"
        )
    model = checkpoint.load(found.folder)
    if model.config != found.shape:  # another length, or RoPE scaled for one
        from ratplus.model import empty_model

        used = empty_model(found.shape)
        used.load_state_dict(model.state_dict(), assign=True)
        model = used
    return Probes(model.to(device).eval(), splits, found.weights, store, section.batch)


def _prices(section: SearchSection, found: Searched, model, candidates, budgets, length: int, folder: Path):
    """(prices of every kind that is shown, the latency fit where a budget asks for it)."""
    from ratplus.search.budgets import Prices

    fitted = None
    if any(budget.kind == "latency" for budget in budgets):
        fitted = _latency_fit(section, found, model, candidates, length, folder)
    kinds = ["kv", "read", "flops"] + (["latency"] if fitted is not None else [])
    return {kind: Prices.of(kind, found.shape, length, fitted) for kind in kinds}, fitted


def _latency_fit(section: SearchSection, found: Searched, model, candidates, length: int, folder: Path):
    from ratplus.pattern import PatternMap
    from ratplus.records.reading import read_json
    from ratplus.search.latency import bench_points, fit

    shape = found.shape
    if section.bench is not None:
        return fit(bench_points(Path(section.bench), shape, length), shape, length)
    # Kept, since another timing would lead a resumed search to another choice.
    labels = [p.label for p in candidates]
    kept = folder / "latency.json"
    said = {"candidates": labels, "length": length, "weights_sha256": found.weights}
    try:
        stored = read_json(kept)
        times = stored["decode_ms"] if {key: stored[key] for key in said} == said else None
    except (OSError, ValueError, KeyError, TypeError):
        times = None
    if times is None:
        from ratplus.search.latency import decode_ms, fitting_maps

        print("timing decoding steps under the candidates", file=sys.stderr)
        times = decode_ms(model, fitting_maps(candidates, shape.layers, shape.heads, shape.key_heads), length)
        write_atomically(kept, json.dumps(said | {"decode_ms": times}, indent=1) + "\n")
    points = [(PatternMap.from_label(label, shape.layers, shape.heads), ms) for label, ms in times.items()]
    return fit(points, shape, length)


def _time_winners(model, result: dict, length: int) -> None:
    """Measured milliseconds of a decoding step of each winner and of the dense model, into the result."""
    from ratplus.pattern import PatternMap
    from ratplus.search.latency import decode_ms

    shape = result["shape"]
    maps = {b["budget"]: PatternMap.from_label(b["winner"]["pattern"], shape["layers"], shape["heads"])
            for b in result["budgets"]}  # fmt: skip
    times = decode_ms(model, list(maps.values()), length)
    for budget in result["budgets"]:
        budget["winner"]["decode_ms"] = times[maps[budget["budget"]].label]
        budget["winner"]["dense_decode_ms"] = times["D1"]


def _plan(section: SearchSection, found: Searched, candidates, budgets) -> dict[str, float]:
    from ratplus.search.effort import planned
    from ratplus.search.units import Space

    split = range(found.shape.layers) if section.over == "heads" else ()
    return planned(Space.of(found.shape, candidates, split), section, candidates, budgets)


def _dry_run(section, found: Searched, candidates, budgets, splits, length: int) -> int:
    """Print what the search would take, from one timed pass."""
    from ratplus.search.budgets import Prices
    from ratplus.search.run import check_budgets

    kinds = {budget.kind for budget in budgets} - {"latency"}
    prices = {kind: Prices.of(kind, found.shape, length) for kind in kinds}
    check_budgets([b for b in budgets if b.kind != "latency"], prices, candidates)
    probes = _probes(section, found, splits, None)
    for warm in (True, False):  # the first pass also sets the machine up
        probes.forget()
        started = time.perf_counter()
        probes.losses(probes.dense, "search")
        seconds = time.perf_counter() - started
        if warm and seconds > 60:
            break
    plan = _plan(section, found, candidates, budgets)
    total = sum(plan.values())
    for phase, passes in plan.items():
        print(f"{phase:<36} {passes:>9.1f} passes")
    print(f"{'at most':<36} {total:>9.1f} passes, {seconds:.2f} s each: about {duration(total * seconds)}")
    for name, split in splits.items():
        rows = ", ".join(f"{len(rows.inputs)} of {group}" for group, rows in split.groups.items())
        print(f"{name} split: {split.tokens:,} tokens, {split.documents} documents; rows: {rows}")
    return 0


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not a search's own.

    Raises:
        UsageError: a sweep folder, or one that holds somebody else's `search.json`.
        LinkError: something that is read or written there is a link.
    """
    refuse_links(folder, ("report", PROBES))
    if (folder / MANIFEST_FILE).exists():
        raise UsageError(f"output={folder}: is a sweep folder; a search has a folder of its own")
    try:
        whole = read_json(folder / RESULT, follow=False)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        whole = None
    if not isinstance(whole, dict) or not {"format", "kinds", "spent"} <= whole.keys():
        raise UsageError(f"output={folder}: holds {RESULT}, and no search wrote it; it is not replaced")


def _pattern_paths(section: SearchSection, folder: Path, budgets: Sequence) -> list[Path]:
    """Where the patterns go; made sure of before anything is measured."""
    out = Path(section.out or folder / "best.yaml")
    several = len(budgets) > 1
    paths = [out.with_name(f"{out.stem}-{b.file_name}{out.suffix}") if several else out for b in budgets]
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(21, "is a folder")
            if os.path.lexists(path) and not _is_ours(path):
                raise UsageError(f"out: {path}: is there, and no search wrote it; it is not replaced")
        except OSError as error:
            raise UsageError(f"out: {path}: cannot be written ({error.strerror or error})") from None
    return paths


def _is_ours(path: Path) -> bool:
    """Whether a file, and no link to one, is a pattern that a search wrote."""
    try:
        with open_plain(path, follow=False) as file:
            return file.read(len(_HEAD)) == _HEAD.encode()
    except (OSError, ValueError):  # a link, a device
        return False


def pattern_yaml(budget: dict, result: dict) -> str:
    """The winner as a file for conf/pattern, so that `--config-dir` and `pattern=<its name>` run it."""
    winner = budget["winner"]
    damage = winner["damage"]
    lines = [
        f"{_HEAD} for {result['model']}, {budget['budget']} at {result['length']} tokens: "
        f"{winner['costs'][budget['kind']]:.4g} of the dense model.",
        f"# Damage on the test split: {damage['mean']:.4f} nats, 95% interval {damage['low']:.4f} to "
        f"{damage['high']:.4f}.",
        f"# {winner['pattern']}",
    ]
    for key, value in winner["map"].items():
        lines.append(f"{_CONFIG_KEYS.get(key, key)}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def run_line(found: Searched, budget: dict) -> str:
    """The command that adapts and evaluates the winner as a cell."""
    import shlex

    label = budget["winner"]["pattern"]
    return f"ratplus evaluate model={found.config.model.name or 'MODEL'} {shlex.quote(f'pattern={label}')}"
