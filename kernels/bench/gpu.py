"""The operators on a GPU machine without the rest of the house: torch and Triton are enough.

`python -m ratplus.kernels.bench.gpu FOLDER [--seconds S] [--phases PHASE,PHASE,...] [--only WORDS]`, most telling
first:

- variants: tiles and pipeline depths of each kernel side by side; the later phases run with the fastest. --only: of the
  kernels whose name begins with WORDS, such as `decode`;
- goals: the shapes that the goals are about, and what was reached;
- table: all other shapes, without peers;
- block_variants, blocks: the same of attention to selected blocks, which is left out of the others;
- peers: other formulations beside ours, which take minutes to compile: best in a process of its own.

A row a line goes to the terminal as it comes; FOLDER gets the same as JSON, whole after every step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ratplus.kernels.bench.backends import cudnn_version
from ratplus.kernels.bench.block_phase import block_phase_plans, split_line, split_of_time
from ratplus.kernels.bench.block_variants import block_groups
from ratplus.kernels.bench.cases import Shapes, reason
from ratplus.kernels.bench.goals import GOALS, concerns_goals
from ratplus.kernels.bench.run import bench_ops
from ratplus.kernels.bench.timing import Ceilings, check_device, interleaved, measure_ceilings
from ratplus.kernels.bench.variants import Group, fastest, groups
from ratplus.records.atomic import write_atomically

PHASES = ("variants", "goals", "table", "peers", "block_variants", "blocks")
COMPILERS = 12  # processes that compile variants side by side


def main(words: list[str], shapes: Shapes | None = None) -> None:
    """Run the phases that `words` name. Raises ValueError for wrong words, and where there is no CUDA device."""
    arguments = _parse(words)
    shapes = shapes or Shapes()
    if arguments.d_head is not None:
        shapes = replace(shapes, d_head=arguments.d_head)
    check_device(shapes.device)
    if arguments.compile is not None:
        return _compile(_groups(arguments.phases[0])(shapes, small=True), arguments.only, shapes, *arguments.compile)
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)  # seen now rather than after the first case
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    _say(f"torch {torch.__version__}, cuDNN {cudnn_version()}, {shapes.device}, {shapes.dtype}")
    ceilings = measure_ceilings(shapes.device, shapes.dtype, small=shapes.tokens < 1024)
    _say(f"copy {ceilings.copy_gb_s:.0f} GB/s, matrix product {ceilings.matmul_tflop_s:.0f} TFLOP/s")
    # Whatever order the words have: a run that is cut off then loses what matters least.
    if "variants" in arguments.phases:
        _variants("variants", shapes, ceilings, folder / "variants.json", deadline, arguments.only)
    if "goals" in arguments.phases or "table" in arguments.phases:
        _operators(shapes, ceilings, folder / "kernels.json", deadline, table="table" in arguments.phases)
    if "block_variants" in arguments.phases:
        _variants("block_variants", shapes, ceilings, folder / "block_variants.json", deadline, arguments.only)
    if "blocks" in arguments.phases:
        _blocks(shapes, ceilings, folder / "blocks.json", deadline)
    if "peers" in arguments.phases:
        only = replace(
            shapes, peers_only=True, d_models=shapes.d_models[:1], peer_lengths=shapes.peer_lengths[:1],
            decode_batches=(), repeats=10,
        )  # fmt: skip
        save = _saver(folder / "peers.json")
        result = bench_ops(only, seconds=_left(deadline), ceilings=ceilings, on_row=_row, save=save)
        _left_out(result["skipped"])
    return None


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ratplus.kernels.bench.gpu", exit_on_error=False)
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, help="begin nothing new after so many")
    parser.add_argument("--phases", type=lambda text: text.split(","), default=["variants", "goals", "table"])
    parser.add_argument("--d-head", type=int, help="channels a head (128); the variants then leave the scan out")
    parser.add_argument("--only", default="", help="variants of the kernels whose name begins so")
    parser.add_argument("--compile", type=lambda text: [int(x) for x in text.split("/")], help=argparse.SUPPRESS)
    try:
        arguments = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    unknown = [phase for phase in arguments.phases if phase not in PHASES]
    if unknown:
        raise ValueError(f"--phases: got {','.join(unknown)}; allowed: {', '.join(PHASES)}")
    return arguments


# ---- variants ----------------------------------------------------------------------------------------------------


def _groups(phase: str) -> Callable[..., Iterator[Group]]:
    """What makes the groups of that phase."""
    return block_groups if phase == "block_variants" else groups


def _variants(
    phase: str, shapes: Shapes, ceilings: Ceilings, target: Path, deadline: float | None, only: str
) -> None:  # fmt: skip
    """Measure every variant and put the fastest of each kernel into its table, for the phases that follow."""
    if shapes.device == "cuda":
        _compile_side_by_side(phase, shapes.d_head, only)
    measured: list[tuple[Group, list[float]]] = []
    rows: list[dict] = []
    save = _saver(target)
    for group in _groups(phase)(shapes):
        if not group.entry.kernel.startswith(only):
            continue
        if deadline is not None and time.monotonic() > deadline:
            _say(f"left out for want of time: variants of {group.entry.kernel} {group.shape} {group.pattern}")
            continue
        times = _measure(group, shapes)
        measured.append((group, [taken for taken, _, _ in times]))
        for value, (taken, clean, failure) in zip(group.entry.values, times, strict=True):
            rows.append({
                "kernel": group.entry.kernel, "shape": group.shape, "pattern": group.pattern, "variant": asdict(value),
                "ms_p50": None if failure else taken, "ms_p50_clean": clean, "failure": failure,
            })  # fmt: skip
            shares = failure or (
                f"{taken:9.4f} ms {f'{clean:.4f} ' if clean else ''}"
                f"{group.least_bytes / taken / 1e6 / ceilings.copy_gb_s:5.0%} copy "
                f"{group.flops / taken / 1e9 / ceilings.matmul_tflop_s:5.0%} matmul"
            )
            _say(f"{group.entry.kernel:<29}{group.shape:<19}{group.pattern:<9}{_short(value):<24}{shares}")
        if shapes.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        save({"benchmark": phase, "ceilings": vars(ceilings), "rows": rows})
    chosen = fastest(measured)
    for group, _ in measured:
        if group.entry.kernel in chosen:
            group.entry.table[group.entry.key] = chosen[group.entry.kernel][0]
    for kernel, (value, loss) in chosen.items():
        _say(f"chosen: {kernel:<28} {_short(value):<20} {loss:.1%} over the best of each shape, on average")
    save({
        "benchmark": phase, "ceilings": vars(ceilings), "rows": rows,
        "chosen": {kernel: asdict(value) for kernel, (value, _) in chosen.items()},
    })  # fmt: skip


def _measure(group: Group, shapes: Shapes) -> list[tuple[float, float | None, str | None]]:
    """(milliseconds, milliseconds, None) or (not a number, None, why it failed) for each variant, taking turns.

    The second figure is of calls that find nothing in L2 that must be written back first (`interleaved`); only for what
    runs in a graph, which is short enough for it to matter.
    """
    try:
        shared = group.make()
    except Exception as error:  # a shape that doesn't fit, or a kernel that fails: told, and the others go on
        return [(float("nan"), None, reason(error))] * len(group.entry.values)
    working, found = [], []
    for value in group.entry.values:
        try:
            run = group.with_value(value, shared)
            run()
            if shapes.device == "cuda":
                torch.cuda.synchronize()
            working.append(run)
            found.append(None)
        except Exception as error:
            found.append(reason(error))
    times = interleaved(working, shapes.device, 12, 0.12, warm=False) if working else []
    clean = times
    if working and group.capture:
        clean = interleaved(working, shapes.device, 12, 0.12, warm=False, dirty=False)
    both = iter([(x.p50, y.p50 if group.capture else None) for x, y in zip(times, clean, strict=True)])
    return [(float("nan"), None, failure) if failure else (*next(both), None) for failure in found]


def _short(value: Any) -> str:
    """Numbers behind the first letter of their names; of switches, the letters of those that are on.

    Nothing of what is None.
    """
    parts = []
    for name, part in asdict(value).items():
        if part is None:
            continue
        letter = name[0] if name != "num_warps" else "w"
        parts.append(f"{letter}{part}" if not isinstance(part, bool) else letter * part)
    return " ".join(filter(None, parts))


def _compile_side_by_side(phase: str, d_head: int, only: str) -> None:
    """Fill Triton's cache on disk with every variant: one process would compile for minutes."""
    started = time.monotonic()
    command = [sys.executable, "-P", "-m", "ratplus.kernels.bench.gpu", "-", "--d-head", str(d_head), "--only", only]
    command += ["--phases", phase]
    workers = [
        subprocess.Popen([*command, "--compile", f"{n}/{COMPILERS}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for n in range(COMPILERS)
    ]
    for worker in workers:
        try:
            _, errors = worker.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            worker.kill()
            _, errors = worker.communicate()
        if worker.returncode:
            _say(f"a compiling process failed: {errors.decode(errors='replace').strip().splitlines()[-1:]}")
    _say(f"compiled the variants in {time.monotonic() - started:.0f} s")


def _compile(small: Iterable[Group], only: str, shapes: Shapes, part: int, parts: int) -> None:
    """Every `parts`-th variant of groups whose shapes take no time."""
    done = set()
    work = []
    for group in small:
        for n, value in enumerate(group.entry.values):
            # Decoding is another kernel where slots are split: with one sequence.
            kind = (group.entry.kernel, group.shape if "decode" in group.entry.kernel else "", value)
            if kind not in done and group.entry.kernel.startswith(only):
                done.add(kind)
                work.append((group, n))
    for group, n in work[part::parts]:
        _measure(replace(group, entry=replace(group.entry, values=(group.entry.values[n],))), shapes)


# ---- blocks ------------------------------------------------------------------------------------------------------


def _blocks(shapes: Shapes, ceilings: Ceilings, target: Path, deadline: float | None) -> None:
    plain = replace(shapes, repeats=min(10, shapes.repeats), budget_s=0.15)
    splits: list[dict] = []
    result = bench_ops(
        plain, seconds=_left(deadline), ceilings=ceilings, found=block_phase_plans(plain), on_row=_row,
        save=_saver(target),
    )  # fmt: skip
    _left_out(result["skipped"])
    of_means = [selection for selection in shapes.selections if selection.score == "mean"]
    for (batch, length), selection, apart in product(shapes.block_shapes, of_means, (False, True)):
        if deadline is not None and time.monotonic() > deadline:
            _say(f"left out for want of time: the parts of B{batch} T{length} {selection.label}")
            continue
        try:
            splits.append(split_of_time(plain, batch, length, selection, apart))
            _say(split_line(splits[-1]))
        except Exception as error:  # told, and the others go on
            _say(f"the parts of B{batch} T{length} {selection.label}: {reason(error)}")
        _saver(target)({**result, "splits": splits})


# ---- goals, table --------------------------------------------------------------------------------------------------


def _operators(shapes: Shapes, ceilings: Ceilings, target: Path, deadline: float | None, table: bool) -> None:
    plain = replace(shapes, peer_lengths=(), repeats=10, budget_s=0.15)
    # One measurement of the ceilings for both parts: on a device that is warm, a second one comes out lower.
    telling = bench_ops(
        plain, seconds=_left(deadline), ceilings=ceilings, only=concerns_goals, on_row=_row, save=_saver(target)
    )
    for goal in GOALS:
        _say(goal.line(telling["rows"]))
    if not table:
        return
    everything = replace(plain, d_models=plain.d_models[:1], decode_batches=(*plain.decode_batches, 4096))
    result = bench_ops(
        everything, seconds=_left(deadline), ceilings=ceilings, only=lambda plan: not concerns_goals(plan), on_row=_row,
        save=lambda rest: _saver(target)({**rest, **_both(telling, rest)}),
    )  # fmt: skip
    _left_out(result["skipped"])
    for goal in GOALS:
        _say(goal.line(telling["rows"]))


def _both(first: dict, second: dict) -> dict:
    return {name: first[name] + second[name] for name in ("rows", "skipped")}


def _row(row: dict) -> None:
    if "reason" in row:
        _say(f"{row['op']:<25}{row['shape']:<19}{row['pattern']:<9}{row['candidate']:<28}not measured: {row['reason']}")
        return
    _say(
        f"{row['op']:<25}{row['shape']:<19}{row['pattern']:<9}{row['candidate']:<28}{row['ms_p50']:9.3f} ms "
        f"{row['bandwidth_fraction']:5.0%} copy {row['matmul_fraction']:5.0%} matmul"
    )


def _left_out(skipped: list[dict]) -> None:
    late = [row for row in skipped if row["candidate"] == "all" and "used up" in row["reason"]]
    if late:
        names = ", ".join(f"{row['op']} {row['shape']} {row['pattern']}" for row in late[:3])
        _say(f"left out for want of time: {len(late)} plans ({names}, ...)")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _saver(target: Path):
    return lambda result: write_atomically(target, json.dumps(result, indent=1) + os.linesep)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
